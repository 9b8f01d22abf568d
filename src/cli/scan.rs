//! `prunectl scan`.

use super::adapter_args::AdapterArgs;
use super::compute::{ComputeArgs, Opened, unknown_metric};
use super::data_args::{DataArgs, digest};
use super::examples;
use super::generate_args::{GenerateArgs, decode, longest};
use super::layers::{LayerList, Protect, parse_layers};
use super::ui::Ui;
use crate::data::{DataOptions, Dataset, Tokenizer};
use crate::error::Result;
use crate::metrics::{self, BleuTokenizer};
use crate::model::{Decoder, ModelFolder, Residency};
use crate::ops::Backend;
use crate::report::ScanJson;
use crate::report::scan_json;
use crate::tasks::scan::{Facts, Material, Metric, Request, run};
use clap::Args;
use serde_json::{Map, json};
use std::fmt::Write;
use std::path::PathBuf;

/// Find the layers that matter least
///
/// Greedy rounds: the model is scored without each remaining layer, and the layer whose removal hurts least is removed. One
/// sweep over the layers scores all candidates of a round.
#[derive(Debug, Args)]
#[command(after_help = examples::scan())]
pub(crate) struct Scan {
    /// Model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Folder for journal.ndjson, scan.json, report.html and heatmap.svg
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What layers are ranked by: nll, kl, bi, tail, chrf, chrf++ or bleu
    #[arg(long, value_name = "METRIC", default_value = "nll")]
    metric: String,
    /// How many layers to remove, one a round
    #[arg(long, value_name = "N", default_value_t = 1)]
    remove: usize,
    /// Layers that stay: first,last, a list, or none
    #[arg(long, value_name = "LAYERS", default_value = "first,last")]
    protect: Protect,
    /// Layers to leave out before the first round, as 13,12
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    already_removed: Option<LayerList>,
    /// What generations are compared with: the records' targets, or the unpruned model's own texts
    #[arg(long, value_name = "WHAT", default_value = "data", value_parser = ["data", "self"])]
    references: String,
    /// How BLEU cuts words: 13a, zh, char, intl or none
    #[arg(long, value_name = "NAME", default_value = "13a")]
    tokenize: BleuTokenizer,
    /// Drop candidates as soon as they cannot win (nll and kl)
    #[arg(long)]
    race: bool,
    /// Chance, a round, that a race drops the layer that would have won
    #[arg(long, value_name = "P", default_value_t = 0.001)]
    race_delta: f64,
    /// Go on with the scan in --out
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Begin anew where --out holds a scan
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl Scan {
    fn metric(&self) -> Result<Metric> {
        Ok(match self.metric.as_str() {
            "nll" => Metric::Nll,
            "kl" => Metric::Kl,
            "bi" => Metric::Bi,
            "tail" => Metric::Tail,
            name => Metric::Text(
                metrics::Metric::parse(name, self.tokenize)
                    .ok_or_else(|| unknown_metric(name, "nll, kl, bi, tail, chrf, chrf++, bleu"))?,
            ),
        })
    }

    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let metric = self.metric()?;
        let folder = ModelFolder::open(&self.model)?;
        match self.compute.open(ui, &folder)? {
            Opened::Cpu(backend) => self.run_on(ui, backend, folder, metric),
            #[cfg(feature = "cuda")]
            Opened::Cuda(backend) => self.run_on(ui, *backend, folder, metric),
        }
    }

