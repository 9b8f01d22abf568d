//! The decoder: embedding, layers by a [`LayerPlan`], final norm, head. One for all families.

use super::batch::Batch;
use super::block::{Context, Scratch, norm};
use super::config::DecoderConfig;
use super::folder::ModelFolder;
use super::layer_plan::LayerPlan;
use super::layer_weights::LayerWeights;
use super::linear_name::Stack;
use super::lora::{LayerLora, Lora};
use super::rotary::RotaryTables;
use crate::data::Target;
use crate::error::{Error, Result};
use crate::ops::{ArgmaxArgs, Backend, CrossEntropyArgs, EmbeddingArgs, GatherRowsArgs, LinearArgs, Shaped, TokenLosses};
use crate::progress::Progress;
use std::sync::{Arc, OnceLock};

/// Where layer weights live between uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// Every layer stays on the device once it was used: for generation, where each is used hundreds of times.
    Resident,
    /// A layer's weights are made from the mapped file when asked for and dropped after: for sweeps that use each once.
    Streamed,
}

/// A model on a device.
pub struct Decoder<B: Backend> {
    backend: B,
    folder: ModelFolder,
    embed: B::Matrix,
    head: Option<B::Matrix>,
    final_norm: B::Tensor,
    rotary: RotaryTables<B::Tensor>,
    residency: Residency,
    layers: Vec<OnceLock<Arc<LayerWeights<B>>>>,
    positions: usize,
    lora: Option<Lora<B>>,
}

impl<B: Backend> Decoder<B> {
    /// A decoder over a folder's mapped weights. `positions`: longest sequence that will be run, at most the model's.
    ///
    /// # Errors
    /// [`Error::Request`] when `positions` exceeds `max_position_embeddings`; [`Error::Data`], [`Error::Device`].
    pub fn new(backend: B, folder: ModelFolder, residency: Residency, positions: usize) -> Result<Self> {
        let config = &folder.config;
        if positions > config.max_position_embeddings {
            return Err(Error::request(format!(
                "sequences of {positions} tokens are longer than the model's max_position_embeddings of {}",
                config.max_position_embeddings
            ))
            .with_help("lower --seq-len or --max-new-tokens"));
        }
        let embed = backend.prepare(&[folder.tensor("model.embed_tokens.weight")?.clone()])?;
        let head =
            if config.tie_word_embeddings { None } else { Some(backend.prepare(&[folder.tensor("lm_head.weight")?.clone()])?) };
        let final_norm = backend.upload(1, config.hidden_size, &folder.tensor("model.norm.weight")?.to_f32())?;
        let rotary = RotaryTables::new(&backend, config, positions)?;
        let layers = (0..config.num_hidden_layers).map(|_| OnceLock::new()).collect();
        Ok(Self { backend, embed, head, final_norm, rotary, residency, layers, positions, lora: None, folder })
    }

    /// config.json.
    pub fn config(&self) -> &DecoderConfig {
        &self.folder.config
    }

