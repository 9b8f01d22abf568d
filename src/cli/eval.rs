//! `prunectl eval`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Measure quality and speed
#[derive(Debug, Args)]
pub(crate) struct Eval {}

impl Eval {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
