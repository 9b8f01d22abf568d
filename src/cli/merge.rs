//! `prunectl merge`.

use super::compute::{ComputeArgs, DtypeChoice, GemmChoice, OpenedTwice};
use super::data_args::DataArgs;
use super::examples;
use super::ui::Ui;
use crate::backend::cpu::CpuBackend;
use crate::data::{Dataset, Example, Target, Tokenizer};
use crate::error::Result;
use crate::model::{Adapter, Batch, Decoder, LayerPlan, ModelFolder, Residency, Scratch};
use crate::ops::{Backend, Shaped};
use crate::tasks::merge::{Base, Comparison, Report, Request, merge, open_base};
use crate::tensor::Dtype;
use clap::{Args, ValueEnum};
use std::fmt::Write;
use std::path::PathBuf;

/// Our own words: for those who give no --data.
const PROBE: &str = "The harbour lay quiet in the early morning. A few fishermen were mending their nets on the stones, and \
the first ferry of the day waited at the pier with its lights still burning. Anna bought two tickets, one for herself and \
one for her brother, who was late as usual, and sat down on a bench from which she could see the road.";

/// Rows whose logits are held at a time.
const ROWS: usize = 64;

/// Merge an adapter into the weights
///
/// W + scale * (B A), computed in f32 and rounded once; tied embeddings stay tied. Afterwards the base with the adapter and
/// the merged model run on --data, or on a short text, and their divergence and losses are shown.
#[derive(Debug, Args)]
#[command(after_help = examples::merge())]
pub(crate) struct Merge {
    /// Folder of the base
    model: PathBuf,
    /// Folder of the adapter, as PEFT saves it
    adapter: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Dtype of the result's tensors [default: each as it is stored]
    #[arg(long, value_enum, value_name = "DTYPE")]
    dtype: Option<Stored>,
    /// Which weights the adapter is added to: the folder's own, or what NF4 keeps of them
    #[arg(long, value_enum, value_name = "KIND", default_value = "original")]
    base_dtype: BaseDtype,
    /// Magnitudes of --base-dtype nf4 in 8 bits, as train-qlora has them unless told otherwise
    #[arg(long, value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    double_quant: bool,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Text to compare the two models on, a .jsonl or .txt file [default: a paragraph of our own]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Only the first N records of --data
    #[arg(long, value_name = "N", requires = "data")]
    limit: Option<usize>,
    /// Longest sequence in tokens; chunk length of a .txt file [default: 1024, or the model's limit]
    #[arg(long, value_name = "N", requires = "data")]
    seq_len: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stored {
    Bf16,
    F16,
    F32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BaseDtype {
    /// As the folder stores them
    Original,
    /// Quantised and restored, as in training with --quant nf4
    Nf4,
}

impl Merge {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let request = Request {
            model: self.model.clone(),
            adapter: self.adapter.clone(),
            out: self.out.clone(),
            dtype: self.dtype.map(|dtype| match dtype {
                Stored::Bf16 => Dtype::Bf16,
                Stored::F16 => Dtype::F16,
                Stored::F32 => Dtype::F32,
            }),
            base: match self.base_dtype {
                BaseDtype::Original => Base::Original,
                BaseDtype::Nf4 => Base::Nf4 { double_quant: self.double_quant },
            },
            force: self.force,
        };
        let backend = CpuBackend::new(Dtype::F32, ui.global.threads)?;
        let compare = |request: &Request, merged: &ModelFolder| self.compare(ui, request, merged);
        let report = merge(&request, &backend, &compare, ui.progress())?;
        ui.print(&report, &text(&report))
    }

    fn compare(&self, ui: &Ui, request: &Request, merged: &ModelFolder) -> Result<Option<Comparison>> {
        let base = open_base(request)?;
        let examples = self.examples(&base)?;
        // Both in f32, so that what differs is the weights.
        let compute = ComputeArgs { dtype: DtypeChoice::F32, mem_budget: None, gemm: GemmChoice::Auto };
        let adapter = Adapter::open(&request.adapter, &base)?;
        let merged = ModelFolder::open(&merged.path)?;
        match compute.open_two(ui, [&base, &merged])? {
            OpenedTwice::Cpu([a, b]) => compare_on(ui, (a, base), &adapter, (b, merged), &examples),
            #[cfg(feature = "cuda")]
            OpenedTwice::Cuda([a, b]) => compare_on(ui, (*a, base), &adapter, (*b, merged), &examples),
        }
    }

    /// The records of --data; else our own text; else, without a tokenizer, tokens spread over the vocabulary.
    fn examples(&self, base: &ModelFolder) -> Result<Vec<Example>> {
        let config = &base.config;
        if let Some(data) = &self.data {
            let data = DataArgs {
                data: data.clone(),
                limit: self.limit,
                shuffle: None,
                seq_len: self.seq_len,
                prompt: None,
                no_chat: false,
                no_eos: false,
                date: None,
            };
            let dataset = Dataset::open(&data.options(config.max_position_embeddings)?)?;
            let tokenizer = Tokenizer::open_for(&dataset, &base.path)?;
            return Ok(dataset.examples(tokenizer.as_ref(), config.vocab_size)?.examples);
        }
        let mut ids = match Tokenizer::open(&base.path) {
            Ok(tokenizer) => tokenizer.encode(PROBE)?,
            Err(_) => {
                (0..64_u64).filter_map(|i| u32::try_from(i * 2_654_435_761 % (config.vocab_size as u64).max(1)).ok()).collect()
            }
        };
        ids.retain(|&id| (id as usize) < config.vocab_size);
        ids.truncate(config.max_position_embeddings);
        let targets =
            ids.iter().enumerate().skip(1).filter_map(|(i, &token)| Some(Target { row: u32::try_from(i - 1).ok()?, token }));
        Ok(vec![Example { record: 0, targets: targets.collect(), ids: ids.clone() }])
    }
}

/// Adds one text to `sums`.
fn add<B: Backend>(with_adapter: &Decoder<B>, merged: &Decoder<B>, example: &Example, sums: &mut Comparison) -> Result<()> {
    let batch = Batch::pack([example.ids.as_slice()]);
    let hidden = [with_adapter, merged].map(|decoder| {
        let plan = LayerPlan::full(decoder.config().num_hidden_layers);
        decoder.forward(&batch, &plan, &mut Scratch::new(decoder.backend())?, |_, _| Ok(()))
    });
    let [x, y] = hidden;
    let (x, y) = (x?, y?);
    for targets in example.targets.chunks(ROWS) {
        let rows: Vec<u32> = targets.iter().map(|t| t.row).collect();
        let a = with_adapter.normed_rows(&x, &rows)?;
        let width = with_adapter.head().rows();
        let (a, m) = (with_adapter.logits(&a)?, merged.logits(&merged.normed_rows(&y, &rows)?)?);
        for ((a, m), target) in a.chunks_exact(width).zip(m.chunks_exact(width)).zip(targets) {
            sums.add(a, m, target.token);
        }
    }
    Ok(())
}

fn compare_on<B: Backend>(
    ui: &Ui,
    base: (B, ModelFolder),
    adapter: &Adapter,
    merged: (B, ModelFolder),
    examples: &[Example],
) -> Result<Option<Comparison>> {
    let positions = examples.iter().map(|e| e.ids.len()).max().unwrap_or(1);
    let mut with_adapter = Decoder::new(base.0, base.1, Residency::Streamed, positions)?;
    let lora = adapter.prepare(with_adapter.backend())?;
    with_adapter.set_lora(Some(lora))?;
    let merged = Decoder::new(merged.0, merged.1, Residency::Streamed, positions)?;
    let mut sums = Comparison::empty();
    let total: usize = examples.iter().map(|e| e.targets.len()).sum();
    ui.progress().begin("comparing", total as u64);
    for example in examples {
        ui.progress().check("nothing was written")?;
        add(&with_adapter, &merged, example, &mut sums)?;
        ui.progress().advance(example.targets.len() as u64);
    }
    ui.progress().end();
    Ok((sums.target_tokens > 0).then(|| sums.mean()))
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", report.out.display());
    let _ = writeln!(out, "  merged      {} matrices", report.matrices);
    let _ = writeln!(out, "  parameters  {}", report.parameters);
    let _ = writeln!(out, "  bytes       {}", report.bytes);
    let _ = writeln!(out, "  weights     {}", report.weight_files.join(", "));
    if !report.carried.is_empty() {
        let _ = writeln!(out, "  carried     {}", report.carried.join(", "));
    }
    for left in &report.left_behind {
        let _ = writeln!(out, "  left behind {}: {}", left.name, left.reason);
    }
    if let Some(c) = &report.comparison {
        let _ = writeln!(out, "  nll         {:.4} with the adapter, {:.4} merged", c.nll_adapter, c.nll_merged);
        let _ = writeln!(out, "  divergence  {:.2e} nats a token, over {} tokens", c.kl, c.target_tokens);
    }
    out
}
