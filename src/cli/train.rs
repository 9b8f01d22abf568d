//! `prunectl train-qlora`.

use super::compute::{ComputeArgs, Opened, plan};
use super::data_args::DataArgs;
use super::examples;
use super::layers::{LayerList, parse_layers};
use super::train_args::{DistilArgs, FilterArgs, LoraArgs, OptimiserArgs, TrainLayers};
use super::ui::Ui;
use crate::data::{Dataset, Tokenizer};
use crate::error::{Error, Result};
use crate::model::train::{Differentiable, Trainable};
use crate::model::{Adapter, Decoder, LayerPlan, ModelFolder, Residency};
use crate::ops::{Adamw, Shaped, TrainingBackend};
use crate::report::render_training;
use crate::tasks::train::data::TrainingSet;
use crate::tasks::train::output::{AdapterOutput, ModelOutput};
use crate::tasks::train::top_k::{TopKFile, same_vocabulary, vocabulary};
use crate::tasks::train::{Lesson, Material, Report, Request, Teacher, run};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::path::PathBuf;

/// What frozen weights are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quant {
    /// Four bits a weight, as bitsandbytes quantises
    Nf4,
    /// As the folder has them
    None,
}

/// Train a pruned model back: LoRA pairs on the frozen model, or its weights
///
/// OUT receives the adapter as PEFT saves it (with --full or --train-layers a whole model folder), metrics.ndjson, report.html,
/// and state/, from which --resume goes on to the same weights, bit by bit.
#[derive(Debug, Args)]
#[command(after_help = examples::train())]
pub(crate) struct Train {
    /// Model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// More training data, whole; exact duplicates in all data together are dropped. Of what `prunectl translate` wrote the
    /// hypotheses are learnt
    #[arg(long, value_name = "FILE")]
    add_data: Vec<PathBuf>,
    /// Folder for the result
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Layers to leave out, as 13,12 or 20-23
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    skip: Option<LayerList>,
    /// Train all weights instead of LoRA pairs
    #[arg(long, conflicts_with_all = ["train_layers", "init_adapter"])]
    full: bool,
    /// Train whole layers instead of LoRA pairs: last:3, numbers, lm_head, as last:3,lm_head
    #[arg(long, value_name = "LIST", conflicts_with = "init_adapter")]
    train_layers: Option<TrainLayers>,
    /// What the frozen weights of the layers' linears are in, with LoRA [default: nf4]
    #[arg(long, value_enum, value_name = "QUANT")]
    quant: Option<Quant>,
    /// Quantise NF4's own scales too
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    double_quant: bool,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    optimiser: OptimiserArgs,
    #[command(flatten)]
    filters: FilterArgs,
    #[command(flatten)]
    distil: DistilArgs,
    /// Data to evaluate on, before training, during it and after; the best model is kept
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Only the first N records of --eval
    #[arg(long, value_name = "N", requires = "eval")]
    eval_limit: Option<usize>,
    /// Updates between evaluations [default: an epoch's]
    #[arg(long, value_name = "N", requires = "eval", value_parser = clap::value_parser!(u64).range(1..))]
    eval_every: Option<u64>,
    /// Stop after this many evaluations without a better one
    #[arg(long, value_name = "N", requires = "eval", value_parser = clap::value_parser!(u64).range(1..))]
    patience: Option<u64>,
    /// Updates between saves of the state [default: what five minutes take]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    save_every: Option<u64>,
    /// Go on with the training in --out
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Begin anew where --out holds a training
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl Train {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let folder = ModelFolder::open(&self.model)?;
        self.refuse_overwriting()?;
        match self.compute.open(ui, &folder)? {
            Opened::Cpu(backend) => self.run_on(ui, backend, |folder| self.compute.cpu(ui, folder), folder),
            #[cfg(feature = "cuda")]
            Opened::Cuda(backend) => {
                let first = backend.clone();
                self.run_on(ui, *backend, |folder| self.compute.same_gpu(&first, folder), folder)
            }
        }
    }

