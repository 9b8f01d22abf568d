//! `prunectl eval`.

use super::adapter_args::AdapterArgs;
use super::compute::{ComputeArgs, Opened, plan, unknown_metric};
use super::data_args::DataArgs;
use super::examples;
use super::generate_args::{GenerateArgs, decode, longest};
use super::layers::{LayerList, parse_layers};
use super::ui::Ui;
use crate::data::{Dataset, Tokenizer};
use crate::error::Result;
use crate::metrics::{BleuTokenizer, Metric};
use crate::model::{Decoder, LayerPlan, ModelFolder, Residency};
use crate::ops::Backend;
use crate::tasks::eval::{GenerationScore, TextScore, prompts, texts};
use clap::Args;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// Measure quality and speed
#[derive(Debug, Args)]
#[command(after_help = examples::eval())]
pub(crate) struct Eval {
    /// Model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Layers to leave out, as 13,12 or 20-23
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    skip: Option<LayerList>,
    /// What to measure: nll, ppl, chrf, chrf++, bleu
    #[arg(long, value_name = "LIST", default_value = "nll,ppl", value_delimiter = ',')]
    metrics: Vec<String>,
    /// How BLEU cuts words: 13a, zh, char, intl or none
    #[arg(long, value_name = "NAME", default_value = "13a")]
    tokenize: BleuTokenizer,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Report {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<String>,
    layers: usize,
    skipped: Vec<usize>,
    data: String,
    data_sha256: String,
    segments: usize,
    truncated: usize,
    #[serde(flatten)]
    texts: Option<TextScore>,
    #[serde(flatten)]
    generation: Option<GenerationScore>,
    parameters: u64,
    bytes: u64,
    device: String,
    dtype: String,
    gemm: &'static str,
    peak_memory_bytes: u64,
}

impl Eval {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let known = "nll, ppl, chrf, chrf++, bleu";
        let mut wants_texts = false;
        let mut metrics = Vec::new();
        for name in &self.metrics {
            match (name.as_str(), Metric::parse(name, self.tokenize)) {
                ("nll" | "ppl", _) => wants_texts = true,
                (_, Some(metric)) => metrics.push(metric),
                _ => return Err(unknown_metric(name, known)),
            }
        }
        let folder = ModelFolder::open(&self.model)?;
        match self.compute.open(ui, &folder)? {
            Opened::Cpu(backend) => self.run_on(ui, backend, folder, wants_texts, &metrics),
            #[cfg(feature = "cuda")]
            Opened::Cuda(backend) => self.run_on(ui, *backend, folder, wants_texts, &metrics),
        }
    }

    fn run_on<B: Backend>(&self, ui: &Ui, backend: B, folder: ModelFolder, wants_texts: bool, metrics: &[Metric]) -> Result<()> {
        let plan = plan(&folder, self.skip.as_deref())?;
        let adapter = self.adapter.open(&folder)?;
        let dataset = Dataset::open(&self.data.options(folder.config.max_position_embeddings)?)?;
        let tokenizer = Tokenizer::open_for(&dataset, &self.model)?;
        let vocab_size = folder.config.vocab_size;
        let mut truncated = 0;
        let examples = if wants_texts {
            let examples = dataset.examples(tokenizer.as_ref(), vocab_size)?;
            truncated = examples.truncated;
            Some(examples.examples)
        } else {
            None
        };
        let wanted = if metrics.is_empty() { Residency::Streamed } else { Residency::Resident };
        let memory = self.compute.memory(&backend, &folder, wanted)?;
        let generation = if metrics.is_empty() {
            None
        } else {
            let prompts = dataset.prompts(tokenizer.as_ref(), vocab_size)?;
            truncated = truncated.max(prompts.truncated);
            let options = self.generate.options(&folder, tokenizer.as_ref(), &prompts.prompts, memory.budget)?;
            Some((prompts.prompts, options))
        };
        if truncated > 0 {
            ui.progress().note(&format!("{truncated} records are longer than --seq-len and lost their end"));
        }
        let positions = examples.iter().flatten().map(|e| e.ids.len()).chain(generation.iter().map(|(p, o)| longest(p, o))).max();
        let decoder = adapter.over(Decoder::new(backend, folder, memory.residency, positions.unwrap_or(1))?)?;
        let mut report = self.report(&decoder, &plan, &dataset, truncated);
        report.adapter = adapter.path();
        report.segments = examples.as_ref().map_or(dataset.records.len(), Vec::len);
        if let Some(examples) = &examples {
            report.texts = Some(texts(&decoder, &plan, examples, ui.progress())?);
        }
        if let Some((given, options)) = &generation {
            let decode = decode(tokenizer.as_ref(), decoder.folder())?;
            report.generation = Some(prompts(&decoder, &plan, given, metrics, options, &decode, ui.progress())?);
        }
        report.peak_memory_bytes = decoder.backend().peak_memory().unwrap_or_else(crate::machine::peak_memory_bytes);
        ui.print(&report, &report.text())
    }

    fn report<B: Backend>(&self, decoder: &Decoder<B>, plan: &LayerPlan, dataset: &Dataset, truncated: usize) -> Report {
        let folder = decoder.folder();
        let (parameters, bytes) = folder.size_under(plan);
        Report {
            model: self.model.display().to_string(),
            adapter: None,
            layers: plan.kept().len(),
            data: dataset.path.display().to_string(),
            data_sha256: dataset.sha256.clone(),
            segments: 0,
            truncated,
            texts: None,
            generation: None,
            parameters,
            bytes,
            device: decoder.backend().name(),
            dtype: decoder.backend().compute_dtype().to_string(),
            gemm: decoder.backend().gemm(),
            peak_memory_bytes: 0,
            skipped: plan.removed(),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12} {value}");
        };
        line("model", self.model.clone());
        if let Some(adapter) = &self.adapter {
            line("adapter", adapter.clone());
        }
        let skipped: Vec<String> = self.skipped.iter().map(usize::to_string).collect();
        let without = if skipped.is_empty() { String::new() } else { format!(" (without {})", skipped.join(", ")) };
        line("layers", format!("{}{without}", self.layers));
        line("weights", format!("{} in {} bytes", self.parameters, self.bytes));
        line("segments", self.segments.to_string());
        if let Some(score) = &self.texts {
            line("nll", format!("{:.4}", score.nll));
            line("ppl", format!("{:.3}", score.ppl));
            line("targets", format!("{} tokens", score.target_tokens));
            line("speed", format!("{:.0} tokens/s ({} in {:.1} s)", score.tokens_per_second, score.tokens, score.seconds));
        }
        if let Some(score) = &self.generation {
            for (name, value) in &score.scores {
                line(name, format!("{value:.2}"));
            }
            line(
                "generation",
                format!(
                    "{:.0} tokens/s ({} in {:.1} s)",
                    score.generated_tokens_per_second, score.generated_tokens, score.generation_seconds
                ),
            );
        }
        let gemm = if self.gemm == "native" { String::new() } else { format!(", {}", self.gemm) };
        line("device", format!("{}, {}{gemm}", self.device, self.dtype));
        text
    }
}
