//! `--adapter`: a LoRA adapter over the model's weights.

use crate::error::Result;
use crate::model::{Adapter, Decoder, ModelFolder};
use crate::ops::Backend;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// An adapter to run the model with.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdapterArgs {
    /// LoRA adapter to run the model with, a folder as PEFT saves it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

/// The adapter asked for, opened, or none.
pub(crate) struct OpenedAdapter(Option<Adapter>);

impl AdapterArgs {
    /// Opens the adapter; `folder` is its base.
    pub(crate) fn open(&self, folder: &ModelFolder) -> Result<OpenedAdapter> {
        self.adapter.as_deref().map(|path| Adapter::open(path, folder)).transpose().map(OpenedAdapter)
    }
}

impl OpenedAdapter {
    /// The decoder with the adapter added.
    pub(crate) fn over<B: Backend>(&self, mut decoder: Decoder<B>) -> Result<Decoder<B>> {
        if let Some(adapter) = &self.0 {
            let lora = adapter.prepare(decoder.backend())?;
            decoder.set_lora(Some(lora))?;
        }
        Ok(decoder)
    }

    /// For a report: its folder.
    pub(crate) fn path(&self) -> Option<String> {
        self.0.as_ref().map(|adapter| adapter.path.display().to_string())
    }

    /// What a journal says of it: nothing where there is none.
    pub(crate) fn facts(&self) -> Option<(String, Value)> {
        self.0.as_ref().map(|adapter| ("adapter".to_owned(), json!({"path": adapter.path, "sha256": adapter.digest()})))
    }
}