    fn run_on<B: Backend>(&self, ui: &Ui, backend: B, folder: ModelFolder, metric: Metric) -> Result<()> {
        let adapter = self.adapter.open(&folder)?;
        let config = &folder.config;
        let data_options = self.data.options(config.max_position_embeddings)?;
        let dataset = Dataset::open(&data_options)?;
        let generates = matches!(metric, Metric::Text(_));
        let tokenizer = if generates { Some(Tokenizer::open(&self.model)?) } else { Tokenizer::open_for(&dataset, &self.model)? };
        // A race walks the layers many times with few rows: making the weights ready each time would show.
        let wanted = if generates || self.race { Residency::Resident } else { Residency::Streamed };
        let memory = self.compute.memory(&backend, &folder, wanted)?;
        let request = Request {
            out: self.out.clone(),
            metric,
            remove: self.remove,
            protect: self.protect.resolve(config.num_hidden_layers)?,
            already_removed: self.already_removed.clone().unwrap_or_default(),
            self_references: self.references == "self",
            race: self.race.then_some(self.race_delta),
            mem_budget: memory.budget,
            resume: self.resume,
            force: self.force,
        };
        let mut facts = self.facts(&folder, &dataset, &data_options)?;
        facts.options.extend(adapter.facts());
        let scan = if generates {
            let prompts = dataset.prompts(tokenizer.as_ref(), config.vocab_size)?;
            let options = self.generate.options(&folder, tokenizer.as_ref(), &prompts.prompts, request.mem_budget)?;
            facts.data.segments = prompts.prompts.len() as u64;
            facts.data.truncated = prompts.truncated as u64;
            facts.options.insert("max_new_tokens".into(), json!(options.max_new_tokens));
            facts.options.insert("eos".into(), json!(options.eos));
            facts.options.insert("tokens".into(), json!(digest(prompts.prompts.iter().map(|p| p.ids.as_slice()))));
            let decoder = Decoder::new(backend, folder, memory.residency, longest(&prompts.prompts, &options))?;
            let decoder = adapter.over(decoder)?;
            let decode = decode(tokenizer.as_ref(), decoder.folder())?;
            let material = Material::Prompts { prompts: &prompts.prompts, options, decode: &decode };
            run(&decoder, &request, &material, facts, ui.progress())?
        } else {
            let examples = dataset.examples(tokenizer.as_ref(), config.vocab_size)?;
            facts.data.segments = examples.examples.len() as u64;
            facts.data.target_tokens = Some(examples.target_tokens as u64);
            facts.data.truncated = examples.truncated as u64;
            facts.options.insert("tokens".into(), json!(digest(examples.examples.iter().map(|e| e.ids.as_slice()))));
            if examples.truncated > 0 {
                ui.progress().note(&format!("{} records are longer than --seq-len and lost their end", examples.truncated));
            }
            let positions = examples.examples.iter().map(|e| e.ids.len()).max().unwrap_or(1);
            let decoder = adapter.over(Decoder::new(backend, folder, memory.residency, positions)?)?;
            run(&decoder, &request, &Material::Texts(&examples.examples), facts, ui.progress())?
        };
        ui.print(&scan, &self.text(&scan))
    }

    fn facts(&self, folder: &ModelFolder, dataset: &Dataset, options: &DataOptions) -> Result<Facts> {
        let architecture =
            folder.raw_config.get("architectures").and_then(|a| a.get(0)).and_then(|a| a.as_str()).unwrap_or_default();
        let mut kept = Map::new();
        kept.insert("prompt".into(), json!(options.prompt));
        kept.insert("chat".into(), json!(options.chat));
        kept.insert("eos_after_target".into(), json!(options.eos));
        kept.insert("limit".into(), json!(options.limit));
        kept.insert("shuffle".into(), json!(options.shuffle));
        kept.insert("seq_len".into(), json!(options.seq_len));
        Ok(Facts {
            model: scan_json::Model {
                path: self.model.display().to_string(),
                architecture: architecture.to_owned(),
                num_hidden_layers: folder.config.num_hidden_layers,
                fingerprint: folder.fingerprint(),
            },
            data: scan_json::Data {
                path: dataset.path.display().to_string(),
                sha256: dataset.sha256.clone(),
                segments: 0,
                target_tokens: None,
                truncated: 0,
            },
            options: kept,
        })
    }

    fn text(&self, scan: &ScanJson) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "round  removed  {:>10}  margin to the next (95 %)", scan.metric);
        if let Some(baseline) = scan.baseline {
            let _ = writeln!(text, "    -        -  {baseline:>10.4}");
        }
        for round in &scan.rounds {
            let margin = round.margin.as_ref().map_or(String::new(), |m| {
                let tie = if m.is_near_tie() { ", a near-tie" } else { "" };
                format!("{:.4} to layer {} [{:.4}, {:.4}]{tie}", m.difference, m.runner_up, m.interval[0], m.interval[1])
            });
            let _ = writeln!(text, "{:>5}  {:>7}  {:>10.4}  {margin}", round.round, round.removed, round.score);
        }
        let (out, model) = (self.out.display(), self.model.display());
        let _ = writeln!(text, "{:.1} s; report: {}", scan.seconds, self.out.join("report.html").display());
        let _ = writeln!(text, "next: prunectl prune {model} --scan {out} --out PRUNED");
        text
    }
}
