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
    /// As `--device` takes it: `cpu`.
    pub name: String,
    /// Why this one.
    pub reason: String,
}

/// Settles a request.
///
/// # Errors
/// [`Error::Device`] when a GPU is asked for: this build has kernels for a GPU but no decoder on one.
pub fn choose_device(request: DeviceRequest) -> Result<DeviceChoice> {
    let cpu = |reason: &str| Ok(DeviceChoice { name: "cpu".into(), reason: reason.into() });
    match request {
        DeviceRequest::Cpu => cpu("asked for"),
        DeviceRequest::Auto => cpu("the CUDA decoder is not in this build yet"),
        DeviceRequest::Cuda(_) => Err(Error::Device {
            problem: format!("--device {request}: the CUDA decoder is not in this build yet"),
            help: Some("use --device cpu; `prunectl doctor` shows what this machine and this build offer".into()),
        }),
    }
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
