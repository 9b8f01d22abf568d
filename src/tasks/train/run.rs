//! The loop: batches, gradients, updates, evaluations, saves. Everything that decides the weights follows from the request,
//! the data and the seed, so that a training that was interrupted anywhere ends with the same bits.

use super::metrics::{Line, Metrics, Update};
use super::optimiser::Optimiser;
use super::order::micro_batches;
use super::request::{Evaluation, Length, Lesson, Material, Report, Request, Teacher};
use super::state::{self, Saved};
use super::top_k::TopK;
use crate::data::Example;
use crate::error::{Error, Result};
use crate::model::train::{BatchLoss, BatchTargets, Differentiable, Objective};
use crate::model::{Batch, Scratch, packed_targets};
use crate::ops::{Adamw, Shaped, Teacher as Distribution, TrainingBackend};
use crate::progress::Progress;
use crate::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time between saves where --save-every says nothing.
const SAVE_AFTER: Duration = Duration::from_secs(300);

/// Trains, or goes on with a training, and writes its files.
///
/// # Errors
/// [`Error::Request`] for a folder that holds another training, or options that differ from those it was begun with;
/// [`Error::Data`] naming step and records when the loss or the gradient is no number, with the state before it saved;
/// [`Error::Interrupted`] after Ctrl-C, with the state saved; [`Error::Io`], [`Error::Device`].
pub fn run<B: TrainingBackend + Adamw>(
    model: &mut Differentiable<B>,
    request: &Request,
    mut material: Material<'_, B>,
    progress: &dyn Progress,
) -> Result<Report> {
    let started = Instant::now();
    let lengths = material.set.lengths();
    let plan = Plan::new(request, &lengths)?;
    let mut metrics = Metrics::open(&request.out)?;
    let mut training = Training::new(model, request, &mut material, &plan, &lengths, progress)?;
    let (lines, before) = training.begin(&mut metrics)?;
    training.lines = lines;
    let kept = kept_layers(training.model, request.mem_budget, training.rows);
    training.model.keep_activations(kept);
    training.seconds_before = before;
    let outcome = training.all(&mut metrics, started);
    progress.end();
    outcome?;
    Ok(training.report(started))
}

/// Which updates there are.
struct Plan {
    total: u64,
    warmup: u64,
}

impl Plan {
    fn new(request: &Request, lengths: &[usize]) -> Result<Self> {
        let per_epoch = |epoch: u64| request.order.epoch(lengths, epoch).len() as u64;
        let total = match request.length {
            Length::Updates(updates) => updates,
            Length::Epochs(epochs) if epochs > 0.0 && epochs <= 1e6 => {
                // Packs may be cut differently each epoch; else all epochs have as many updates.
                let whole = epochs.floor();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 0 to 1e6")]
                let count = whole as u64;
                let full: u64 = if request.order.pack.is_some() { (0..count).map(per_epoch).sum() } else { count * per_epoch(0) };
                #[expect(clippy::cast_precision_loss, reason = "counts of updates are far below 2^52")]
                let rest = ((epochs - whole) * per_epoch(count) as f64).ceil();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of an epoch")]
                let rest = rest as u64;
                full + rest
            }
            Length::Epochs(epochs) => return Err(Error::request(format!("--epochs {epochs}: must be above 0"))),
        };
        if total == 0 {
            return Err(Error::request("--steps 0 trains nothing"));
        }
        if !(request.warmup >= 0.0 && request.warmup.is_finite()) {
            return Err(Error::request(format!("--warmup {}: must be 0 or more", request.warmup)));
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of updates are far below 2^52")]
        let warmup = if request.warmup < 1.0 { (request.warmup * total as f64).ceil() } else { request.warmup.floor() };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be finite and not negative")]
        Ok(Self { total, warmup: warmup as u64 })
    }
}

/// Walks the updates from any point: an epoch's order is drawn when it is reached.
struct Cursor {
    epoch: u64,
    updates: Vec<Vec<usize>>,
    next: usize,
}

impl Cursor {
    fn at(request: &Request, lengths: &[usize], mut done: u64) -> Self {
        let mut cursor = Self { epoch: 0, updates: request.order.epoch(lengths, 0), next: 0 };
        while done >= cursor.updates.len() as u64 {
            done -= cursor.updates.len() as u64;
            cursor.epoch += 1;
            cursor.updates = request.order.epoch(lengths, cursor.epoch);
        }
        cursor.next = usize::try_from(done).unwrap_or(usize::MAX);
        cursor
    }

