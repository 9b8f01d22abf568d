//! `metrics.ndjson`: a line an update, a line an evaluation. Appended as they happen; a resumed training drops the lines
//! behind the state it goes on from and writes them again.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the file.
pub const METRICS: &str = "metrics.ndjson";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// An evaluation.
    Evaluation {
        /// After this many updates.
        step: u64,
        /// Mean negative log-likelihood of the evaluation's targets, in nats.
        eval_nll: f64,
        /// Wall time of the evaluation.
        seconds: f64,
    },
    /// An update.
    Update(Update),
}

/// What an update reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Its number, from 1.
    pub step: u64,
    /// Epoch it belongs to, from 0, and how far it has come: 1.5 is the middle of the second.
    pub epoch: f64,
    /// What is minimised, mean over its target tokens, before the update.
    pub loss: f64,
    /// The part that comes from the data's tokens, where a teacher adds another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll: Option<f64>,
    /// Divergence from the teacher, mean over the target tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the whole gradient, before clipping.
    pub grad_norm: f64,
    /// Tokens run.
    pub tokens: u64,
    /// Of these, targets.
    pub targets: u64,
    /// Wall time.
    pub seconds: f64,
}

impl Line {
    fn step(&self) -> u64 {
        match self {
            Self::Evaluation { step, .. } => *step,
            Self::Update(update) => update.step,
        }
    }
}

/// The open file, locked against a second training in the same folder.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Opens and locks the file in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// [`Error::Request`] while another training writes there; [`Error::Io`].
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(METRICS);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path }),
            Err(TryLockError::WouldBlock) => Err(Error::request(format!("another training is running in {}", folder.display()))
                .with_help("wait for it to end, or choose another --out")),
            Err(TryLockError::Error(source)) => Err(Error::Io { action: "lock", path, source }),
        }
    }

    /// True if the file holds anything.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_begun(&self) -> Result<bool> {
        Ok(self.file.metadata().map_err(Error::io("read", &self.path))?.len() > 0)
    }

    /// Keeps the whole lines up to update `step` (none without it), drops the rest, and gives those kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rewind(&mut self, step: Option<u64>) -> Result<Vec<Line>> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io("read", &self.path))?;
        self.file.read_to_string(&mut text).map_err(Error::io("read", &self.path))?;
        let mut kept = Vec::new();
        let mut length = 0;
        for piece in text.split_inclusive('\n') {
            let line: Line = match serde_json::from_str(piece) {
                Ok(line) if piece.ends_with('\n') => line,
                _ => break,
            };
            if step.is_none_or(|step| line.step() > step) {
                break;
            }
            kept.push(line);
            length += piece.len();
        }
        self.file.set_len(length as u64).map_err(Error::io("truncate", &self.path))?;
        self.file.seek(SeekFrom::End(0)).map_err(Error::io("write", &self.path))?;
        Ok(kept)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, line: &Line) -> Result<()> {
        let mut bytes =
            serde_json::to_vec(line).map_err(|e| Error::Io { action: "write", path: self.path.clone(), source: e.into() })?;
        bytes.push(b'\n');
        self.file.write_all(&bytes).map_err(Error::io("write", &self.path))
    }

    /// Makes durable what was appended.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(step: u64) -> Line {
        Line::Update(Update {
            step,
            epoch: 0.5,
            loss: 0.1 + 0.2,
            nll: None,
            kl: None,
            lr: 1e-5,
            grad_norm: 1.5,
            tokens: 10,
            targets: 9,
            seconds: 0.1,
        })
    }

    #[test]
    fn a_resumed_training_keeps_what_its_state_knows() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path()).unwrap();
        assert!(Metrics::open(folder.path()).unwrap_err().to_string().contains("another training is running"));
        let evaluation = Line::Evaluation { step: 2, eval_nll: 3.25, seconds: 1.0 };
        for line in [update(1), update(2), evaluation.clone(), update(3)] {
            metrics.append(&line).unwrap();
        }
        metrics.file.write_all(b"{\"step\":4,\"lo").unwrap();
        drop(metrics);
        let mut metrics = Metrics::open(folder.path()).unwrap();
        assert_eq!(metrics.rewind(Some(2)).unwrap(), [update(1), update(2), evaluation]);
        metrics.append(&update(3)).unwrap();
        let text = std::fs::read_to_string(folder.path().join(METRICS)).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.starts_with(r#"{"step":1,"epoch":0.5,"loss":0.30000000000000004,"lr":0.00001,"grad_norm":1.5"#), "{text}");
    }
}
