//! `prunectl prune`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Write the shallower model
#[derive(Debug, Args)]
pub(crate) struct Prune {}

impl Prune {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
