//! `prunectl score`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// chrF, chrF++ and BLEU of texts, without a model
#[derive(Debug, Args)]
pub(crate) struct Score {}

impl Score {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