    fn advance(&mut self, request: &Request, lengths: &[usize]) {
        self.next += 1;
        if self.next == self.updates.len() {
            self.epoch += 1;
            self.updates = request.order.epoch(lengths, self.epoch);
            self.next = 0;
        }
    }

    /// True before the first update of an epoch.
    fn between_epochs(&self) -> bool {
        self.next == 0
    }

    /// Epochs done once the update that is due is.
    #[expect(clippy::cast_precision_loss, reason = "counts of updates are far below 2^52")]
    fn position_after(&self) -> f64 {
        self.epoch as f64 + (self.next + 1) as f64 / self.updates.len() as f64
    }
}

struct Training<'a, 'm, B: TrainingBackend + Adamw> {
    model: &'a mut Differentiable<B>,
    request: &'a Request,
    material: &'a mut Material<'m, B>,
    plan: &'a Plan,
    lengths: &'a [usize],
    progress: &'a dyn Progress,
    optimiser: Optimiser<B>,
    scratch: Scratch<B>,
    rows: usize,
    /// Batches that the updates so far took: what dropout masks depend on.
    passes: u64,
    best: Option<Evaluation>,
    waited: u64,
    stopped_early: bool,
    /// The update after which the state was saved last.
    saved: Option<u64>,
    last_save: Instant,
    lines: Vec<Line>,
    seconds_before: f64,
}

impl<'a, 'm, B: TrainingBackend + Adamw> Training<'a, 'm, B> {
    fn new(
        model: &'a mut Differentiable<B>,
        request: &'a Request,
        material: &'a mut Material<'m, B>,
        plan: &'a Plan,
        lengths: &'a [usize],
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let optimiser = Optimiser::new(model.decoder().backend(), model.parameters(), request.hyper)?;
        let scratch = Scratch::new(model.decoder().backend())?;
        let rows = micro_batch_rows(model, request.mem_budget, lengths);
        Ok(Self {
            model,
            request,
            material,
            plan,
            lengths,
            progress,
            optimiser,
            scratch,
            rows,
            passes: 0,
            best: None,
            waited: 0,
            stopped_early: false,
            saved: None,
            last_save: Instant::now(),
            lines: Vec::new(),
            seconds_before: 0.0,
        })
    }

    fn folder(&self) -> PathBuf {
        self.request.out.join("state")
    }

    /// Takes up the training that is there, or makes sure that there is none. Gives what has been measured so far.
    fn begin(&mut self, metrics: &mut Metrics) -> Result<(Vec<Line>, f64)> {
        let (out, folder) = (&self.request.out, self.folder());
        if !self.request.resume {
            let occupied = folder.exists() || metrics.is_begun()?;
            if occupied && !self.request.force {
                return Err(Error::request(format!("{} already holds a training", out.display()))
                    .with_help("go on with it by --resume, begin anew by --force, or choose another --out"));
            }
            // Where no training is, a model or an adapter is somebody's own.
            let other = ["config.json", "adapter_config.json"].into_iter().find(|name| !occupied && out.join(name).exists());
            if let Some(name) = other.filter(|_| !self.request.force) {
                return Err(Error::request(format!("{} holds {name}, and no training", out.display()))
                    .with_help("choose another --out, or pass --force to write over it"));
            }
            if folder.exists() {
                std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
            }
            return Ok((metrics.rewind(None)?, 0.0));
        }
        let Some((saved, passed_over)) = state::newest(&folder)? else {
            self.progress.note(&format!("{} holds no saved state: training begins at its start", out.display()));
            return Ok((metrics.rewind(None)?, 0.0));
        };
        passed_over.iter().for_each(|line| self.progress.note(line));
        self.compare(&saved)?;
        let number = |name: &str| saved.facts.get(name).and_then(Value::as_u64);
        let missing = |name: &str| Error::data(&saved.path, format!("key {name}"), "missing");
        let step = number("step").ok_or_else(|| missing("step"))?;
        self.rows =
            number("micro_batch_tokens").and_then(|n| usize::try_from(n).ok()).ok_or_else(|| missing("micro_batch_tokens"))?;
        self.waited = number("evaluations_without_a_better").unwrap_or(0);
        self.best = saved
            .facts
            .get("best")
            .filter(|b| !b.is_null())
            .and_then(|best| Some(Evaluation { step: best["step"].as_u64()?, nll: best["nll"].as_f64()? }));
        let (backend, parameters) = self.model.backend_and_parameters();
        self.optimiser.restore(backend, parameters, step, |entry| saved.values(entry))?;
        self.model.refresh()?;
        self.passes = number("passes").ok_or_else(|| missing("passes"))?;
        self.model.set_passes(self.passes);
        self.saved = Some(step);
        self.stopped_early = saved.facts.get("stopped_early").and_then(Value::as_bool).unwrap_or(false);
        self.progress.note(&format!("going on after step {step} of {}", self.plan.total));
        let seconds = saved.facts.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
        Ok((metrics.rewind(Some(step))?, seconds))
    }

