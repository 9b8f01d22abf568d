//! The terminal: progress, notes, errors, JSON and text output. Everything a command prints passes through here:
//! results to standard output, all else to standard error.

use super::reporter::Reporter;
use super::style::{ERROR, HELP, NOTE, label};
use super::{Global, signals, style};
use crate::backend::{DeviceChoice, choose_device};
use crate::error::{Error, Result};
use crate::progress::Progress;
use serde::Serialize;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What a command needs to talk to its user.
#[derive(Debug)]
pub(crate) struct Ui {
    pub(crate) global: Global,
    reporter: Arc<Reporter>,
}

#[allow(dead_code, reason = "each command uses its part")]
impl Ui {
    /// Sets up colour, signals, logging and the panic message for the whole process.
    pub(crate) fn new(global: &Global) -> Self {
        style::choose(global.color);
        let slot: Arc<OnceLock<Arc<Reporter>>> = Arc::default();
        let seen = Arc::clone(&slot);
        let stopped = signals::install(move || {
            if let Some(reporter) = seen.get() {
                reporter.line(&format!("{} stopping at the next safe point; Ctrl-C again ends at once", label(NOTE, "note:")));
            }
        });
        let reporter = Arc::new(Reporter::new(global.quiet, stopped));
        let _ = slot.set(Arc::clone(&reporter));
        log_to(&reporter, global);
        Self { global: global.clone(), reporter }
    }

    /// Writes the result: `json` as one document with --json, else `text`, from which styles are removed where
    /// standard output shows no colour.
    pub(crate) fn print(&self, json: &impl Serialize, text: &str) -> Result<()> {
        let written = self.reporter.suspend(|| {
            if self.global.json {
                // Complete before the first byte leaves: a value that cannot be serialised must not leave half a document.
                let mut document = serde_json::to_vec_pretty(json).map_err(io::Error::from)?;
                document.push(b'\n');
                let mut out = io::stdout().lock();
                out.write_all(&document).and_then(|()| out.flush())
            } else {
                let mut out = anstream::stdout().lock();
                out.write_all(text.as_bytes()).and_then(|()| out.flush())
            }
        });
        written.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => Error::BrokenPipe,
            _ => Error::Io { action: "write", path: "standard output".into(), source },
        })
    }

    /// Progress receiver for the tasks.
    pub(crate) fn progress(&self) -> &dyn Progress {
        self.reporter.as_ref()
    }

    /// Where to compute, from --device; -v tells why.
    ///
    /// # Errors
    /// [`Error::Device`] when the device asked for cannot be used.
    pub(crate) fn device(&self) -> Result<DeviceChoice> {
        let choice = choose_device(self.global.device)?;
        tracing::info!("computing on {}: {}", choice.name, choice.reason);
        Ok(choice)
    }

    /// `error:` and `help:` on standard error. A reader that left is no error.
    pub(crate) fn error(&self, error: &Error) {
        self.reporter.end();
        if !matches!(error, Error::BrokenPipe) {
            self.reporter.line(&error_lines(&error.to_string(), error.help().as_deref()));
        }
    }
}

/// The two lines of an error, without a final line break.
fn error_lines(problem: &str, help: Option<&str>) -> String {
    match help {
        Some(help) => format!("{} {problem}\n{} {help}", label(ERROR, "error:"), label(HELP, "help:")),
        None => format!("{} {problem}", label(ERROR, "error:")),
    }
}

/// A panic is a bug whatever the input: one line that can be reported, no backtrace. The exit code is 101.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "unknown".into())
            .replace('\n', " ");
        let place = info.location().map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
        let help =
            concat!("this is a bug in prunectl ", env!("CARGO_PKG_VERSION"), "; please report it with this line and the command");
        let _ = writeln!(anstream::stderr().lock(), "{}", error_lines(&format!("internal: {message}{place}"), Some(help)));
    }));
}

/// Log lines go to standard error, around the bar: warnings, with -v what is done, with -vv in detail, with -vvv all.
fn log_to(reporter: &Arc<Reporter>, global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let colour = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    // Only the first Ui of a process logs; the library's callers may have set up their own subscriber.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(colour)
        .with_target(global.verbose > 1)
        .with_writer(LogWriter(Arc::clone(reporter)))
        .without_time()
        .try_init();
}

#[derive(Debug, Clone)]
struct LogWriter(Arc<Reporter>);

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
