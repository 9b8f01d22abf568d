//! What is trained on: the examples of one or more data files, filtered, without duplicates, each knowing where it stands.

use super::filters::{Dropped, Filters};
use crate::data::{Dataset, Example, Tokenizer};
use crate::error::{Error, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

/// One data file and what became of its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataFile {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the whole file.
    pub sha256: String,
    /// Examples that are trained on.
    pub examples: usize,
    /// Records that lost their end to --seq-len.
    pub truncated: usize,
    /// Records that the filters dropped.
    pub dropped: Dropped,
    /// Records that said the same as an earlier one.
    pub duplicates: usize,
}

/// Examples in the order of the files, with their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingSet {
    /// The examples; [`Example::record`] is the index here.
    pub examples: Vec<Example>,
    /// File and number of each: a line of a .jsonl file, a chunk of a .txt file.
    places: Vec<(usize, usize)>,
    /// The files.
    pub files: Vec<DataFile>,
}

impl TrainingSet {
    /// Filters, tokenises and joins data sets. `unique` drops examples that equal an earlier one, token by token.
    ///
    /// # Errors
    /// [`Error::Request`] for filters on a .txt file, and when nothing is left; those of [`Dataset::examples`].
    pub fn new(
        datasets: Vec<Dataset>,
        filters: &Filters,
        unique: bool,
        tokenizer: Option<&Tokenizer>,
        vocab_size: usize,
    ) -> Result<Self> {
        let mut set = Self { examples: Vec::new(), places: Vec::new(), files: Vec::new() };
        let mut seen = HashSet::new();
        for mut data in datasets {
            if data.is_text() && !filters.is_empty() {
                return Err(Error::request(format!(
                    "{}: filters look at records, and a .txt file is one text",
                    data.path.display()
                ))
                .with_help("leave the --filter options out, or write the text as records of a .jsonl file"));
            }
            let dropped = filters.apply(&mut data.records);
            let file = set.files.len();
            set.files.push(DataFile {
                path: data.path.clone(),
                sha256: data.sha256.clone(),
                examples: 0,
                truncated: 0,
                dropped,
                duplicates: 0,
            });
            if data.records.is_empty() {
                continue;
            }
            let encoded = data.examples(tokenizer, vocab_size)?;
            set.files[file].truncated = encoded.truncated;
            for mut example in encoded.examples {
                if unique && !seen.insert(identity(&example)) {
                    set.files[file].duplicates += 1;
                    continue;
                }
                let number = if data.is_text() { example.record + 1 } else { data.records[example.record].line };
                example.record = set.examples.len();
                set.places.push((file, number));
                set.examples.push(example);
                set.files[file].examples += 1;
            }
        }
        if set.examples.is_empty() {
            let dropped: usize = set.files.iter().map(|f| f.dropped.total()).sum();
            return Err(Error::request(format!("nothing is left to train on: the filters dropped all {dropped} records"))
                .with_help("loosen the --filter options"));
        }
        Ok(set)
    }

    /// Tokens of each example.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|e| e.ids.len()).collect()
    }

    /// Targets of all examples together.
    #[must_use]
    pub fn target_tokens(&self) -> usize {
        self.examples.iter().map(|e| e.targets.len()).sum()
    }

    /// Identity of all tokens and targets, in hexadecimal: a resumed training must have the same.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        self.examples.iter().for_each(|example| hash.update(identity(example)));
        hash.finalize().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// Where examples stand, for an error: the file of the first, and `lines 3, 17` (of the first file only).
    #[must_use]
    pub fn place(&self, examples: &[usize]) -> (PathBuf, String) {
        let Some(&(file, _)) = examples.first().and_then(|&e| self.places.get(e)) else { return (PathBuf::new(), String::new()) };
        let path = self.files[file].path.clone();
        let unit = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) { "chunk" } else { "line" };
        let numbers: Vec<usize> =
            examples.iter().filter_map(|&e| self.places.get(e)).filter(|p| p.0 == file).map(|p| p.1).collect();
        // A large update names its first records; the rest follow from the seed.
        let shown: Vec<String> = numbers.iter().take(16).map(usize::to_string).collect();
        let more = if numbers.len() > 16 { format!(" and {} more", numbers.len() - 16) } else { String::new() };
        let plural = if numbers.len() == 1 { "" } else { "s" };
        (path, format!("{unit}{plural} {}{more}", shown.join(", ")))
    }
}

/// Digest of an example's tokens and targets: equal for equal examples, whatever file they come from.
#[must_use]
pub fn identity(example: &Example) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((example.ids.len() as u64).to_le_bytes());
    example.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    for target in &example.targets {
        hash.update(target.row.to_le_bytes());
        hash.update(target.token.to_le_bytes());
    }
    hash.finalize().into()
}