    /// `another`: the same device for a teacher.
    fn run_on<B: TrainingBackend + Adamw>(
        &self,
        ui: &Ui,
        backend: B,
        another: impl Fn(&ModelFolder) -> Result<B>,
        folder: ModelFolder,
    ) -> Result<()> {
        let plan = plan(&folder, self.skip.as_deref())?;
        let positions = folder.config.max_position_embeddings;
        let datasets = self.data.open_all(&self.add_data, positions)?;
        let needs = datasets.iter().find(|d| d.needs_tokenizer()).or(datasets.first());
        let tokenizer = needs.map_or(Ok(None), |data: &Dataset| Tokenizer::open_for(data, &self.model))?;
        let vocab_size = folder.config.vocab_size;
        let set =
            TrainingSet::new(datasets, &self.filters.filters()?, !self.add_data.is_empty(), tokenizer.as_ref(), vocab_size)?;
        notes(ui, &set);
        let eval = match &self.eval {
            None => None,
            Some(path) => {
                let mut options = self.data.options(positions)?;
                (options.path, options.limit, options.shuffle) = (path.clone(), self.eval_limit, None);
                let data = Dataset::open(&options)?;
                Some((data.sha256.clone(), data.examples(tokenizer.as_ref(), vocab_size)?.examples))
            }
        };
        let longest = |examples: &[crate::data::Example]| examples.iter().map(|e| e.ids.len()).max().unwrap_or(1);
        let positions = longest(&set.examples).max(eval.as_ref().map_or(1, |(_, examples)| longest(examples)));
        let spoken = vocabulary(tokenizer.as_ref());
        let teacher = self.teacher(another, (vocab_size, &spoken), positions, &set)?;
        let (trainable, initial) = self.trainable(&folder, &plan)?;
        let mut options = self.options(&folder, &plan, &set, &trainable);
        options.insert("eval".into(), json!(eval.as_ref().map(|(sha256, _)| sha256)));
        options.insert("teacher".into(), teacher.as_ref().map_or(Value::Null, OpenedTeacher::identity));
        if let Some(initial) = &initial {
            options.insert("init_adapter".into(), json!(initial.digest()));
        }
        let (order, hyper) = (self.optimiser.order(self.data.options(positions)?.seq_len), self.optimiser.hyper()?);
        let mut folder = folder;
        let quant = self.quant(&trainable)?;
        options.insert("quant".into(), json!(quant.map(|double| if double { "nf4, double" } else { "nf4" })));
        if let Some(double) = quant {
            folder.quantise_nf4(double)?;
        }
        let residency = match &trainable {
            Trainable::Lora(_) => self.compute.memory(&backend, &folder, Residency::Resident)?.residency,
            Trainable::Full | Trainable::Layers { .. } => Residency::Resident,
        };
        let decoder = Decoder::new(backend, folder, residency, positions)?;
        options.insert("device".into(), json!(decoder.backend().name()));
        options.insert("dtype".into(), json!(decoder.backend().compute_dtype().to_string()));
        options.insert("gemm".into(), json!(decoder.backend().gemm()));
        let mut model = Differentiable::new(decoder, plan, trainable.clone(), self.optimiser.seed)?;
        if let Some(initial) = &initial {
            set_pairs(&mut model, initial)?;
        }
        model.make_ready(ui.progress(), "no update was made")?;
        let request = Request {
            out: self.out.clone(),
            order,
            length: self.optimiser.length(),
            lr: self.optimiser.lr,
            schedule: self.optimiser.schedule.into(),
            warmup: self.optimiser.warmup,
            hyper,
            eval_every: self.eval_every,
            patience: self.patience,
            save_every: self.save_every,
            mem_budget: self.compute.training_budget(model.decoder().backend(), moments(&model))?,
            resume: self.resume,
            force: self.force,
        };
        let lora = match &trainable {
            Trainable::Lora(spec) => {
                Some(AdapterOutput { out: self.out.clone(), base: self.model.display().to_string(), spec: spec.clone() })
            }
            Trainable::Full | Trainable::Layers { .. } => None,
        };
        let whole = ModelOutput { out: self.out.clone(), model: self.model.clone() };
        let mut write = |model: &Differentiable<B>| match &lora {
            Some(output) => output.write(model),
            None => whole.write(model),
        };
        let material = Material {
            set: &set,
            eval: eval.as_ref().map(|(_, examples)| examples.as_slice()),
            lesson: teacher.as_ref().map(|teacher| Lesson {
                teacher: teacher.teacher(),
                temperature: self.distil.temperature,
                mix: self.distil.teacher_mix,
            }),
            options,
            write: &mut write,
        };
        let report = run(&mut model, &request, material, ui.progress())?;
        let html = render_training(&self.model.display().to_string(), &report, &set.files);
        crate::io::write(&self.out.join("report.html"), html.as_bytes())?;
        ui.print(&json!({"report": report, "data": set.files}), &self.text(&report, lora.is_some()))
    }

