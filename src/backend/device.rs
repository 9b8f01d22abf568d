//! Where to compute: what `--device` asks for, and what that comes to on this machine.

use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceRequest {
    /// A usable GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU: the one with this number, else the first usable one.
    Cuda(Option<usize>),
}

impl FromStr for DeviceRequest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(None)),
            Some(("cuda", number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                number.parse().map(|n| Self::Cuda(Some(n))).map_err(|_| "the number after cuda: is not one of a GPU".into())
            }
            _ => Err("expected auto, cpu, cuda or cuda:N".into()),
        }
    }
}

impl fmt::Display for DeviceRequest {
    /// As `--device` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(n)) => write!(f, "cuda:{n}"),
        }
    }
}

/// The device a request came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceChoice {
    /// As `--device` takes it: `cpu`, `cuda:0`.
    pub name: String,
    /// Why this one.
    pub reason: String,
    /// Number of the GPU; `None` for the CPU.
    #[serde(skip)]
    pub gpu: Option<usize>,
}

impl DeviceChoice {
    fn cpu(reason: impl Into<String>) -> Self {
        Self { name: "cpu".into(), reason: reason.into(), gpu: None }
    }

    #[cfg(feature = "cuda")]
    fn gpu(ordinal: usize, reason: String) -> Self {
        Self { name: format!("cuda:{ordinal}"), reason, gpu: Some(ordinal) }
    }
}

/// Settles a request. `auto` never fails: it takes the CPU where no GPU can be used, and says why.
///
/// # Errors
/// [`Error::Device`] when a GPU is asked for and cannot be used.
pub fn choose_device(request: DeviceRequest) -> Result<DeviceChoice> {
    match request {
        DeviceRequest::Cpu => Ok(DeviceChoice::cpu("asked for")),
        DeviceRequest::Auto => Ok(gpu(None, true).unwrap_or_else(|error| DeviceChoice::cpu(error.to_string()))),
        DeviceRequest::Cuda(number) => gpu(number, false)
            .map_err(|error| Error::Device { problem: format!("--device {request}: {error}"), help: error.help() }),
    }
}

/// The GPU with this number, else the first that can be used. The emulated one, which is for tests, has to be asked for.
#[cfg(feature = "cuda")]
fn gpu(number: Option<usize>, auto: bool) -> Result<DeviceChoice> {
    use super::cuda::driver::{EMULATED, devices, no_kernels};
    use super::cuda::kernels::{CUDA_KERNELS, Coverage, coverage};
    let found = devices()?;
    if CUDA_KERNELS.is_none() {
        return Err(no_kernels());
    }
    let covered = |gpu: &super::cuda::driver::Facts| {
        let (major, minor) = gpu.compute_capability;
        coverage(major, minor) != Coverage::None
    };
    let refuse = |problem: String| {
        let help = Some("use --device cpu; `prunectl doctor` lists the GPUs".into());
        Err(Error::Device { problem, help })
    };
    let Some(number) = number else {
        return match found.iter().find(|gpu| covered(gpu) && !(auto && gpu.name == EMULATED)) {
            Some(gpu) => Ok(DeviceChoice::gpu(gpu.ordinal, format!("{} can be used", gpu.name))),
            None if found.iter().any(|gpu| gpu.name == EMULATED) => refuse("the only GPU is the emulated one".into()),
            None => refuse("no GPU here has kernels in this build".into()),
        };
    };
    match found.into_iter().find(|gpu| gpu.ordinal == number) {
        Some(gpu) if covered(&gpu) => Ok(DeviceChoice::gpu(number, format!("{}, asked for", gpu.name))),
        Some(gpu) => refuse(format!("cuda:{number} ({}) is older than the GPUs that this build has kernels for", gpu.name)),
        None => refuse(format!("there is no GPU cuda:{number}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(_number: Option<usize>, _auto: bool) -> Result<DeviceChoice> {
    Err(Error::Device {
        problem: "this build has no CUDA (Cargo feature `cuda`)".into(),
        help: Some("build with the feature, or use --device cpu".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_survives_printing() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:12"] {
            assert_eq!(text.parse::<DeviceRequest>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:0:1", "cpu:0", "cuda:99999999999999999999999"]
        {
            assert!(text.parse::<DeviceRequest>().is_err(), "{text}");
        }
    }
}
