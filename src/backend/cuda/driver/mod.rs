//! Owned types over the CUDA driver API. The only place that names cudarc.
//!
//! libcuda is looked up when it is first needed: a machine without one runs the same binary, and every function here says
//! so with an [`Error::Device`] instead of ending the process.

mod cublaslt;
mod gpu;
mod launch;
mod pool;
mod staging;
mod steps;
mod tape;
mod tensor_map;

pub use cublaslt::{CublasLt, cublaslt_present, cublaslt_version};
pub(in crate::backend) use gpu::no_kernels;
pub use gpu::{Gpu, Matmul};
pub use launch::{Argument, Element, Geometry};
pub use pool::Buffer;
pub use tensor_map::TensorMap;

use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::sync::OnceLock;

/// What the emulated GPU of the tests (emulator/) calls itself.
pub const EMULATED: &str = "prunectl emulated device";

/// A GPU as the driver describes it; asking costs no memory on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// N of `cuda:N`.
    pub ordinal: usize,
    /// Marketing name.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Memory in bytes, free or not.
    pub total_memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Place on the PCI bus as NVML writes it, `00000000:65:00.0`: which of several GPUs of one name.
    pub bus_id: String,
}

/// True where libcuda can be loaded.
#[must_use]
pub fn library_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
        // SAFETY: the library is NVIDIA's driver (or a stand-in for it that the user put on the library path), whose
        // initialisers any CUDA program runs.
        unsafe {
            sys::is_culib_present()
        }
    })
}

/// The CUDA version the driver supports, as major and minor.
///
/// # Errors
/// [`Error::Device`] where libcuda is missing or does not start.
pub fn version() -> Result<(u32, u32)> {
    start()?;
    let mut version = 0;
    #[expect(unsafe_code, reason = "the driver seam")]
    // SAFETY: libcuda is loaded (`start`), and the function writes one int to the valid pointer.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    status.result().map_err(|e| failed("cuDriverGetVersion", e))?;
    let version = u32::try_from(version).unwrap_or_default();
    Ok((version / 1000, version % 1000 / 10))
}

/// All GPUs, in the driver's order.
///
/// # Errors
/// [`Error::Device`] where libcuda is missing, does not start, or has no GPU.
pub fn devices() -> Result<Vec<Facts>> {
    start()?;
    let count = result::device::get_count().map_err(|e| failed("cuDeviceGetCount", e))?;
    (0..count).map(facts).collect()
}

fn facts(ordinal: i32) -> Result<Facts> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(ordinal).map_err(|e| failed("cuDeviceGet", e))?;
    let attribute = |which| {
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: `device` was returned by cuDeviceGet just above.
        let value = unsafe { result::device::get_attribute(device, which) };
        value.map(|v| u32::try_from(v).unwrap_or_default()).map_err(|e| failed("cuDeviceGetAttribute", e))
    };
    #[expect(unsafe_code, reason = "the driver seam")]
    // SAFETY: `device` was returned by cuDeviceGet just above.
    let memory = unsafe { result::device::total_mem(device) }.map_err(|e| failed("cuDeviceTotalMem", e))?;
    Ok(Facts {
        ordinal: usize::try_from(ordinal).unwrap_or_default(),
        name: result::device::get_name(device).map_err(|e| failed("cuDeviceGetName", e))?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        total_memory: u64::try_from(memory).unwrap_or(u64::MAX),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        bus_id: format!(
            "{:08X}:{:02X}:{:02X}.0",
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
        ),
    })
}

/// Loads and initialises the driver; cheap when it has happened already. cudarc panics without a library, so nothing here
/// calls it before this.
fn start() -> Result<()> {
    if !library_present() {
        return Err(Error::Device {
            problem: "the NVIDIA driver's library (libcuda.so.1) is not on this machine".into(),
            help: Some("install the NVIDIA driver, or use --device cpu".into()),
        });
    }
    result::init().map_err(|e| failed("cuInit", e))
}

/// The driver's error with the call that failed, its own words, and a remedy where we know one.
fn failed(call: &str, error: DriverError) -> Error {
    use sys::cudaError_enum as Code;
    let name = error.error_name().ok().map(|text| text.to_string_lossy().into_owned());
    let words = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    let help = match error.0 {
        Code::CUDA_ERROR_NO_DEVICE => Some("no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"),
        Code::CUDA_ERROR_INVALID_DEVICE => Some("`prunectl doctor` lists the GPUs by number"),
        Code::CUDA_ERROR_OUT_OF_MEMORY => Some("lower --mem-budget, or see with nvidia-smi what else uses this GPU"),
        Code::CUDA_ERROR_NO_BINARY_FOR_GPU => Some("this build has no kernels for that GPU; see `prunectl doctor`"),
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | Code::CUDA_ERROR_STUB_LIBRARY => {
            Some("the driver's library does not fit its kernel module or is too old: update the NVIDIA driver and restart")
        }
        _ => None,
    };
    Error::Device {
        problem: format!(
            "{call}: {} ({})",
            words.unwrap_or_else(|| "unknown error".into()),
            name.unwrap_or_else(|| format!("code {}", error.0 as i64)),
        ),
        help: help.map(Into::into),
    }
}
