//! `prunectl doctor`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Show what this machine offers and what will be used
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
