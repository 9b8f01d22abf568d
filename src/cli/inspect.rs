//! `prunectl inspect`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Show architecture, parameters, dtypes, tokenizer and what can be done with a model
#[derive(Debug, Args)]
pub(crate) struct Inspect {}

impl Inspect {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
