//! NVIDIA GPUs: kernels compiled ahead and embedded in the binary, launched through the driver API.

pub mod driver;
pub mod kernels;
pub mod nvml;
pub mod rms_norm;
