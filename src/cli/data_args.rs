//! The data options that scan, eval and translate share.

use crate::data::{DataOptions, Dataset};
use crate::error::{Error, Result};
use clap::Args;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Longest sequence where neither the user nor the model says less.
const DEFAULT_SEQ_LEN: usize = 1024;

/// What to read and how to turn it into tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// A .jsonl or .txt file
    ///
    /// A record of a .jsonl file holds `text`, `source` and `target` (with `source_lang` and `target_lang`), `prompt` and
    /// `completion`, `messages`, or `input_ids` and `labels`.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Only the first N records
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Shuffle the records by this seed before --limit
    #[arg(long, value_name = "SEED")]
    pub shuffle: Option<u64>,
    /// Longest sequence in tokens; chunk length of a .txt file [default: 1024, or the model's limit]
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Template of `source` records, with {source}, {source_lang}, {target_lang}
    ///
    /// Default: "Translate the following text from {source_lang} to {target_lang}:\n{source}\n"; a language that a record does
    /// not name is left out of it.
    #[arg(long, value_name = "TEMPLATE")]
    pub prompt: Option<String>,
    /// Leave the tokenizer's chat template out
    #[arg(long)]
    pub no_chat: bool,
    /// No end-of-sequence token after a target (a chat template's end-of-turn marker stays)
    #[arg(long)]
    pub no_eos: bool,
    /// Day that a chat template sees when it writes the date into prompts [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<jiff::civil::Date>,
}

impl DataArgs {
    /// The options for a model whose longest sequence is `max_positions`.
    ///
    /// # Errors
    /// [`Error::Request`] when --seq-len is above that, or below 2.
    pub fn options(&self, max_positions: usize) -> Result<DataOptions> {
        let seq_len = match self.seq_len {
            None => DEFAULT_SEQ_LEN.min(max_positions),
            Some(asked) if asked > max_positions => {
                return Err(Error::request(format!(
                    "--seq-len {asked} is above the model's max_position_embeddings {max_positions}"
                )));
            }
            Some(asked) => asked,
        };
        Ok(DataOptions {
            path: self.data.clone(),
            prompt: self.prompt.clone(),
            chat: !self.no_chat,
            eos: !self.no_eos,
            limit: self.limit,
            shuffle: self.shuffle,
            seq_len,
            date: self.date,
        })
    }

    /// What is trained on: the data, then each of `more` read the same way but whole (--limit and --shuffle are for --data
    /// alone). Hypotheses that translate wrote are learnt.
    ///
    /// # Errors
    /// As [`DataArgs::options`] and [`Dataset::open`].
    pub(crate) fn open_all(&self, more: &[PathBuf], max_positions: usize) -> Result<Vec<Dataset>> {
        let options = self.options(max_positions)?;
        let also = |path: &Path| DataOptions { path: path.to_path_buf(), limit: None, shuffle: None, ..options.clone() };
        let all = std::iter::once(options.clone()).chain(more.iter().map(|path| also(path)));
        let open = |options| {
            let mut data = Dataset::open(&options)?;
            data.learn_hypotheses().map(|()| data)
        };
        all.map(open).collect()
    }
}

/// Identity of token sequences: a resumed command must have the same, though a chat template may write today's date into them.
pub(crate) fn digest<'a>(sequences: impl Iterator<Item = &'a [u32]>) -> String {
    let mut hash = Sha256::new();
    for ids in sequences {
        hash.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
