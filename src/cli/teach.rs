//! `prunectl teach`.

use super::compute::{ComputeArgs, Opened, plan};
use super::data_args::DataArgs;
use super::examples;
use super::layers::{LayerList, parse_layers};
use super::ui::Ui;
use crate::data::{Dataset, Tokenizer};
use crate::error::Result;
use crate::model::{Decoder, ModelFolder, Residency};
use crate::ops::Backend;
use crate::tasks::teach::teach;
use crate::tasks::train::data::TrainingSet;
use crate::tasks::train::filters::Filters;
use crate::tasks::train::top_k::{About, vocabulary};
use clap::Args;
use std::path::PathBuf;

/// Write a teacher's most likely tokens for training data
///
/// The file serves `prunectl train-qlora --teacher FILE`, which then needs no teacher in memory. It finds records by their
/// tokens, so their order and batches are free; the data options must be those of the training.
#[derive(Debug, Args)]
#[command(after_help = examples::teach())]
pub(crate) struct Teach {
    /// Model folder of the teacher
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// More training data, as of train-qlora
    #[arg(long, value_name = "FILE")]
    add_data: Vec<PathBuf>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Tokens kept a target
    #[arg(long, value_name = "K", default_value_t = 64)]
    top_k: usize,
    /// Layers of the teacher to leave out, as 13,12 or 20-23
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    skip: Option<LayerList>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl Teach {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let folder = ModelFolder::open(&self.model)?;
        match self.compute.open(ui, &folder)? {
            Opened::Cpu(backend) => self.run_on(ui, backend, folder),
            #[cfg(feature = "cuda")]
            Opened::Cuda(backend) => self.run_on(ui, *backend, folder),
        }
    }

    fn run_on<B: Backend>(&self, ui: &Ui, backend: B, folder: ModelFolder) -> Result<()> {
        let plan = plan(&folder, self.skip.as_deref())?;
        let datasets = self.data.open_all(&self.add_data, folder.config.max_position_embeddings)?;
        let needs = datasets.iter().find(|d| d.needs_tokenizer()).or(datasets.first());
        let tokenizer = needs.map_or(Ok(None), |data: &Dataset| Tokenizer::open_for(data, &self.model))?;
        let vocab_size = folder.config.vocab_size;
        let set = TrainingSet::new(datasets, &Filters::default(), true, tokenizer.as_ref(), vocab_size)?;
        let about =
            About { teacher: folder.fingerprint(), vocab_size, vocabulary: vocabulary(tokenizer.as_ref()), k: self.top_k };
        let longest = set.lengths().into_iter().max().unwrap_or(1);
        let residency = self.compute.memory(&backend, &folder, Residency::Streamed)?.residency;
        let decoder = Decoder::new(backend, folder, residency, longest)?;
        let report = teach(&decoder, &plan, &set.examples, &about, &self.out, self.force, ui.progress())?;
        let text = format!(
            "{}\n  examples  {} with {} targets\n  kept      {} tokens a target, {:.2} % of the teacher's probability\n  bytes     {}\n  took      {:.1} s\n",
            report.out.display(),
            report.examples,
            report.target_tokens,
            report.top_k,
            100.0 * report.kept_probability,
            report.bytes,
            report.seconds
        );
        ui.print(&report, &text)
    }
}
