//! The one error type of the crate: what went wrong, where, and what the reader can do about it.
//!
//! `Display` is the text after `error:` (it names the file, and the key, tensor or line in it), [`Error::help`] the text
//! after `help:`, [`Error::exit_code`] the process's exit code. Context is added where the facts are known, not on the
//! way up. Printing is the command line's business.

use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the reader can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: `cannot read model/config.json: No such file or directory`.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Verb that completes "cannot …": `read`, `create`, `lock`.
        action: &'static str,
        /// The file or folder the action was about.
        path: PathBuf,
        /// The system's own reason.
        source: io::Error,
    },
    /// A file holds something that is not valid: truncated, lying, misshaped, not a number.
    #[error("{}: {at}{problem}", path.display(), at = location(at))]
    Data {
        /// The file.
        path: PathBuf,
        /// Key, tensor or line within it, as `key rope_theta`, `tensor model.norm.weight`, `line 17`; empty for the whole file.
        at: String,
        /// What is wrong with it, expected and found.
        problem: String,
        /// Remedy, if there is one.
        help: Option<String>,
    },
    /// A valid file asks for something this program does not compute. Refused by name, never silently wrong.
    #[error("{}: {at}{problem}", path.display(), at = location(at))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Key within it.
        at: String,
        /// What was asked for, and what is supported.
        problem: String,
    },
    /// The request itself is wrong: an unknown layer, nothing left to keep, an output that exists.
    #[error("{problem}")]
    Request {
        /// What is wrong with it.
        problem: String,
        /// Remedy, if there is one.
        help: Option<String>,
    },
    /// An op was called with arguments that do not fit together. A bug of the caller, reported instead of computed.
    #[error("{op}: {arg} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the op, as in `src/ops`.
        op: &'static str,
        /// Name of the argument.
        arg: &'static str,
        /// What the other arguments demand.
        expected: Vec<usize>,
        /// What was passed.
        found: Vec<usize>,
    },
    /// A device, or its driver, failed or is missing.
    #[error("{problem}")]
    Device {
        /// What failed, with the driver's own words.
        problem: String,
        /// Remedy, if there is one.
        help: Option<String>,
    },
    /// A device has no memory for what was asked. Less at a time may do.
    #[error("{problem}")]
    OutOfMemory {
        /// How much was asked for and how much there is.
        problem: String,
        /// Remedy, if there is one.
        help: Option<String>,
    },
    /// Ctrl-C. What was finished is on disk.
    #[error("stopped by Ctrl-C; {kept}")]
    Interrupted {
        /// What is kept and how to go on.
        kept: String,
    },
    /// The reader of our standard output went away (`prunectl … | head`): ends quietly.
    #[error("broken pipe")]
    BrokenPipe,
}

fn location(at: &str) -> String {
    if at.is_empty() { String::new() } else { format!("{at}: ") }
}

impl Error {
    /// An [`Error::Io`] for `path`; for `map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::Data`] without a remedy. `at` may be empty.
    pub fn data(path: impl AsRef<Path>, at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().to_path_buf(), at: at.into(), problem: problem.into(), help: None }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(path: impl AsRef<Path>, at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported { path: path.as_ref().to_path_buf(), at: at.into(), problem: problem.into() }
    }

    /// An [`Error::Request`] without a remedy.
    pub fn request(problem: impl Into<String>) -> Self {
        Self::Request { problem: problem.into(), help: None }
    }

    /// An [`Error::Shape`].
    pub fn shape(op: &'static str, arg: &'static str, expected: &[usize], found: &[usize]) -> Self {
        Self::Shape { op, arg, expected: expected.to_vec(), found: found.to_vec() }
    }

    /// Attaches (or replaces) the remedy, where the variant carries one.
    #[must_use]
    pub fn with_help(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Data { help, .. } | Self::Request { help, .. } | Self::Device { help, .. } | Self::OutOfMemory { help, .. } => {
                *help = Some(text.into())
            }
            _ => {}
        }
        self
    }

    /// The remedy, printed after `help:`.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Data { help, .. } | Self::Request { help, .. } | Self::Device { help, .. } | Self::OutOfMemory { help, .. } => {
                help.clone()
            }
            Self::Unsupported { .. } => {
                Some("prunectl refuses what it does not compute rather than give wrong figures; see `prunectl inspect`".into())
            }
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => {
                    Some("free some space and run the command again; what was there before is untouched".into())
                }
                io::ErrorKind::PermissionDenied => Some("check the permissions of the path".into()),
                _ => None,
            },
            Self::Shape { .. } => Some("this is a bug in prunectl; please report it".into()),
            Self::Interrupted { .. } | Self::BrokenPipe => None,
        }
    }

    /// Exit code of the process: 1 failed, 2 the request is wrong, 130 stopped by Ctrl-C, 0 for a reader that left.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Request { .. } => 2,
            Self::Interrupted { .. } => 130,
            Self::BrokenPipe => 0,
            Self::Io { .. } | Self::Data { .. } | Self::Unsupported { .. } | Self::Shape { .. } => 1,
            Self::Device { .. } | Self::OutOfMemory { .. } => 1,
        }
    }
}
