//! What a training was asked for, and what came of it.

use super::metrics::Line;
use super::optimiser::Hyper;
use super::order::Order;
use super::schedule::Schedule;
use crate::data::Example;
use crate::error::Result;
use crate::model::train::Differentiable;
use crate::model::{Decoder, LayerPlan};
use crate::ops::TrainingBackend;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Times through the data; a fraction stops within an epoch.
    Epochs(f64),
    /// Updates.
    Updates(u64),
}

/// A checked request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Folder for the result, metrics.ndjson, state/ and report.html.
    pub out: PathBuf,
    /// Order of the data and its cut into updates.
    pub order: Order,
    /// How long.
    pub length: Length,
    /// Highest learning rate.
    pub lr: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Updates until it is reached; below 1, a share of all.
    pub warmup: f64,
    /// AdamW's constants and clipping.
    pub hyper: Hyper,
    /// Updates between evaluations; `None`: at the end of each epoch.
    pub eval_every: Option<u64>,
    /// Evaluations without a better one after which training stops.
    pub patience: Option<u64>,
    /// Updates between saves; `None`: every few minutes.
    pub save_every: Option<u64>,
    /// Bytes that activations may take.
    pub mem_budget: u64,
    /// Go on with what the folder holds.
    pub resume: bool,
    /// Begin anew where the folder holds a training.
    pub force: bool,
}

/// Where a student's second objective comes from.
pub enum Teacher<'a, B: TrainingBackend> {
    /// A model: its whole distribution.
    Model {
        /// The teacher.
        decoder: &'a Decoder<B>,
        /// Its layers that run.
        plan: LayerPlan,
    },
    /// Its most likely tokens, written before.
    File(&'a super::top_k::TopKFile),
}

/// A teacher and how much it counts.
pub struct Lesson<'a, B: TrainingBackend> {
    /// The teacher.
    pub teacher: Teacher<'a, B>,
    /// Both sides' logits are divided by it.
    pub temperature: f32,
    /// Weight of the divergence, 0 to 1; the data's tokens have the rest.
    pub mix: f32,
}

/// What is beside the model and the request.
pub struct Material<'a, B: TrainingBackend> {
    /// What is trained on.
    pub set: &'a super::data::TrainingSet,
    /// What is evaluated on.
    pub eval: Option<&'a [Example]>,
    /// The teacher.
    pub lesson: Option<Lesson<'a, B>>,
    /// Options that a resumed training must repeat, by name.
    pub options: Map<String, Value>,
    /// Writes the model's files into the request's folder.
    pub write: &'a mut dyn FnMut(&Differentiable<B>) -> Result<()>,
}

/// Evaluation after some updates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// Updates before it.
    pub step: u64,
    /// Mean negative log-likelihood, in nats.
    pub nll: f64,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The folder.
    pub out: PathBuf,
    /// Updates done.
    pub steps: u64,
    /// Updates that were planned; more than `steps` after an early stop.
    pub planned_steps: u64,
    /// Parameters that were trained.
    pub trained_parameters: u64,
    /// Examples an epoch.
    pub examples: usize,
    /// Targets an epoch.
    pub target_tokens: usize,
    /// Rows of a forward pass, at most.
    pub micro_batch_tokens: usize,
    /// Loss of the first update.
    pub first_loss: Option<f64>,
    /// Loss of the last update.
    pub last_loss: Option<f64>,
    /// Before the first update.
    pub eval_before: Option<Evaluation>,
    /// The last one.
    pub eval_after: Option<Evaluation>,
    /// The best one after an update: what the folder holds.
    pub eval_best: Option<Evaluation>,
    /// Why it ended before its time.
    pub stopped_early: bool,
    /// Tokens run a second, over all updates.
    pub tokens_per_second: f64,
    /// Wall time of updates and evaluations, of earlier runs too.
    pub seconds: f64,
    /// Highest memory of this process.
    pub peak_memory_bytes: u64,
    /// Everything measured, for the report.
    #[serde(skip)]
    pub lines: Vec<Line>,
}