    /// The folder the weights come from.
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Longest sequence this decoder can run.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The head: `lm_head`, or the embedding where they are tied.
    pub fn head(&self) -> &B::Matrix {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Adds an adapter to the layers' linears, in place of the one before; `None`: takes it away.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is for another number of layers or linears of other sizes.
    pub fn set_lora(&mut self, lora: Option<Lora<B>>) -> Result<()> {
        if let Some(lora) = &lora {
            lora.check(self.config())?;
        }
        self.lora = lora;
        Ok(())
    }

    /// The adapter in use.
    pub fn lora(&self) -> Option<&Lora<B>> {
        self.lora.as_ref()
    }

    /// The adapter's pairs of one layer.
    pub fn layer_lora(&self, layer: usize) -> Option<&LayerLora<B>> {
        self.lora.as_ref().and_then(|lora| lora.layers.get(layer))
    }

    /// Takes the adapter away.
    pub fn take_lora(&mut self) -> Option<Lora<B>> {
        self.lora.take()
    }

    /// The adapter in use, to be changed.
    pub fn lora_mut(&mut self) -> Option<&mut Lora<B>> {
        self.lora.as_mut()
    }

    /// Another embedding, which is the head too where they are tied.
    pub fn set_embed(&mut self, embed: B::Matrix) {
        self.embed = embed;
    }

    /// Another head; an untied model's only.
    pub fn set_head(&mut self, head: B::Matrix) {
        self.head = Some(head);
    }

    /// Weight of the final norm: [1, hidden_size].
    pub fn final_norm(&self) -> &B::Tensor {
        &self.final_norm
    }

    /// The same, to be changed.
    pub fn final_norm_mut(&mut self) -> &mut B::Tensor {
        &mut self.final_norm
    }

    /// Weights of a layer, made now if they are not resident.
    ///
    /// # Errors
    /// As [`LayerWeights::load`].
    pub fn layer(&self, layer: usize) -> Result<Arc<LayerWeights<B>>> {
        let load = || LayerWeights::load(&self.backend, &self.folder, layer).map(Arc::new);
        match self.residency {
            Residency::Streamed => load(),
            Residency::Resident => match self.layers[layer].get() {
                Some(weights) => Ok(weights.clone()),
                None => {
                    let weights = load()?;
                    Ok(self.layers[layer].get_or_init(|| weights).clone())
                }
            },
        }
    }

    /// Brings the head and these layers into the form the device computes with, so that no later pass pays for it.
    /// Layers that are streamed are made anew each time and stay away.
    ///
    /// # Errors
    /// As [`LayerWeights::load`]; [`Error::Data`] for a weight that is not finite; [`Error::Interrupted`].
    pub fn make_ready(&self, layers: &[usize], progress: &dyn Progress, kept: &str) -> Result<()> {
        let layers = if self.residency == Residency::Resident { layers } else { &[] };
        progress.begin("loading weights", 1 + layers.len() as u64);
        self.backend.make_ready(self.head())?;
        progress.advance(1);
        for &layer in layers {
            progress.check(kept)?;
            let weights = self.layer(layer)?;
            for stack in Stack::ALL {
                self.backend.make_ready(weights.stack(stack).0)?;
            }
            progress.advance(1);
        }
        progress.end();
        Ok(())
    }

    /// Hidden states before layer 0: [ids.len(), hidden_size].
    ///
    /// # Errors
    /// [`Error::Shape`] for an id outside the vocabulary; [`Error::Device`].
    pub fn embed(&self, ids: &[u32]) -> Result<B::Tensor> {
        let mut y = self.backend.zeros(ids.len(), self.config().hidden_size)?;
        self.backend.embedding(EmbeddingArgs { y: &mut y, table: &self.embed, ids })?;
        Ok(y)
    }

    /// Cosines and sines of all positions: [positions, head_dim / 2].
    pub(super) fn rotary_tables(&self) -> (&B::Tensor, &B::Tensor) {
        (&self.rotary.cos, &self.rotary.sin)
    }

    /// Final norm of hidden states.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn normed(&self, x: &B::Tensor) -> Result<B::Tensor> {
        let mut y = self.backend.zeros(x.rows(), x.cols())?;
        norm(&self.backend, self.config(), &mut y, x, &self.final_norm)?;
        Ok(y)
    }

    /// Final norm of the rows that `targets` predict from.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn normed_rows(&self, x: &B::Tensor, rows: &[u32]) -> Result<B::Tensor> {
        let mut picked = self.backend.zeros(rows.len(), x.cols())?;
        self.backend.gather_rows(GatherRowsArgs { y: &mut picked, x, rows })?;
        self.normed(&picked)
    }

    /// Losses of target tokens from their normed hidden states; KL against `reference` where given.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn losses(&self, normed: &B::Tensor, tokens: &[u32], reference: Option<&B::Tensor>) -> Result<TokenLosses> {
        self.backend.cross_entropy(CrossEntropyArgs {
            x: normed,
            head: self.head(),
            targets: tokens,
            logit_scale: self.config().logit_scale,
            reference,
        })
    }

    /// Greedy next tokens from normed hidden states.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn next_tokens(&self, normed: &B::Tensor) -> Result<Vec<u32>> {
        self.backend.argmax(ArgmaxArgs { x: normed, head: self.head(), logit_scale: self.config().logit_scale })
    }

    /// Logits of normed hidden states, [rows, vocab_size] row-major: for tests and checks on a few rows.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn logits(&self, normed: &B::Tensor) -> Result<Vec<f32>> {
        let mut y = self.backend.zeros(normed.rows(), self.config().vocab_size)?;
        self.backend.linear(LinearArgs { y: &mut y, x: normed, weight: self.head(), bias: None, accumulate: false })?;
        let mut logits = self.backend.download(&y)?;
        let scale = self.config().logit_scale;
        logits.iter_mut().for_each(|logit| *logit *= scale);
        Ok(logits)
    }

    /// Hidden states after the plan's last layer, before the final norm. `each` sees them before every layer.
    ///
    /// # Errors
    /// Those of the ops and of `each`.
    pub fn forward(
        &self,
        batch: &Batch,
        plan: &LayerPlan,
        scratch: &mut Scratch<B>,
        mut each: impl FnMut(usize, &B::Tensor) -> Result<()>,
    ) -> Result<B::Tensor> {
        let mut x = self.embed(&batch.ids)?;
        for &layer in plan.kept() {
            each(layer, &x)?;
            let weights = self.layer(layer)?;
            self.run_layer(&weights, &mut x, &batch.positions, Context::Packed { starts: &batch.starts }, scratch)?;
        }
        Ok(x)
    }
}

/// Rows and tokens of targets within a packed batch whose sequences start at `starts`.
pub fn packed_targets<'a>(starts: &[u32], targets: impl IntoIterator<Item = &'a [Target]>) -> (Vec<u32>, Vec<u32>) {
    let mut rows = Vec::new();
    let mut tokens = Vec::new();
    for (&start, targets) in starts.iter().zip(targets) {
        rows.extend(targets.iter().map(|t| start + t.row));
        tokens.extend(targets.iter().map(|t| t.token));
    }
    (rows, tokens)
}
