//! Scan: which layers matter least? Greedy rounds; in each, the model is scored without each remaining layer, and the layer
//! whose removal hurts least is removed.

pub mod entry;
pub mod race;
mod rounds;
pub mod sheet;
pub mod sweep;

use crate::data::{Example, Prompt};
use crate::error::{Error, Result};
use crate::journal::{Begin, Journal};
use crate::metrics;
use crate::model::{Decoder, GenerateOptions, LayerPlan};
use crate::ops::Backend;
use crate::progress::Progress;
use crate::report::scan_json::{self, Better, Depth, Round, ScanJson};
use rounds::Rounds;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// What candidates are ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Mean negative log-likelihood of the target tokens.
    Nll,
    /// Mean Kullback-Leibler divergence from the unpruned model at the target tokens.
    Kl,
    /// Block influence (ShortGPT, arXiv 2403.03853), one pass a round.
    Bi,
    /// From the end, whatever the data says (the baseline of arXiv 2411.15558).
    Tail,
    /// Quality of generated text against references.
    Text(metrics::Metric),
}

impl Metric {
    /// As `--metric` spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nll => "nll",
            Self::Kl => "kl",
            Self::Bi => "bi",
            Self::Tail => "tail",
            Self::Text(metric) => metric.name(),
        }
    }
}

/// A checked request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Folder for journal.ndjson, scan.json, report.html and heatmap.svg.
    pub out: PathBuf,
    /// What candidates are ranked by.
    pub metric: Metric,
    /// Rounds.
    pub remove: usize,
    /// Layers that are no candidates.
    pub protect: Vec<usize>,
    /// Layers left out before the first round, in the order given.
    pub already_removed: Vec<usize>,
    /// Score generations against the unpruned model's own.
    pub self_references: bool,
    /// Drop candidates that cannot win, at this error probability a round.
    pub race: Option<f64>,
    /// Bytes that hidden states or the KV cache may take.
    pub mem_budget: u64,
    /// Go on with what the folder's journal holds.
    pub resume: bool,
    /// Overwrite what the folder holds.
    pub force: bool,
}

/// What the model is scored on.
pub enum Material<'a> {
    /// Texts with their targets, for nll, kl, bi and tail.
    Texts(&'a [Example]),
    /// Prompts, for the generation metrics.
    Prompts {
        /// The prompts, with references unless `self_references`.
        prompts: &'a [Prompt],
        /// Limits of the generation; its KV budget is the request's.
        options: GenerateOptions,
        /// Token ids to text, special tokens skipped.
        decode: &'a (dyn Fn(&[u32]) -> Result<String> + Sync),
    },
}

/// Facts that go into scan.json as they are.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The model.
    pub model: scan_json::Model,
    /// The data.
    pub data: scan_json::Data,
    /// Options beside the request's that a resumed scan must repeat (prompt template, limits), by name.
    pub options: Map<String, Value>,
}

/// Runs a scan, or what is left of it, and writes its files.
///
/// # Errors
/// [`Error::Request`] when the layers or the material do not fit the model; [`Error::Interrupted`] after Ctrl-C, with the
/// journal complete up to the last finished piece; [`Error::Io`], [`Error::Device`].
pub fn run<B: Backend>(
    decoder: &Decoder<B>,
    request: &Request,
    material: &Material<'_>,
    facts: Facts,
    progress: &dyn Progress,
) -> Result<ScanJson> {
    let start = Instant::now();
    check(decoder, request, material)?;
    std::fs::create_dir_all(&request.out).map_err(Error::io("create", &request.out))?;
    let begin = Begin {
        path: &request.out.join("journal.ndjson"),
        what: "scan",
        place: &request.out,
        resume: request.resume,
        force: request.force,
    };
    let (journal, entries) = Journal::open(begin, &header(decoder, request, &facts))?;
    let mut rounds = Rounds::new(decoder, request, material, journal, progress)?;
    let layers = decoder.config().num_hidden_layers;
    let mut order: Vec<usize> = Vec::new();
    let mut done: Vec<Round> = Vec::new();
    let mut depth: Vec<Depth> = Vec::new();
    // Of all rounds, or of none: where one round's is unknown, the sum is.
    let mut energy_joules = Some(0.0);
    rounds.references(&entries)?;
    for number in 1..=request.remove {
        let removed: Vec<usize> = request.already_removed.iter().chain(&order).copied().collect();
        let plan = LayerPlan::without(layers, &removed)?;
        let before = done.last().map(|round| round.score);
        let outcome = rounds.round(number, &plan, before, &entries)?;
        if let (1, Some(score)) = (number, outcome.round.baseline) {
            depth.push(depth_point(decoder, &plan, removed.clone(), score, outcome.base_speed));
        }
        energy_joules = energy_joules.zip(outcome.energy_joules).map(|(sum, round)| sum + round);
        order.push(outcome.round.removed);
        let removed: Vec<usize> = request.already_removed.iter().chain(&order).copied().collect();
        if !matches!(request.metric, Metric::Bi | Metric::Tail) {
            let plan = LayerPlan::without(layers, &removed)?;
            depth.push(depth_point(decoder, &plan, removed, outcome.round.score, Some(outcome.speed)));
        }
        done.push(outcome.round);
    }
    let removed: Vec<usize> = request.already_removed.iter().chain(&order).copied().collect();
    let seconds = if done.is_empty() { start.elapsed().as_secs_f64() } else { done.iter().map(|r| r.seconds).sum() };
    let scan = ScanJson {
        schema: scan_json::SCHEMA,
        prunectl: env!("CARGO_PKG_VERSION").to_owned(),
        model: facts.model,
        data: facts.data,
        metric: request.metric.name().to_owned(),
        better: if matches!(request.metric, Metric::Text(_)) { Better::Higher } else { Better::Lower },
        protected: request.protect.clone(),
        already_removed: request.already_removed.clone(),
        device: decoder.backend().name(),
        dtype: decoder.backend().compute_dtype().to_string(),
        gemm: Some(decoder.backend().gemm()).filter(|&gemm| gemm != "native").map(str::to_owned),
        baseline: done.first().and_then(|r| r.baseline),
        rounds: done,
        keep: LayerPlan::without(layers, &removed)?.kept().to_vec(),
        order,
        depth,
        seconds,
        energy_joules,
        peak_memory_bytes: decoder.backend().peak_memory().unwrap_or_else(crate::machine::peak_memory_bytes),
    };
    // scan.json comes last: where it is, the others are.
    crate::io::write(&request.out.join("report.html"), crate::report::render_html(&scan).as_bytes())?;
    crate::io::write(&request.out.join("heatmap.svg"), crate::report::render_heatmap(&scan).as_bytes())?;
    crate::io::write(&request.out.join("scan.json"), scan.to_text()?.as_bytes())?;
    Ok(scan)
}

