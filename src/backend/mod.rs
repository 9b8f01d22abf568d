//! Implementations of the op traits.

mod device;

pub use device::{DeviceChoice, DeviceRequest, choose_device};