    /// Whether the frozen model is in four bits, and with double quantisation.
    fn quant(&self, trainable: &Trainable) -> Result<Option<bool>> {
        match (trainable, self.quant) {
            (Trainable::Lora(_), None | Some(Quant::Nf4)) => Ok(Some(self.double_quant)),
            (_, None | Some(Quant::None)) => Ok(None),
            (Trainable::Full | Trainable::Layers { .. }, Some(Quant::Nf4)) => {
                Err(Error::request("--quant nf4 is for LoRA pairs: weights that are trained cannot be in four bits")
                    .with_help("leave --quant out, or train LoRA pairs"))
            }
        }
    }

    /// The result never goes where something is read from.
    fn refuse_overwriting(&self) -> Result<()> {
        let Ok(out) = self.out.canonicalize() else { return Ok(()) };
        for source in std::iter::once(&self.model).chain(self.lora.init_adapter()).chain(&self.distil.teacher) {
            if source.canonicalize().is_ok_and(|source| source == out) {
                return Err(Error::request(format!("--out {} would write over what is read", self.out.display()))
                    .with_help("choose another --out"));
            }
        }
        Ok(())
    }

    /// What is trained, and the adapter it begins with.
    fn trainable(&self, folder: &ModelFolder, plan: &LayerPlan) -> Result<(Trainable, Option<Adapter>)> {
        if self.full {
            return Ok((Trainable::Full, None));
        }
        if let Some(list) = &self.train_layers {
            return Ok((list.trainable(plan)?, None));
        }
        self.lora.trainable(folder)
    }

    /// What a resumed training must repeat, beside what the request holds.
    fn options(&self, folder: &ModelFolder, plan: &LayerPlan, set: &TrainingSet, trainable: &Trainable) -> Map<String, Value> {
        let mut options = Map::new();
        let mut put = |key: &str, value: Value| options.insert(key.to_owned(), value);
        put("model", json!(folder.fingerprint()));
        put("layers", json!(plan.kept()));
        put("data", json!(set.files.iter().map(|f| &f.sha256).collect::<Vec<_>>()));
        put("tokens", json!(set.digest()));
        put("seed", json!(self.optimiser.seed));
        match trainable {
            Trainable::Lora(spec) => {
                put("trained", json!("lora"));
                put("r", json!(spec.r));
                put("alpha", json!(spec.alpha));
                put("rslora", json!(spec.rslora));
                put("dropout", json!(spec.dropout));
                put("targets", json!(spec.targets.iter().map(|t| t.name()).collect::<Vec<_>>()));
            }
            Trainable::Full => {
                put("trained", json!("full"));
            }
            Trainable::Layers { layers, lm_head } => {
                put("trained", json!("layers"));
                put("trained_layers", json!(layers));
                put("lm_head", json!(lm_head));
            }
        }
        options
    }

    /// Opens the teacher: a folder is a model, a file what `prunectl teach` wrote.
    fn teacher<B: TrainingBackend>(
        &self,
        device: impl Fn(&ModelFolder) -> Result<B>,
        ours: (usize, &str),
        positions: usize,
        set: &TrainingSet,
    ) -> Result<Option<OpenedTeacher<B>>> {
        let Some(path) = &self.distil.teacher else { return Ok(None) };
        if path.is_file() {
            let file = TopKFile::open(path)?;
            same_vocabulary(path, (file.about.vocab_size, &file.about.vocabulary), ours)?;
            file.check(&set.examples)?;
            return Ok(Some(OpenedTeacher::File(Box::new(file))));
        }
        let folder = ModelFolder::open(path)?;
        let tokenizer =
            if ours.1.is_empty() || !path.join("tokenizer.json").exists() { None } else { Some(Tokenizer::open(path)?) };
        same_vocabulary(path, (folder.config.vocab_size, &vocabulary(tokenizer.as_ref())), ours)?;
        let plan = LayerPlan::without(folder.config.num_hidden_layers, self.distil.teacher_skip.as_deref().unwrap_or_default())?;
        // Where memory is short its layers are read from the mapped file as they are used; the same folder as the student's is
        // mapped once by the system.
        let (fingerprint, backend) = (folder.fingerprint(), device(&folder)?);
        let (bytes, room) = match backend.free_memory()? {
            None => (folder.size_under(&plan).1, self.compute.cpu_budget()),
            Some(free) => (folder.bytes_in(backend.compute_dtype()), free),
        };
        let residency = if bytes <= room / 4 { Residency::Resident } else { Residency::Streamed };
        let decoder = Decoder::new(backend, folder, residency, positions)?;
        Ok(Some(OpenedTeacher::Model { decoder: Box::new(decoder), plan, fingerprint }))
    }

