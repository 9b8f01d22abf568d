//! `prunectl bench`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Measure ops against the machine's own ceiling
#[derive(Debug, Args)]
pub(crate) struct Bench {}

impl Bench {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
