//! A journal of finished work, appended and fsynced line by line, so that a command with `--resume` recomputes nothing
//! that an interrupted one had finished.
//!
//! The first line says what was asked for; a resumed command must ask for the same. Each further line is one entry of the
//! caller's type. Every line ends with a digest of itself: a line that a crash cut short is dropped, one that was damaged is
//! named. The file is locked while its command runs.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time that a finished entry waits to be made durable.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between a line's own fields and its digest.
const DIGEST_KEY: &str = ",\"digest\":\"";
/// Bytes of SHA-256 that a line carries, in hexadecimal: enough against accidents.
const DIGEST_BYTES: usize = 8;
/// Bytes of a line from [`DIGEST_KEY`] on, without its newline.
const TAIL: usize = DIGEST_KEY.len() + 2 * DIGEST_BYTES + 2;

/// How to begin.
#[derive(Debug, Clone, Copy)]
pub struct Begin<'a> {
    /// The journal's file.
    pub path: &'a Path,
    /// What it is a journal of, in one word, for messages: `scan`.
    pub what: &'a str,
    /// Where the user was told to put the work, for messages.
    pub place: &'a Path,
    /// Go on with what is there.
    pub resume: bool,
    /// Begin anew whatever is there.
    pub force: bool,
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
    /// Begins a journal with `header`, or goes on with the one that is there; the entries it held come back.
    ///
    /// # Errors
    /// [`Error::Request`] when another process works on it, when one is there and neither `resume` nor `force` was given,
    /// or when the one to resume asked for something else; [`Error::Data`] for a journal that is not one; [`Error::Io`].
    pub fn open<E: DeserializeOwned>(begin: Begin<'_>, header: &Map<String, Value>) -> Result<(Self, Vec<E>)> {
        let Begin { path, what, place, resume, force } = begin;
        let folder = crate::io::parent(path);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(Error::io("open", path))?;
        let path = path.to_path_buf();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::request(format!("another {what} is running in {}", place.display()))
                    .with_help("wait for it to end, or choose another --out"));
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { action: "lock", path, source }),
        }
        let bytes = crate::io::read(&path)?;
        let mut journal = Self { file, path, pending: Vec::new(), since: None };
        if resume && !bytes.is_empty() {
            let (entries, whole) = journal.parse(&bytes, what, header)?;
            // Drop what a crash cut short, so that the next line starts on its own.
            journal.file.set_len(whole).map_err(Error::io("truncate", &journal.path))?;
            journal.file.seek(SeekFrom::End(0)).map_err(Error::io("write", &journal.path))?;
            if whole == 0 {
                journal.append(&[header])?;
            }
            return Ok((journal, entries));
        }
        if !bytes.is_empty() && !force {
            return Err(Error::request(format!("{} already holds a {what}", place.display()))
                .with_help("pass --resume to go on with it, --force to begin anew, or choose another --out"));
        }
        journal.file.set_len(0).map_err(Error::io("truncate", &journal.path))?;
        journal.file.seek(SeekFrom::Start(0)).map_err(Error::io("write", &journal.path))?;
        journal.append(&[header])?;
        crate::io::sync_folder(&folder)?;
        Ok((journal, Vec::new()))
    }

    /// Entries, and the number of bytes up to the end of the last whole line.
    fn parse<E: DeserializeOwned>(&self, bytes: &[u8], what: &str, header: &Map<String, Value>) -> Result<(Vec<E>, u64)> {
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
        let mut entries = Vec::new();
        for (index, line) in bytes[..whole].split_inclusive(|&b| b == b'\n').enumerate() {
            let at = format!("line {}", index + 1);
            let fields = fields(line);
            if index == 0 {
                let found = fields
                    .and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()))
                    .map_err(|e| self.damaged(&at, &format!("not a {what}'s journal: {e}"), "pass --force to begin anew"))?;
                self.compare(&found, header)?;
            } else {
                let entry = fields.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string())).map_err(|e| {
                    self.damaged(&at, &format!("damaged: {e}"), "delete this line and those after it, or pass --force")
                })?;
                entries.push(entry);
            }
        }
        Ok((entries, whole as u64))
    }

    fn damaged(&self, at: &str, problem: &str, help: &str) -> Error {
        Error::data(&self.path, at, problem.to_owned()).with_help(help)
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
    pub fn append<E: Serialize>(&mut self, entries: &[E]) -> Result<()> {
        self.put(entries)?;
        self.flush()
    }

    /// Appends entries that may wait for others, a second at most, until they are made durable together: a text at a
    /// time would cost an fsync each.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append_soon<E: Serialize>(&mut self, entries: &[E]) -> Result<()> {
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

    /// Removes the file: the work is done and lies elsewhere.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }

    fn put<E: Serialize>(&mut self, entries: &[E]) -> Result<()> {
        for entry in entries {
            let text = serde_json::to_string(entry).map_err(|e| Error::Io {
                action: "write",
                path: self.path.clone(),
                source: e.into(),
            })?;
            // A JSON object: the digest becomes its last field.
            let open = text.strip_suffix('}').unwrap_or(&text);
            self.pending.extend_from_slice(format!("{open}{DIGEST_KEY}{}\"}}\n", digest(open.as_bytes())).as_bytes());
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).and_then(|()| self.file.sync_data()).map_err(Error::io("write", &self.path))
    }
}

