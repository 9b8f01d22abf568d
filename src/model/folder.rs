//! A Hugging Face model folder: config.json and mapped safetensors, checked against each other on opening.

use super::config::DecoderConfig;
use crate::error::{Error, Result};
use crate::tensor::HostTensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An opened model folder. Tensors stay mapped as long as any clone of them lives.
#[derive(Debug)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// config.json, checked.
    pub config: DecoderConfig,
    /// config.json as it stands.
    pub raw_config: serde_json::Map<String, serde_json::Value>,
    tensors: BTreeMap<String, HostTensor>,
}

impl ModelFolder {
    /// Opens and checks a folder: every tensor the config demands is there in its shape, and nothing else.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Data`], [`Error::Unsupported`], each naming the file and the key or tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        Err(Error::request("placeholder until the loader lands"))
    }

    /// A tensor by its name in the file.
    ///
    /// # Errors
    /// [`Error::Data`] when there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&HostTensor> {
        self.tensors.get(name).ok_or_else(|| Error::data(&self.path, format!("tensor {name}"), "missing"))
    }
}
