//! The options of commands that generate text.

use crate::data::{Prompt, Tokenizer, eos_ids};
use crate::error::{Error, Result};
use crate::model::{GenerateOptions, ModelFolder};
use crate::tasks::generation::default_max_new_tokens;
use clap::Args;

/// Sequences that decode together: enough for matrices to be worth their weights' way through memory.
const MAX_SEQUENCES: usize = 256;

/// How to generate.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generating")]
pub(crate) struct GenerateArgs {
    /// Tokens a text may get [default: 3 x the mean number of source words]
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
}

impl GenerateArgs {
    /// Limits for these prompts.
    pub(crate) fn options(
        &self,
        folder: &ModelFolder,
        tokenizer: Option<&Tokenizer>,
        prompts: &[Prompt],
        kv_budget: u64,
    ) -> Result<GenerateOptions> {
        let max_new_tokens = self.max_new_tokens.unwrap_or_else(|| default_max_new_tokens(prompts));
        if max_new_tokens == 0 {
            return Err(Error::request("--max-new-tokens must be at least 1"));
        }
        Ok(GenerateOptions { max_new_tokens, eos: eos_ids(&folder.path, tokenizer)?, kv_budget, max_sequences: MAX_SEQUENCES })
    }
}

/// Tokens of the longest prompt and what may follow it.
pub(crate) fn longest(prompts: &[Prompt], options: &GenerateOptions) -> usize {
    prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0) + options.max_new_tokens
}

/// The decoding function that tasks take; without a tokenizer.json texts cannot be had.
pub(crate) fn decode<'a>(
    tokenizer: Option<&'a Tokenizer>,
    folder: &ModelFolder,
) -> Result<impl Fn(&[u32]) -> Result<String> + Sync + use<'a>> {
    let tokenizer = tokenizer.ok_or_else(|| {
        Error::data(folder.path.join("tokenizer.json"), "", "missing: generated tokens cannot be turned into text without it")
    })?;
    Ok(move |ids: &[u32]| tokenizer.decode(ids))
}
