//! The terminal: progress, notes, errors, JSON and text output. Everything a command prints passes through here.

use super::Global;
use crate::error::{Error, Result};
use crate::progress::Progress;
use serde::Serialize;
use std::io::Write;

/// What a command needs to talk to its user.
#[derive(Debug)]
pub(crate) struct Ui {
    pub(crate) global: Global,
}

impl Ui {
    pub(crate) fn new(global: &Global) -> Self {
        Self { global: global.clone() }
    }

    /// Writes the result: `json` as one document with --json, else `text`.
    pub(crate) fn print(&self, json: &impl Serialize, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let written = if self.global.json {
            serde_json::to_writer_pretty(&mut out, json).map_err(std::io::Error::from).and_then(|()| out.write_all(b"\n"))
        } else {
            out.write_all(text.as_bytes())
        };
        written.and_then(|()| out.flush()).map_err(|source| match source.kind() {
            std::io::ErrorKind::BrokenPipe => Error::BrokenPipe,
            _ => Error::Io { action: "write", path: "standard output".into(), source },
        })
    }

    /// Progress receiver for the tasks.
    pub(crate) fn progress(&self) -> &dyn Progress {
        &crate::progress::Silent
    }

    /// `error:` and `help:` on standard error.
    pub(crate) fn error(&self, error: &Error) {
        let mut err = anstream::stderr().lock();
        let _ = writeln!(err, "error: {error}");
        if let Some(help) = error.help() {
            let _ = writeln!(err, "help: {help}");
        }
    }
}
