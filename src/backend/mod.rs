//! Implementations of the op traits.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;

pub use device::{DeviceChoice, DeviceRequest, choose_device};
