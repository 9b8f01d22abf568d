//! A data file as it was asked for: read, checked, shuffled, limited.

use super::prompt_template::PromptTemplate;
use super::records::{self, Record, RecordKind};
use crate::error::{Error, Result};
use crate::random::shuffle;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// How a data file is to be read. `src/cli/data_args.rs` makes it from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOptions {
    /// A `.jsonl` or `.txt` file.
    pub path: PathBuf,
    /// Template of `source` records; `None` for the default one.
    pub prompt: Option<String>,
    /// Use the tokenizer's chat template where there is one.
    pub chat: bool,
    /// End a target with the end-of-sequence token (a chat template's own marker stays in any case).
    pub eos: bool,
    /// Only the first N records, taken after the shuffle.
    pub limit: Option<usize>,
    /// Seed of the shuffle; `None` keeps the file's order.
    pub shuffle: Option<u64>,
    /// Longest sequence in tokens, at least 2; chunk length of a `.txt` file.
    pub seq_len: usize,
    /// What a chat template's `strftime_now` sees: midnight of this day, or the present moment.
    pub date: Option<jiff::civil::Date>,
}

impl DataOptions {
    /// Plain options for `path`: everything in the file's order, chat template and end of sequence on.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, seq_len: usize) -> Self {
        Self { path: path.into(), prompt: None, chat: true, eos: true, limit: None, shuffle: None, seq_len, date: None }
    }
}

/// A data file, read and checked.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
    /// Its records, shuffled and limited as asked; for a `.txt` file its lines that are not blank. At least one.
    pub records: Vec<Record>,
    /// The whole text of a `.txt` file: likelihoods are measured on it and not on its lines.
    pub(super) text: Option<String>,
    pub(super) template: PromptTemplate,
    pub(super) options: DataOptions,
}

impl Dataset {
    /// Reads and checks a data file.
    ///
    /// # Errors
    /// [`Error::Request`] for options that cannot be met (unknown file type, limit 0, a template with an unknown
    /// placeholder); [`Error::Io`]; [`Error::Data`] naming the line.
    pub fn open(options: &DataOptions) -> Result<Self> {
        let path = &options.path;
        let is_text = match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("jsonl") => false,
            Some("txt") => true,
            _ => {
                return Err(Error::request(format!("--data {}: not a .jsonl or .txt file", path.display()))
                    .with_help("the name's ending says how the file is read: .jsonl for records, .txt for plain text"));
            }
        };
        if options.limit == Some(0) {
            return Err(Error::request("--limit 0 leaves no record"));
        }
        if options.seq_len < 2 {
            return Err(Error::request(format!("--seq-len {}: a sequence needs at least 2 tokens", options.seq_len)));
        }
        let template = PromptTemplate::new(options.prompt.as_deref())?;
        let bytes = crate::io::read(path)?;
        let text = records::decode_utf8(path, &bytes)?;
        let mut records = if is_text { records::from_text(text) } else { records::from_jsonl(path, text)? };
        if records.is_empty() {
            let problem = if bytes.is_empty() { "the file is empty" } else { "the file holds nothing but blank lines" };
            return Err(Error::data(path, "", problem));
        }
        options.select(&mut records);
        Ok(Self {
            path: path.clone(),
            sha256: sha256_hex(&bytes),
            records,
            text: is_text.then(|| text.to_owned()),
            template,
            options: options.clone(),
        })
    }

    /// Learns what `prunectl translate` wrote: where a record has a `hypothesis`, it takes the place of the target.
    ///
    /// # Errors
    /// [`Error::Data`] naming the line.
    pub fn learn_hypotheses(&mut self) -> Result<()> {
        records::learn_hypotheses(&self.path, &mut self.records)
    }

    /// True unless every record is already tokenised.
    #[must_use]
    pub fn needs_tokenizer(&self) -> bool {
        self.records.iter().any(|record| !matches!(record.kind, RecordKind::Tokens { .. }))
    }

    /// True for a `.txt` file, whose likelihoods are measured on the whole text.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.text.is_some()
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &DataOptions {
        &self.options
    }

    /// `FILE: line N: problem`.
    pub(super) fn error(&self, line: usize, problem: impl Into<String>) -> Error {
        Error::data(Path::new(&self.path), format!("line {line}"), problem)
    }
}

impl DataOptions {
    /// Shuffles, then keeps the first `limit`.
    pub(super) fn select<T>(&self, items: &mut Vec<T>) {
        if let Some(seed) = self.shuffle {
            shuffle(items, seed);
        }
        if let Some(limit) = self.limit {
            items.truncate(limit);
        }
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
