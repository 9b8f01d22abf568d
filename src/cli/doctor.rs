//! `prunectl doctor`.

use super::style::{ERROR, HELP, NOTE, OK, WARN, label};
use super::ui::Ui;
use crate::error::Result;
use crate::tasks::doctor::{self, Report, Status};
use clap::Args;
use std::fmt::Write;

/// Show what this machine and this build offer, and what will be used
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

impl Doctor {
    /// The report comes in any case; a device that was asked for and cannot be used makes it a failure.
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let (report, refused) = doctor::run(ui.global.device, ui.global.threads);
        ui.print(&report, &text(&report))?;
        refused.map_or(Ok(()), Err)
    }
}

fn text(report: &Report) -> String {
    let mut text = format!("prunectl {}\n", report.prunectl);
    for finding in &report.findings {
        let (style, word) = match finding.status {
            Status::Ok => (OK, "ok"),
            Status::Info => (NOTE, "info"),
            Status::Warn => (WARN, "warn"),
            Status::Fail => (ERROR, "fail"),
        };
        let _ = writeln!(text, "{}  {:<8} {}", label(style, &format!("{word:<4}")), finding.check, finding.message);
        if let Some(help) = &finding.help {
            let _ = writeln!(text, "{:<14} {} {help}", "", label(HELP, "help:"));
        }
    }
    text
}
