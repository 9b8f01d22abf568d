//! Texts from prompts, in the order of the prompts: what `translate` writes and `eval` scores.

use crate::data::Prompt;
use crate::error::{Error, Result};
use crate::model::{Decoder, GenerateOptions, GenerateRequest, LayerPlan, generate};
use crate::ops::Backend;
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Index into the prompts.
    pub prompt: usize,
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

/// What to generate from, and how texts come out.
pub struct TextRequest<'a> {
    /// Layers to run.
    pub plan: &'a LayerPlan,
    /// One a record.
    pub prompts: &'a [Prompt],
    /// Limits.
    pub options: &'a GenerateOptions,
    /// A text ends before the first occurrence of any of these.
    pub stops: &'a [String],
    /// Token ids to text, special tokens skipped.
    pub decode: &'a dyn Fn(&[u32]) -> Result<String>,
    /// What an interruption leaves, in words for the user.
    pub kept: &'a str,
}

/// What came out, and how long it took.
#[derive(Debug, Clone)]
pub struct Generated {
    /// In the order of the prompts.
    pub texts: Vec<Text>,
    /// Wall time until the weights were ready on the device.
    pub load_seconds: f64,
    /// Wall time from then on, prompts included.
    pub seconds: f64,
}

/// Generates greedily from every prompt. Prompts that `finished` has texts of are not run again; `keep` gets each new text
/// as it ends.
///
/// # Errors
/// [`Error::Request`] without a prompt; [`Error::Data`] for a weight that is not finite; [`Error::Interrupted`]; those of the
/// ops, of `decode` and of `keep`.
pub fn texts<B: Backend>(
    decoder: &Decoder<B>,
    request: &TextRequest<'_>,
    finished: Vec<Text>,
    progress: &dyn Progress,
    keep: &mut dyn FnMut(&Text) -> Result<()>,
) -> Result<Generated> {
    let TextRequest { plan, prompts, options, stops, decode, kept } = *request;
    if prompts.is_empty() {
        return Err(Error::request("the data holds no record to generate from"));
    }
    let mut texts: Vec<Option<Text>> = vec![None; prompts.len()];
    for text in finished {
        if let Some(slot) = texts.get_mut(text.prompt) {
            *slot = Some(text);
        }
    }
    let start = Instant::now();
    let missing: Vec<usize> = (0..prompts.len()).filter(|&p| texts[p].is_none()).collect();
    let ids: Vec<&[u32]> = missing.iter().map(|&p| prompts[p].ids.as_slice()).collect();
    let stop =
        |tokens: &[u32]| !stops.is_empty() && decode(tokens).is_ok_and(|text| stops.iter().any(|s| text.contains(s.as_str())));
    let request = GenerateRequest { plan, variants: &[None], prompts: &ids, options, stop: &stop, kept };
    if !missing.is_empty() {
        decoder.make_ready(plan.kept(), progress, kept)?;
    }
    let load_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    progress.begin("generating", missing.len() as u64);
    generate(decoder, &request, progress, &mut |generation| {
        let text = decode(&generation.tokens)?;
        let end = stops.iter().filter_map(|s| text.find(s.as_str())).min().unwrap_or(text.len());
        let hypothesis = crate::metrics::strip(&text[..end]).to_owned();
        let prompt = missing[generation.prompt];
        let text = Text { prompt, hypothesis, tokens: generation.tokens.len() };
        keep(&text)?;
        texts[prompt] = Some(text);
        Ok(())
    })?;
    progress.end();
    let texts = texts.into_iter().flatten().collect();
    Ok(Generated { texts, load_seconds, seconds: start.elapsed().as_secs_f64() })
}