/// Digest of a line's text up to [`DIGEST_KEY`].
fn digest(open: &[u8]) -> String {
    Sha256::digest(open)[..DIGEST_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line without its digest, which must be right.
fn fields(line: &[u8]) -> Result<Vec<u8>, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (open, tail) = line.split_at(line.len().saturating_sub(TAIL));
    if tail != format!("{DIGEST_KEY}{}\"}}", digest(open)).as_bytes() {
        return Err("its digest does not match".into());
    }
    Ok([open, b"}"].concat())
}

#[cfg(test)]
mod tests {
    use super::{Begin, Journal};
    use crate::error::{Error, Result};
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};
    use serde_json::{Map, Value, json};
    use std::path::Path;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Entry {
        record: usize,
        score: f64,
    }

    fn header(metric: &str) -> Map<String, Value> {
        json!({ "journal": 1, "metric": metric }).as_object().cloned().unwrap()
    }

    fn entry(record: usize) -> Entry {
        Entry { record, score: 0.1 + 0.2 }
    }

    fn open(folder: &Path, metric: &str, resume: bool, force: bool) -> Result<(Journal, Vec<Entry>)> {
        let path = folder.join("journal.ndjson");
        Journal::open(Begin { path: &path, what: "scan", place: folder, resume, force }, &header(metric))
    }

    fn written(folder: &Path, entries: &[Entry]) -> Vec<u8> {
        let (mut journal, _) = open(folder, "nll", false, true).unwrap();
        journal.append(entries).unwrap();
        std::fs::read(folder.join("journal.ndjson")).unwrap()
    }

    #[test]
    fn a_cut_line_is_dropped_and_the_rest_comes_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = written(folder.path(), &[entry(0), entry(1)]);
        bytes.extend_from_slice(br#"{"record":2,"sc"#);
        std::fs::write(folder.path().join("journal.ndjson"), &bytes).unwrap();
        let (mut journal, entries) = open(folder.path(), "nll", true, false).unwrap();
        assert_eq!(entries, [entry(0), entry(1)]);
        journal.append(&[entry(2)]).unwrap();
        drop(journal);
        let (_, entries) = open(folder.path(), "nll", true, false).unwrap();
        assert_eq!(entries, [entry(0), entry(1), entry(2)]);
    }

    #[test]
    fn a_second_process_another_request_and_an_unasked_overwrite_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = open(folder.path(), "nll", false, false).unwrap();
        let busy = open(folder.path(), "nll", true, false).unwrap_err();
        assert!(busy.to_string().contains("another scan is running"), "{busy}");
        drop(journal);
        let other = open(folder.path(), "kl", true, false).unwrap_err();
        assert!(other.to_string().contains(r#"metric was "nll", now "kl""#), "{other}");
        let there = open(folder.path(), "nll", false, false).unwrap_err();
        assert!(there.to_string().contains("already holds a scan"), "{there}");
        assert!(open(folder.path(), "kl", false, true).is_ok());
    }

    proptest! {
        /// Whatever happens to its bytes, a journal gives back entries that were written, in their order, or an error that
        /// names the line.
        #[test]
        fn damage_is_named_or_costs_the_end(at in 0.0..1.0_f64, kind in 0..4_u8, byte: u8, length in 0..40_usize) {
            let folder = tempfile::tempdir().unwrap();
            let all: Vec<Entry> = (0..5).map(entry).collect();
            let mut bytes = written(folder.path(), &all);
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a short file")]
            let at = (at * bytes.len() as f64) as usize;
            let end = (at + length).min(bytes.len());
            match kind {
                0 => bytes.truncate(at),
                1 => bytes[at] = byte,
                2 => drop(bytes.drain(at..end)),
                _ => bytes.splice(at..at, std::iter::repeat_n(byte, length)).for_each(drop),
            }
            std::fs::write(folder.path().join("journal.ndjson"), &bytes).unwrap();
            match open(folder.path(), "nll", true, false) {
                Ok((_, entries)) => {
                    let mut rest = all.iter();
                    prop_assert!(entries.iter().all(|e| rest.any(|a| a == e)), "{entries:?}");
                }
                Err(Error::Data { at, .. }) => prop_assert!(at.starts_with("line "), "{at}"),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
