//! `prunectl shell`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct Completions {}

impl Completions {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}

/// Write man pages into a folder
#[derive(Debug, Args)]
pub(crate) struct Man {}

impl Man {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
