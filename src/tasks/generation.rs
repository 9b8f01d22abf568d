//! Texts from prompts, in the order of the prompts: what `translate` writes and `eval` scores.

use crate::data::Prompt;
use crate::error::{Error, Result};
use crate::model::{Decoder, GenerateOptions, GenerateRequest, LayerPlan, generate};
use crate::ops::Backend;
use crate::progress::Progress;

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The text, stripped of surrounding white space, special tokens left out.
    pub hypothesis: String,
    /// Tokens generated.
    pub tokens: usize,
}

/// --max-new-tokens where it is not given: 3 x the mean number of source words (rounded up), as in the papers; at least 1.
#[must_use]
pub fn default_max_new_tokens(prompts: &[Prompt]) -> usize {
    let words: usize = prompts.iter().map(|p| p.source_words).sum();
    (3 * words).div_ceil(prompts.len().max(1)).max(1)
}

/// Generates greedily from every prompt. A text ends before the first occurrence of any of `stops`.
///
/// # Errors
/// [`Error::Request`] without a prompt; [`Error::Interrupted`]; those of the ops and of `decode`.
pub fn texts<B: Backend>(
    decoder: &Decoder<B>,
    plan: &LayerPlan,
    prompts: &[Prompt],
    options: &GenerateOptions,
    stops: &[String],
    decode: &dyn Fn(&[u32]) -> Result<String>,
    progress: &dyn Progress,
) -> Result<Vec<Text>> {
    if prompts.is_empty() {
        return Err(Error::request("the data holds no record to generate from"));
    }
    let ids: Vec<&[u32]> = prompts.iter().map(|p| p.ids.as_slice()).collect();
    let stop =
        |tokens: &[u32]| !stops.is_empty() && decode(tokens).is_ok_and(|text| stops.iter().any(|s| text.contains(s.as_str())));
    let request = GenerateRequest { plan, variants: &[None], prompts: &ids, options, stop: &stop };
    let mut texts: Vec<Option<Text>> = vec![None; prompts.len()];
    progress.begin("generating", prompts.len() as u64);
    generate(decoder, &request, progress, &mut |generation| {
        let text = decode(&generation.tokens)?;
        let end = stops.iter().filter_map(|s| text.find(s.as_str())).min().unwrap_or(text.len());
        let hypothesis = crate::metrics::strip(&text[..end]).to_owned();
        texts[generation.prompt] = Some(Text { hypothesis, tokens: generation.tokens.len() });
        Ok(())
    })?;
    progress.end();
    Ok(texts.into_iter().flatten().collect())
}
