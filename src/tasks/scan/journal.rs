//! journal.ndjson: what a scan has computed so far, appended and fsynced, so that `--resume` recomputes nothing and ends
//! with the same bytes of scan.json (but for timings).
//!
//! The first line says what is being scanned; a resumed scan must ask for the same. Each further line is one [`Entry`].
//! A line that a crash cut short is dropped. The file is locked while a scan runs.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time that a finished text waits to be made durable.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one record adds to a model's score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Share {
    /// Sum over the record's counted positions (nll, kl, bi), in f64.
    Sum(f64),
    /// Sufficient statistics of a generation metric.
    Counts(Vec<u64>),
}

/// One line after the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// Shares of some records in a round's scores.
    Shares {
        /// 1-based.
        round: usize,
        /// Removed layer of the candidate; absent for the model the round starts from.
        layer: Option<usize>,
        /// Records, by index.
        records: Vec<usize>,
        /// One a record.
        shares: Vec<Share>,
    },
    /// A text of the unpruned model, for `--references self`.
    Reference {
        /// Record, by index.
        record: usize,
        /// What it generated.
        text: String,
    },
    /// Timings of a finished round.
    Round {
        /// 1-based.
        round: usize,
        /// The layer it removed.
        removed: usize,
        /// Wall time, all runs added up.
        seconds: f64,
        /// Speed of the model the round ends with, in scored tokens a second.
        tokens_per_second: f64,
    },
}

/// The open, locked journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// Lines not yet written, and since when.
    pending: Vec<u8>,
    since: Option<Instant>,
}