fn check<B: Backend>(decoder: &Decoder<B>, request: &Request, material: &Material<'_>) -> Result<()> {
    let layers = decoder.config().num_hidden_layers;
    let plan = LayerPlan::without(layers, &request.already_removed)?;
    if let Some(layer) = request.protect.iter().find(|&&l| l >= layers) {
        return Err(Error::request(format!("--protect: layer {layer} does not exist: the model has layers 0-{}", layers - 1)));
    }
    let candidates = plan.kept().iter().filter(|l| !request.protect.contains(l)).count();
    if request.remove == 0 || request.remove > candidates || request.remove >= plan.kept().len() {
        return Err(Error::request(format!(
            "cannot remove {} layers: {candidates} of {} are candidates",
            request.remove,
            plan.kept().len()
        ))
        .with_help("lower --remove, or protect fewer layers with --protect"));
    }
    if let Some(delta) = request.race {
        if !(delta > 0.0 && delta < 1.0) {
            return Err(Error::request(format!("--race-delta must lie between 0 and 1, not {delta}")));
        }
        if !matches!(request.metric, Metric::Nll | Metric::Kl) {
            return Err(Error::request(format!(
                "--race compares mean losses: it works with --metric nll and kl, not {}",
                request.metric.name()
            )));
        }
    }
    match (material, request.metric) {
        (Material::Texts([]), _) => Err(Error::request("the data holds no text to score on")),
        (Material::Texts(_), Metric::Text(_))
        | (Material::Prompts { .. }, Metric::Nll | Metric::Kl | Metric::Bi | Metric::Tail) => {
            Err(Error::request(format!("--metric {} does not go with this material", request.metric.name())))
        }
        (Material::Prompts { prompts: [], .. }, _) => Err(Error::request("the data holds no record to generate from")),
        (Material::Prompts { prompts, .. }, _) if !request.self_references => {
            match prompts.iter().find(|p| p.reference.is_none()) {
                Some(prompt) => Err(Error::request(format!("record {} has no target text to compare with", prompt.record + 1))
                    .with_help("add targets, or score against the unpruned model's own texts with --references self")),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// What a resumed scan must have asked for.
fn header<B: Backend>(decoder: &Decoder<B>, request: &Request, facts: &Facts) -> Map<String, Value> {
    let mut header = Map::new();
    let mut put = |key: &str, value: Value| header.insert(key.to_owned(), value);
    put("journal", json!(1));
    put("model", json!(facts.model.fingerprint));
    put("data", json!(facts.data.sha256));
    put("segments", json!(facts.data.segments));
    put("target_tokens", json!(facts.data.target_tokens));
    put("metric", json!(request.metric.name()));
    put("protect", json!(request.protect));
    put("already_removed", json!(request.already_removed));
    put("references", json!(if request.self_references { "self" } else { "data" }));
    put("race_delta", json!(request.race));
    put("device", json!(decoder.backend().name()));
    put("dtype", json!(decoder.backend().compute_dtype().to_string()));
    put("gemm", json!(decoder.backend().gemm()));
    header.extend(facts.options.clone());
    header
}

fn depth_point<B: Backend>(decoder: &Decoder<B>, plan: &LayerPlan, removed: Vec<usize>, score: f64, speed: Option<f64>) -> Depth {
    let (parameters, bytes) = decoder.folder().size_under(plan);
    Depth {
        layers: plan.kept().len(),
        score,
        bytes: Some(bytes),
        parameters: Some(parameters),
        tokens_per_second: speed,
        removed,
    }
}
