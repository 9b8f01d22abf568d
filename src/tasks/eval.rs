//! Eval: quality and speed of a model, or of what is left of it without some layers.

use super::generation::{self, Generated, TextRequest};
use super::scan::sweep::{Loss, SweepRequest, pieces, sweep, work_units};
use crate::data::{Example, Prompt};
use crate::error::{Error, Result};
use crate::metrics::{Metric, Scorer, Stats, strip};
use crate::model::{Decoder, GenerateOptions, LayerPlan};
use crate::ops::Backend;
use crate::progress::Progress;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Quality and speed of scoring texts.
#[derive(Debug, Clone, Serialize)]
pub struct TextScore {
    /// Mean negative log-likelihood of the target tokens, in nats.
    pub nll: f64,
    /// exp(nll).
    pub ppl: f64,
    /// Tokens that count.
    pub target_tokens: u64,
    /// All tokens that were run.
    pub tokens: u64,
    /// Wall time.
    pub seconds: f64,
    /// `tokens` / `seconds`.
    pub tokens_per_second: f64,
}

/// Scores texts.
///
/// # Errors
/// [`Error::Request`] for a text without a target; [`Error::Interrupted`]; those of the ops.
pub fn texts<B: Backend>(
    decoder: &Decoder<B>,
    plan: &LayerPlan,
    examples: &[Example],
    progress: &dyn Progress,
) -> Result<TextScore> {
    if let Some(empty) = examples.iter().find(|e| e.targets.is_empty()) {
        return Err(Error::request(format!("record {} has no target token", empty.record + 1)));
    }
    let start = Instant::now();
    let all: Vec<&Example> = examples.iter().collect();
    let (base, loss, budget) = (true, Loss::Nll, u64::MAX);
    let requests: Vec<SweepRequest<'_>> = pieces(decoder, &all, 1, budget)
        .into_iter()
        .map(|piece| SweepRequest { plan, candidates: &[], examples: &all[piece], base, loss, budget })
        .collect();
    progress.begin("scoring", requests.iter().map(|r| work_units(decoder, r)).sum());
    let mut sum = 0.0;
    for request in &requests {
        sum += sweep(decoder, request, progress)?.base.unwrap_or_default().iter().sum::<f64>();
    }
    progress.end();
    let seconds = start.elapsed().as_secs_f64();
    let targets: usize = examples.iter().map(|e| e.targets.len()).sum();
    let tokens: usize = examples.iter().map(|e| e.ids.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
    let (nll, speed) = (sum / targets as f64, tokens as f64 / seconds);
    if !nll.is_finite() {
        decoder.folder().check_finite()?;
        return Err(Error::Device {
            problem: format!("the model's nll is {nll}"),
            help: Some("the activations overflow: try --dtype f32, and look for damaged weights with `prunectl inspect`".into()),
        });
    }
    Ok(TextScore { nll, ppl: nll.exp(), target_tokens: targets as u64, tokens: tokens as u64, seconds, tokens_per_second: speed })
}

/// Quality and speed of generating.
#[derive(Debug, Clone, Serialize)]
pub struct GenerationScore {
    /// Corpus scores by metric name.
    #[serde(flatten)]
    pub scores: BTreeMap<&'static str, f64>,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Wall time until the weights were ready on the device.
    pub load_seconds: f64,
    /// Wall time from then on, prompts included.
    pub generation_seconds: f64,
    /// `generated_tokens` / `generation_seconds`.
    pub generated_tokens_per_second: f64,
}

/// Generates from prompts and scores the texts against their references.
///
/// # Errors
/// [`Error::Request`] for a prompt without a reference; [`Error::Interrupted`]; those of the ops.
pub fn prompts<B: Backend>(
    decoder: &Decoder<B>,
    plan: &LayerPlan,
    prompts: &[Prompt],
    metrics: &[Metric],
    options: &GenerateOptions,
    decode: &dyn Fn(&[u32]) -> Result<String>,
    progress: &dyn Progress,
) -> Result<GenerationScore> {
    if let Some(prompt) = prompts.iter().find(|p| p.reference.is_none()) {
        return Err(Error::request(format!("record {} has no target text to compare with", prompt.record + 1)));
    }
    let request = TextRequest { plan, prompts, options, stops: &[], decode, kept: "eval keeps nothing" };
    let generated = generation::texts(decoder, &request, Vec::new(), progress, &mut |_| Ok(()))?;
    let Generated { texts, load_seconds, seconds: generation_seconds } = generated;
    let mut scores = BTreeMap::new();
    for &metric in metrics {
        let scorer = Scorer::new(metric);
        let total: Stats = texts
            .iter()
            .zip(prompts)
            .map(|(text, prompt)| scorer.segment(strip(&text.hypothesis), strip(prompt.reference.as_deref().unwrap_or_default())))
            .sum();
        scores.insert(metric.name(), scorer.corpus(&total));
    }
    let generated_tokens: usize = texts.iter().map(|t| t.tokens).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
    let speed = generated_tokens as f64 / generation_seconds;
    Ok(GenerationScore {
        scores,
        generated_tokens: generated_tokens as u64,
        load_seconds,
        generation_seconds,
        generated_tokens_per_second: speed,
    })
}
