//! `prunectl translate`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Generate greedily from the records of a file
#[derive(Debug, Args)]
pub(crate) struct Translate {}

impl Translate {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
