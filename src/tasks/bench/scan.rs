//! One exact round of a scan of a model of random weights: what a sweep over all candidates takes on this machine.

use super::Shape;
use super::sizes::ScanSizes;
use crate::data::{Example, Target};
use crate::error::{Error, Result};
use crate::model::{Decoder, LayerPlan, ModelFolder};
use crate::ops::Backend;
use crate::progress::Progress;
use crate::random::SplitMix64;
use crate::tasks::scan::sweep::{Loss, SweepRequest, pieces, sweep, work_units};
use serde::Serialize;
use std::time::Instant;

/// What to scan.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The model.
    pub shape: Shape,
    /// Records; none: the shape's.
    pub records: Option<usize>,
    /// Tokens a record; none: the shape's.
    pub tokens: Option<usize>,
    /// Of these, the last ones that are scored; none: the shape's.
    pub scored: Option<usize>,
    /// Bytes the hidden states may take.
    pub mem_budget: u64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// As `--device` takes it.
    pub device: String,
    /// Arithmetic.
    pub dtype: String,
    /// The model.
    pub shape: Shape,
    /// Number of its weights, which are random.
    pub parameters: u64,
    /// Records.
    pub records: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Tokens of each that are scored.
    pub scored: usize,
    /// Layers that were tried without: all but the first and the last. The whole model is scored too.
    pub candidates: usize,
    /// Wall time before: until the weights are on the device and a record is scored.
    pub load_seconds: f64,
    /// Wall time of the round.
    pub seconds: f64,
    /// FLOPs of its matrix products.
    pub flops: f64,
    /// And a second, in 10^9.
    pub gflops: f64,
    /// Energy of the round, where the device tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// Most bytes of memory in use.
    pub peak_memory_bytes: u64,
    /// The GPU.
    #[cfg(feature = "cuda")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<super::cuda::Gpu>,
}

impl Request {
    fn sizes(&self) -> Result<ScanSizes> {
        let default = self.shape.scan();
        let records = self.records.unwrap_or(default.records);
        let tokens = self.tokens.unwrap_or(default.tokens);
        let scored = self.scored.unwrap_or(default.scored.min(tokens.saturating_sub(1)));
        if records == 0 || tokens < 2 || scored == 0 || scored >= tokens {
            let what = format!("cannot score {scored} tokens of {records} records of {tokens}");
            return Err(Error::request(what).with_help("a record's first token is never scored"));
        }
        Ok(ScanSizes { records, tokens, scored })
    }

    /// Longest sequence that the decoder has to run.
    ///
    /// # Errors
    /// [`Error::Request`] where there is nothing to score.
    pub fn positions(&self) -> Result<usize> {
        self.sizes().map(|sizes| sizes.tokens)
    }
}

impl Shape {
    /// The model, with random weights.
    ///
    /// # Errors
    /// None, as a test shows.
    pub fn folder(self) -> Result<ModelFolder> {
        ModelFolder::random("random", self.config(), 0)
    }
}

/// Token ids that are random; the last `scored` are targets.
fn examples(sizes: ScanSizes, vocab: usize) -> Result<Vec<Example>> {
    let mut random = SplitMix64::new(1);
    let mut token = || u32::try_from(random.below(vocab as u64)).map_err(|_| Error::request("a vocabulary beyond 2^32"));
    (0..sizes.records)
        .map(|record| {
            let ids = (0..sizes.tokens).map(|_| token()).collect::<Result<Vec<u32>>>()?;
            let targets = (sizes.tokens - sizes.scored..sizes.tokens)
                .map(|at| {
                    let row = u32::try_from(at - 1).map_err(|_| Error::request("a record beyond 2^32"))?;
                    Ok(Target { row, token: ids[at] })
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(Example { record, ids, targets })
        })
        .collect()
}

/// Scans, with the loss `nll`, first and last layer protected.
///
/// # Errors
/// [`Error::Request`]; [`Error::Interrupted`]; those of the ops.
pub fn run<B: Backend>(decoder: &Decoder<B>, request: &Request, progress: &dyn Progress) -> Result<Report> {
    let sizes = request.sizes()?;
    let config = decoder.config();
    let layers = config.num_hidden_layers;
    let plan = LayerPlan::full(layers);
    let candidates: Vec<usize> = (1..layers.saturating_sub(1)).collect();
    let examples = examples(sizes, config.vocab_size)?;
    let examples: Vec<&Example> = examples.iter().collect();
    let sweep_request = |examples, candidates| SweepRequest {
        plan: &plan,
        candidates,
        examples,
        base: true,
        loss: Loss::Nll,
        budget: request.mem_budget,
    };
    let start = Instant::now();
    sweep(decoder, &sweep_request(&examples[..1], &[]), progress)?;
    let load_seconds = start.elapsed().as_secs_f64();

    let pieces = pieces(decoder, &examples, candidates.len() + 2, request.mem_budget);
    let units = pieces.iter().map(|piece| work_units(decoder, &sweep_request(&examples[piece.clone()], &candidates)));
    progress.begin("round", units.sum());
    let energy = decoder.backend().energy_joules();
    let start = Instant::now();
    for piece in pieces {
        sweep(decoder, &sweep_request(&examples[piece], &candidates), progress)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let energy_joules = energy.zip(decoder.backend().energy_joules()).map(|(before, after)| after - before);
    progress.end();

    let layer = config.hidden_size * (config.heads().qkv_cols() + config.heads().q_cols() + 3 * config.intermediate_size);
    // The base runs every layer, a candidate those behind its own.
    let passes = layers + candidates.iter().map(|layer| layers - 1 - layer).sum::<usize>();
    let (rows, scored) = (sizes.records * sizes.tokens, sizes.records * sizes.scored);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let flops = 2.0
        * (layer as f64 * passes as f64 * rows as f64
            + (config.vocab_size * config.hidden_size) as f64 * (candidates.len() + 1) as f64 * scored as f64);
    Ok(Report {
        device: decoder.backend().name(),
        dtype: decoder.backend().compute_dtype().to_string(),
        shape: request.shape,
        parameters: decoder.folder().parameters(),
        records: sizes.records,
        tokens: sizes.tokens,
        scored: sizes.scored,
        candidates: candidates.len(),
        load_seconds,
        seconds,
        flops,
        gflops: flops / seconds / 1e9,
        energy_joules,
        peak_memory_bytes: decoder.backend().peak_memory().unwrap_or_else(crate::machine::peak_memory_bytes),
        #[cfg(feature = "cuda")]
        gpu: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DecoderConfig;
    use std::path::Path;

    #[test]
    fn every_shape_is_a_model_that_can_be_computed() {
        for shape in [Shape::Tiny, Shape::Smollm2, Shape::Aya8b] {
            let config = DecoderConfig::from_json(Path::new("bench"), &shape.config()).unwrap();
            let sizes = shape.sizes();
            assert_eq!((config.hidden_size, config.vocab_size), (sizes.hidden, sizes.vocab));
            assert_eq!(config.heads().qkv_cols(), sizes.heads.qkv_cols());
            assert!(shape.scan().tokens <= config.max_position_embeddings);
        }
    }
}
