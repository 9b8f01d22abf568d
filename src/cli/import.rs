//! `prunectl import`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Turn a GGUF file into a Hugging Face folder, tokenizer included
#[derive(Debug, Args)]
pub(crate) struct Import {}

impl Import {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