impl Journal {
    /// Begins a journal in `folder` with `header`, or goes on with the one that is there.
    ///
    /// # Errors
    /// [`Error::Request`] when another scan runs in the folder, when one is there and neither `resume` nor `force` was given,
    /// or when the one to resume asked for something else; [`Error::Data`] for a journal that is not one; [`Error::Io`].
    pub fn open(folder: &Path, header: &Map<String, Value>, resume: bool, force: bool) -> Result<(Self, Vec<Entry>)> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join("journal.ndjson");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::request(format!("another scan is running in {}", folder.display()))
                    .with_help("wait for it to end, or choose another --out"));
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { action: "lock", path, source }),
        }
        let bytes = crate::io::read(&path)?;
        let mut journal = Self { file, path, pending: Vec::new(), since: None };
        if resume && !bytes.is_empty() {
            let (entries, whole) = journal.parse(&bytes, header)?;
            // Drop what a crash cut short, so that the next line starts on its own.
            journal.file.set_len(whole).map_err(Error::io("truncate", &journal.path))?;
            journal.file.seek(SeekFrom::End(0)).map_err(Error::io("write", &journal.path))?;
            if whole == 0 {
                journal.append_line(&Value::Object(header.clone()))?;
            }
            return Ok((journal, entries));
        }
        if !bytes.is_empty() && !force {
            return Err(Error::request(format!("{} already holds a scan", folder.display()))
                .with_help("pass --resume to go on with it, --force to begin anew, or choose another --out"));
        }
        file = journal.file;
        file.set_len(0).map_err(Error::io("truncate", &journal.path))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("write", &journal.path))?;
        journal.file = file;
        journal.append_line(&Value::Object(header.clone()))?;
        crate::io::sync_folder(folder)?;
        Ok((journal, Vec::new()))
    }

    /// Entries, and the number of bytes up to the end of the last whole line.
    fn parse(&self, bytes: &[u8], header: &Map<String, Value>) -> Result<(Vec<Entry>, u64)> {
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
        let mut entries = Vec::new();
        for (index, line) in bytes[..whole].split_inclusive(|&b| b == b'\n').enumerate() {
            let at = format!("line {}", index + 1);
            if index == 0 {
                let found: Map<String, Value> = serde_json::from_slice(line).map_err(|e| {
                    Error::data(&self.path, &at, format!("not a scan's journal: {e}")).with_help("pass --force to begin anew")
                })?;
                self.compare(&found, header)?;
            } else {
                entries.push(serde_json::from_slice(line).map_err(|e| {
                    Error::data(&self.path, &at, format!("damaged: {e}"))
                        .with_help("delete this line and those after it, or pass --force")
                })?);
            }
        }
        Ok((entries, whole as u64))
    }

    fn compare(&self, found: &Map<String, Value>, wanted: &Map<String, Value>) -> Result<()> {
        for key in wanted.keys().chain(found.keys()) {
            let (was, is) = (found.get(key).unwrap_or(&Value::Null), wanted.get(key).unwrap_or(&Value::Null));
            if was != is {
                return Err(Error::request(format!("{}: cannot resume: {key} was {was}, now {is}", self.path.display()))
                    .with_help("repeat the command as it was, or pass --force to begin anew"));
            }
        }
        Ok(())
    }

    /// Appends entries and makes them durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, entries: &[Entry]) -> Result<()> {
        self.put(entries)?;
        self.flush()
    }

    /// Appends entries that may wait for others, a second at most, until they are made durable together: a text at a
    /// time would cost an fsync each.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append_soon(&mut self, entries: &[Entry]) -> Result<()> {
        self.put(entries)?;
        if self.since.get_or_insert_with(Instant::now).elapsed() < PATIENCE { Ok(()) } else { self.flush() }
    }

    /// Makes durable what waits.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&mut self) -> Result<()> {
        self.since = None;
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() { Ok(()) } else { self.write(&pending) }
    }

    fn put(&mut self, entries: &[Entry]) -> Result<()> {
        for entry in entries {
            serde_json::to_writer(&mut self.pending, entry).map_err(|e| Error::Io {
                action: "write",
                path: self.path.clone(),
                source: e.into(),
            })?;
            self.pending.push(b'\n');
        }
        Ok(())
    }

    fn append_line(&mut self, value: &Value) -> Result<()> {
        self.write(format!("{value}\n").as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).and_then(|()| self.file.sync_data()).map_err(Error::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Journal, Share};
    use serde_json::{Map, Value, json};

    fn header(metric: &str) -> Map<String, Value> {
        json!({ "journal": 1, "metric": metric }).as_object().cloned().unwrap()
    }

    fn entry(record: usize) -> Entry {
        Entry::Shares { round: 1, layer: Some(3), records: vec![record], shares: vec![Share::Sum(0.1 + 0.2)] }
    }

    #[test]
    fn a_cut_line_is_dropped_and_the_rest_comes_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), &header("nll"), false, false).unwrap();
        journal.append(&[entry(0), entry(1)]).unwrap();
        drop(journal);
        let path = folder.path().join("journal.ndjson");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(br#"{"kind":"shares","round":1,"la"#);
        std::fs::write(&path, &bytes).unwrap();
        let (mut journal, entries) = Journal::open(folder.path(), &header("nll"), true, false).unwrap();
        assert_eq!(entries, [entry(0), entry(1)]);
        journal.append(&[entry(2)]).unwrap();
        drop(journal);
        let (_, entries) = Journal::open(folder.path(), &header("nll"), true, false).unwrap();
        assert_eq!(entries, [entry(0), entry(1), entry(2)]);
    }

    #[test]
    fn a_second_scan_another_request_and_an_unasked_overwrite_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(folder.path(), &header("nll"), false, false).unwrap();
        let busy = Journal::open(folder.path(), &header("nll"), true, false).unwrap_err();
        assert!(busy.to_string().contains("another scan is running"), "{busy}");
        drop(journal);
        let other = Journal::open(folder.path(), &header("kl"), true, false).unwrap_err();
        assert!(other.to_string().contains(r#"metric was "nll", now "kl""#), "{other}");
        let there = Journal::open(folder.path(), &header("nll"), false, false).unwrap_err();
        assert!(there.to_string().contains("already holds a scan"), "{there}");
        assert!(Journal::open(folder.path(), &header("kl"), false, true).is_ok());
    }
}