    fn text(&self, report: &Report, lora: bool) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<11} {value}");
        };
        let early = if report.stopped_early { format!(" of {} (stopped early)", report.planned_steps) } else { String::new() };
        line("steps", format!("{}{early}", report.steps));
        line("trained", format!("{} parameters", report.trained_parameters));
        if let (Some(first), Some(last)) = (report.first_loss, report.last_loss) {
            line("loss", format!("{first:.4} -> {last:.4}"));
        }
        if let (Some(before), Some(best)) = (report.eval_before, report.eval_best) {
            line("eval nll", format!("{:.4} -> {:.4} (after step {})", before.nll, best.nll, best.step));
        }
        line("speed", format!("{:.0} tokens/s", report.tokens_per_second));
        line("took", format!("{:.1} s", report.seconds));
        let (out, model) = (self.out.display(), self.model.display());
        let next = if lora {
            format!("next: prunectl merge {model} {out} --out MERGED\n")
        } else {
            format!("next: prunectl eval {out} --data TEST\n")
        };
        format!("{out}\n{text}report: {}\n{next}", self.out.join("report.html").display())
    }
}

/// What became of the records, where anything did.
fn notes(ui: &Ui, set: &TrainingSet) {
    for file in &set.files {
        let path = file.path.display();
        if file.truncated > 0 {
            ui.progress().note(&format!("{path}: {} records are longer than --seq-len and lost their end", file.truncated));
        }
        let dropped = file.dropped;
        if dropped.total() > 0 {
            let parts = [
                ("by their lengths' ratio", dropped.ratio),
                ("too short", dropped.too_short),
                ("too long", dropped.too_long),
                ("with markup", dropped.markup),
                ("copies of their source", dropped.copies),
            ];
            let parts: Vec<String> =
                parts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect();
            ui.progress().note(&format!("{path}: {} records were filtered out: {}", dropped.total(), parts.join(", ")));
        }
        if file.duplicates > 0 {
            ui.progress().note(&format!("{path}: {} duplicates were dropped", file.duplicates));
        }
    }
}

/// Bytes that AdamW will keep of each parameter, in f32.
fn moments<B: TrainingBackend>(model: &Differentiable<B>) -> u64 {
    let elements = model.parameters().iter().map(|p| (p.value.rows() * p.value.cols()) as u64).sum::<u64>();
    elements * 2 * size_of::<f32>() as u64
}

/// Begins with an adapter's pairs instead of fresh ones.
fn set_pairs<B: TrainingBackend>(model: &mut Differentiable<B>, adapter: &Adapter) -> Result<()> {
    use crate::model::adapter::{Half, tensor_name};
    let (backend, parameters) = model.backend_and_parameters();
    for (layer, linear, pair) in adapter.pairs() {
        for (half, tensor) in [(Half::A, &pair.a), (Half::B, &pair.b)] {
            let name = tensor_name(layer, linear, half);
            // A layer that is skipped has no parameters.
            if let Some(parameter) = parameters.iter_mut().find(|p| p.name == name) {
                parameter.value = backend.upload(parameter.value.rows(), parameter.value.cols(), &tensor.to_f32())?;
            }
        }
    }
    model.refresh()
}

/// A teacher that stays open while the student trains.
enum OpenedTeacher<B: TrainingBackend> {
    Model { decoder: Box<Decoder<B>>, plan: LayerPlan, fingerprint: String },
    File(Box<TopKFile>),
}

impl<B: TrainingBackend> OpenedTeacher<B> {
    fn teacher(&self) -> Teacher<'_, B> {
        match self {
            Self::Model { decoder, plan, .. } => Teacher::Model { decoder, plan: plan.clone() },
            Self::File(file) => Teacher::File(file),
        }
    }

    fn identity(&self) -> Value {
        match self {
            Self::Model { plan, fingerprint, .. } => json!({"fingerprint": fingerprint, "layers": plan.kept()}),
            Self::File(file) => json!({"fingerprint": file.about.teacher, "top_k": file.about.k}),
        }
    }
}

/// An error of `--train-layers` and `--targets`, which name parts of the model.
pub(super) fn nothing_matches(option: &str, name: &str, known: &str) -> Error {
    Error::request(format!("{option}: {name} matches nothing in the model")).with_help(format!("choose from {known}"))
}