    /// A resumed training must ask for what the saved one asked for; what differs is named.
    fn compare(&self, saved: &Saved) -> Result<()> {
        let empty = Map::new();
        let found = saved.facts.get("options").and_then(Value::as_object).unwrap_or(&empty);
        let wanted = self.options();
        for key in wanted.keys().chain(found.keys()) {
            let (was, is) = (found.get(key).unwrap_or(&Value::Null), wanted.get(key).unwrap_or(&Value::Null));
            if was != is {
                return Err(Error::request(format!("{}: cannot resume: {key} was {was}, now {is}", self.request.out.display()))
                    .with_help("repeat the command as it was, or begin anew by --force"));
            }
        }
        Ok(())
    }

    fn options(&self) -> Map<String, Value> {
        let mut options = self.material.options.clone();
        let (request, order) = (self.request, &self.request.order);
        let mut put = |key: &str, value: Value| options.insert(key.to_owned(), value);
        put("shuffle", json!(order.shuffle));
        put("group_by_length", json!(order.group_by_length));
        put("pack", json!(order.pack));
        put("batch_times_accumulation", json!(order.per_update));
        put("steps", json!(self.plan.total));
        put("warmup", json!(self.plan.warmup));
        put("lr", json!(request.lr));
        put("schedule", json!(request.schedule));
        put("beta1", json!(request.hyper.beta1));
        put("beta2", json!(request.hyper.beta2));
        put("eps", json!(request.hyper.eps));
        put("weight_decay", json!(request.hyper.weight_decay));
        put("clip", json!(request.hyper.clip));
        put("eval_every", json!(request.eval_every));
        put("patience", json!(request.patience));
        put("temperature", json!(self.material.lesson.as_ref().map(|l| l.temperature)));
        put("teacher_mix", json!(self.material.lesson.as_ref().map(|l| l.mix)));
        options
    }

    /// From the update that is due to the last one.
    fn all(&mut self, metrics: &mut Metrics, started: Instant) -> Result<()> {
        let (total, done) = (self.plan.total, self.optimiser.updates());
        if done == 0 && self.material.eval.is_some() && !self.lines.iter().any(|l| matches!(l, Line::Evaluation { .. })) {
            self.evaluate(metrics)?;
        }
        self.progress.begin("training", total);
        self.progress.advance(done);
        let mut cursor = Cursor::at(self.request, self.lengths, done);
        let mut recent = Recent::default();
        while self.optimiser.updates() < total && !self.stopped_early {
            let update = match self.update(&cursor) {
                Ok(update) => update,
                Err(stop) => {
                    // The update that failed has changed nothing: what is saved is the state before it.
                    self.progress.end();
                    self.save(metrics, started)?;
                    return Err(stop);
                }
            };
            recent.add(&update);
            self.progress.status(&recent.status(update.loss));
            metrics.append(&Line::Update(update.clone()))?;
            self.lines.push(Line::Update(update));
            cursor.advance(self.request, self.lengths);
            self.progress.advance(1);
            let done = self.optimiser.updates();
            let due =
                self.request.eval_every.map_or(cursor.between_epochs(), |every| done.is_multiple_of(every)) || done == total;
            if due && self.material.eval.is_some() {
                self.judge(metrics)?;
                if !self.stopped_early && done < total {
                    self.progress.begin("training", total);
                    self.progress.advance(done);
                }
            }
            let save = self.request.save_every.map_or(self.last_save.elapsed() >= SAVE_AFTER, |every| done.is_multiple_of(every));
            if save && done < total && !self.stopped_early {
                self.save(metrics, started)?;
            }
        }
        self.progress.end();
        if self.best.is_none() {
            self.write()?;
        }
        self.save(metrics, started)
    }

