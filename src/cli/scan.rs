//! `prunectl scan`.

use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;

/// Find the layers that matter least
#[derive(Debug, Args)]
pub(crate) struct Scan {}

impl Scan {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let _ = ui;
        Err(Error::request("placeholder until the command lands"))
    }
}
