//! How long work tells its progress and learns that it should stop. Tasks know only this trait; bars, pipes and
//! Ctrl-C are the command line's business (`src/cli/ui.rs`).

use crate::error::{Error, Result};

/// Receiver of progress, and source of the wish to stop. All methods may be called from any thread.
pub trait Progress: Send + Sync {
    /// A phase begins: `what` in a few words (`round 1 of 4`), `total` in units of work (0 = unknown).
    fn begin(&self, what: &str, total: u64);
    /// `units` more of the phase's work are done.
    fn advance(&self, units: u64);
    /// What is worth seeing beside the phase's progress (`loss 2.31, 410 tokens/s`), in place of what was there.
    fn status(&self, text: &str);
    /// The phase is over.
    fn end(&self);
    /// A line worth reading even when it is not a phase (`layer 13 removed: nll 3.31 -> 3.37`).
    fn note(&self, line: &str);
    /// True once the user has pressed Ctrl-C.
    fn stopped(&self) -> bool;

    /// `Err(Interrupted)` once the user has pressed Ctrl-C; `kept` says what survives and how to go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    fn check(&self, kept: &str) -> Result<()> {
        if self.stopped() { Err(Error::Interrupted { kept: kept.to_owned() }) } else { Ok(()) }
    }
}

/// Says nothing and never stops: for tests and for the library's callers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, _units: u64) {}
    fn status(&self, _text: &str) {}
    fn end(&self) {}
    fn note(&self, _line: &str) {}
    fn stopped(&self) -> bool {
        false
    }
}