    /// Gradients of one update's examples, then the step.
    fn update(&mut self, cursor: &Cursor) -> Result<Update> {
        let started = Instant::now();
        let indices = &cursor.updates[cursor.next];
        let examples = &self.material.set.examples;
        let targets: usize = indices.iter().map(|&i| examples[i].targets.len()).sum();
        let done = self.optimiser.updates();
        let lr = self.request.lr * self.request.schedule.factor(done, self.plan.warmup, self.plan.total);
        let mut sum = Sums::default();
        self.model.zero_grads()?;
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^24")]
        let scale = 1.0 / targets.max(1) as f32;
        for part in micro_batches(indices, self.lengths, self.rows) {
            self.progress.check(&self.kept())?;
            let loss = self.micro_batch(part, scale)?;
            if !loss.loss_sum.is_finite() {
                return Err(self.no_number(done + 1, "loss", loss.loss_sum, part));
            }
            sum.loss += loss.loss_sum;
            sum.nll += loss.nll_sum;
            sum.kl += loss.kl_sum;
        }
        let backend = self.model.decoder().backend();
        let norm = self.optimiser.norm(backend, self.model.parameters())?;
        if !norm.is_finite() {
            return Err(self.no_number(done + 1, "gradient's norm", norm, indices));
        }
        let (backend, parameters) = self.model.backend_and_parameters();
        self.optimiser.update(backend, parameters, norm, lr)?;
        self.model.refresh()?;
        self.passes = self.model.passes();
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
        let count = targets.max(1) as f64;
        let taught = self.material.lesson.is_some();
        Ok(Update {
            step: done + 1,
            epoch: cursor.position_after(),
            loss: sum.loss / count,
            nll: taught.then_some(sum.nll / count),
            kl: taught.then_some(sum.kl / count),
            lr,
            grad_norm: norm,
            tokens: indices.iter().map(|&i| self.lengths[i] as u64).sum(),
            targets: targets as u64,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Adds the gradients of some examples, packed behind each other.
    fn micro_batch(&mut self, indices: &[usize], scale: f32) -> Result<BatchLoss> {
        let examples: Vec<&Example> = indices.iter().map(|&i| &self.material.set.examples[i]).collect();
        let batch = Batch::pack(examples.iter().map(|e| e.ids.as_slice()));
        let (rows, tokens) = packed_targets(&batch.starts, examples.iter().map(|e| e.targets.as_slice()));
        let targets = BatchTargets { rows: &rows, tokens: &tokens };
        let Some(Lesson { teacher, temperature, mix }) = &self.material.lesson else {
            return self.model.accumulate(&batch, targets, &Objective::CrossEntropy, scale);
        };
        let (temperature, mix) = (*temperature, *mix);
        match teacher {
            Teacher::Model { decoder, plan } => {
                let hidden = decoder.forward(&batch, plan, &mut self.scratch, |_, _| Ok(()))?;
                let x = decoder.normed_rows(&hidden, &rows)?;
                let teacher = Distribution::States { x: &x, head: decoder.head(), logit_scale: decoder.config().logit_scale };
                self.model.accumulate(&batch, targets, &Objective::Distil { teacher, temperature, mix }, scale)
            }
            Teacher::File(file) => {
                let mut top = TopK::default();
                examples.iter().try_for_each(|example| file.extend(example, &mut top))?;
                let teacher = Distribution::TopK { k: file.about.k, ids: &top.ids, log_probs: &top.log_probs };
                self.model.accumulate(&batch, targets, &Objective::Distil { teacher, temperature, mix }, scale)
            }
        }
    }

    fn no_number(&self, step: u64, what: &str, value: f64, examples: &[usize]) -> Error {
        let (path, at) = self.material.set.place(examples);
        Error::Data {
            path,
            at,
            problem: format!("step {step}: the {what} is {value}; the state before it is kept"),
            help: Some("lower --lr, clip the gradient by --clip 1, or look at these records".into()),
        }
    }

    fn kept(&self) -> String {
        let out = self.request.out.display();
        format!("the state after step {} is in {out}: go on with --resume", self.optimiser.updates())
    }

    /// Evaluates, keeps the model if it is the best so far, and decides whether to go on.
    fn judge(&mut self, metrics: &mut Metrics) -> Result<()> {
        let nll = self.evaluate(metrics)?;
        let step = self.optimiser.updates();
        if self.best.is_none_or(|best| nll < best.nll) {
            self.best = Some(Evaluation { step, nll });
            self.waited = 0;
            return self.write();
        }
        self.waited += 1;
        if self.request.patience.is_some_and(|patience| self.waited >= patience) && step < self.plan.total {
            self.stopped_early = true;
            let best = self.best.map_or(step, |best| best.step);
            self.progress.note(&format!("stopped after step {step}: no evaluation was better than that after step {best}"));
        }
        Ok(())
    }

    /// Mean negative log-likelihood of the evaluation's targets.
    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<f64> {
        let started = Instant::now();
        let examples = self.material.eval.unwrap_or_default();
        let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
        let all: Vec<usize> = (0..examples.len()).collect();
        let targets: usize = examples.iter().map(|e| e.targets.len()).sum();
        self.progress.begin("evaluating", lengths.iter().sum::<usize>() as u64);
        let mut sum = 0.0;
        for part in micro_batches(&all, &lengths, self.rows) {
            let batch = Batch::pack(part.iter().map(|&i| examples[i].ids.as_slice()));
            let (rows, tokens) = packed_targets(&batch.starts, part.iter().map(|&i| examples[i].targets.as_slice()));
            let losses = self.model.losses(&batch, BatchTargets { rows: &rows, tokens: &tokens }, None)?;
            sum += losses.nll.iter().map(|&nll| f64::from(nll)).sum::<f64>();
            self.progress.advance(batch.rows() as u64);
        }
        self.progress.end();
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
        let eval_nll = sum / targets.max(1) as f64;
        let step = self.optimiser.updates();
        if !eval_nll.is_finite() {
            return Err(Error::Device {
                problem: format!("step {step}: the evaluation's nll is {eval_nll}"),
                help: Some("lower --lr, or clip the gradient by --clip 1".into()),
            });
        }
        self.progress.note(&format!("step {step}: evaluation nll {eval_nll:.4}"));
        let line = Line::Evaluation { step, eval_nll, seconds: started.elapsed().as_secs_f64() };
        metrics.append(&line)?;
        self.lines.push(line);
        Ok(eval_nll)
    }

    /// Writes the model or the adapter.
    fn write(&mut self) -> Result<()> {
        self.model.release();
        (self.material.write)(self.model)
    }

    fn save(&mut self, metrics: &Metrics, started: Instant) -> Result<()> {
        let step = self.optimiser.updates();
        if self.saved == Some(step) {
            return Ok(());
        }
        metrics.sync()?;
        self.model.release();
        let mut facts = Map::new();
        facts.insert("step".into(), json!(step));
        facts.insert("best".into(), json!(self.best));
        facts.insert("evaluations_without_a_better".into(), json!(self.waited));
        facts.insert("stopped_early".into(), json!(self.stopped_early));
        facts.insert("micro_batch_tokens".into(), json!(self.rows));
        facts.insert("seconds".into(), json!(self.seconds_before + started.elapsed().as_secs_f64()));
        facts.insert("passes".into(), json!(self.passes));
        facts.insert("options".into(), Value::Object(self.options()));
        let (backend, parameters) = (self.model.decoder().backend(), self.model.parameters());
        let entries = Optimiser::<B>::entries(parameters);
        state::save(&self.folder(), step, &facts, &entries, |index| self.optimiser.values(backend, parameters, index))?;
        self.saved = Some(step);
        self.last_save = Instant::now();
        Ok(())
    }

    fn report(self, started: Instant) -> Report {
        let updates = || self.lines.iter().filter_map(|line| if let Line::Update(u) = line { Some(u) } else { None });
        let evaluations = || {
            self.lines.iter().filter_map(|line| match line {
                Line::Evaluation { step, eval_nll, .. } => Some(Evaluation { step: *step, nll: *eval_nll }),
                Line::Update(_) => None,
            })
        };
        let (tokens, seconds) = updates().fold((0, 0.0), |(t, s), u| (t + u.tokens, s + u.seconds));
        let parameters = self.model.parameters().iter().map(|p| (p.value.rows() * p.value.cols()) as u64).sum();
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
        let tokens_per_second = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        Report {
            out: self.request.out.clone(),
            steps: self.optimiser.updates(),
            planned_steps: self.plan.total,
            trained_parameters: parameters,
            examples: self.material.set.examples.len(),
            target_tokens: self.material.set.target_tokens(),
            micro_batch_tokens: self.rows,
            first_loss: updates().next().map(|u| u.loss),
            last_loss: updates().next_back().map(|u| u.loss),
            eval_before: evaluations().find(|e| e.step == 0),
            eval_after: evaluations().rfind(|e| e.step > 0),
            eval_best: self.best,
            stopped_early: self.stopped_early,
            tokens_per_second,
            seconds: self.seconds_before + started.elapsed().as_secs_f64(),
            peak_memory_bytes: crate::machine::peak_memory_bytes(),
            lines: self.lines,
        }
    }
}

/// Rows of a micro-batch that fit the budget: a checkpoint for each layer, one layer's activations with their gradients, and a few
/// rows of the model's width around them. The longest example must fit in any case.
fn micro_batch_rows<B: TrainingBackend>(model: &Differentiable<B>, budget: u64, lengths: &[usize]) -> usize {
    let fitting = usize::try_from(budget / row_bytes(model).max(1)).unwrap_or(usize::MAX);
    // Twice what the matrices need for their speed, since some work is done once a micro-batch: weights in four bits are widened,
    // gradients of weights added up, matrices that are trained made anew. In bf16, where that is cheaper, and where the states of all
    // weights lie in main memory, half the activations are worth 3 % of the speed.
    let backend = model.decoder().backend();
    let twice = model.is_adapter() || backend.compute_dtype() == Dtype::F32 || matches!(backend.free_memory(), Ok(Some(_)));
    fitting.min(backend.batch_rows() * if twice { 2 } else { 1 }).max(lengths.iter().copied().max().unwrap_or(1))
}

/// Layers whose activations fit beside that.
fn kept_layers<B: TrainingBackend>(model: &Differentiable<B>, budget: u64, rows: usize) -> usize {
    let rest = budget.saturating_sub(row_bytes(model).saturating_mul(rows as u64));
    let layer = model.activation_bytes_a_row().saturating_mul(rows as u64);
    usize::try_from(rest / layer.max(1)).unwrap_or(usize::MAX).min(model.plan().kept().len())
}

/// Bytes a row of a micro-batch takes where no activations are kept.
fn row_bytes<B: TrainingBackend>(model: &Differentiable<B>) -> u64 {
    let config = model.decoder().config();
    let layer = 6 * config.hidden_size + 3 * config.heads().qkv_cols() + 7 * config.intermediate_size;
    model.decoder().backend().tensor_bytes(1, model.plan().kept().len() * config.hidden_size + layer)
}

/// Over the targets of an update.
#[derive(Default)]
struct Sums {
    loss: f64,
    nll: f64,
    kl: f64,
}

/// Speed over the last updates, for the line beside the bar.
#[derive(Default)]
struct Recent(std::collections::VecDeque<(u64, f64)>);

impl Recent {
    fn add(&mut self, update: &Update) {
        self.0.push_back((update.tokens, update.seconds));
        if self.0.len() > 20 {
            self.0.pop_front();
        }
    }

    fn status(&self, loss: f64) -> String {
        let (tokens, seconds) = self.0.iter().fold((0, 0.0), |(t, s), u| (t + u.0, s + u.1));
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
        let speed = tokens as f64 / f64::max(seconds, 1e-9);
        #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
        let memory = crate::machine::peak_memory_bytes() as f64 / f64::from(1 << 30);
        format!("loss {loss:.4}, {speed:.0} tokens/s, {memory:.1} GiB")
    }
}
