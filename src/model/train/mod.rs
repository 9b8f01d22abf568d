//! The decoder with gradients: a forward pass that keeps each layer's input, and the activations of as many layers as memory
//! allows; and a backward pass that computes a layer's activations again where they were not kept, then its gradients, from the
//! last layer to the first. No tape: `layer.rs` is both passes of a layer, written out. Knows nothing of optimisers and data.

mod layer;
mod objective;
mod parameter;
mod weights;

pub use objective::{BatchLoss, BatchTargets, Objective};
pub use parameter::{LoraSpec, Parameter, Trainable};

use super::batch::Batch;
use super::block::{Context, Scratch, norm};
use super::config::Architecture;
use super::decoder::Decoder;
use super::layer_plan::LayerPlan;
use super::layer_weights::LayerWeights;
use super::linear_name::LinearName;
use super::lora::Lora;
use crate::error::Result;
use crate::ops::{
    CrossEntropyBackwardArgs, Direction, DropoutMask, EmbeddingBackwardArgs, GatherRowsArgs, LayerNormBackwardArgs,
    RmsNormBackwardArgs, ScatterRowsArgs, Shaped, TokenLosses, TrainingBackend,
};
use crate::progress::Progress;
use layer::{Activations, Need, Pass, Work};
use parameter::{Parameters, Place};
use std::sync::Arc;

/// A decoder some of whose parameters are trained.
pub struct Differentiable<B: TrainingBackend> {
    decoder: Decoder<B>,
    plan: LayerPlan,
    parameters: Parameters<B>,
    lora: Option<LoraSpec>,
    seed: u64,
    passes: u64,
    scratch: Scratch<B>,
    work: Work<B>,
    /// Activations of the layers that keep theirs, and of one that does not. These and the inputs are kept from call to call, so
    /// that memory is taken from the system once.
    activations: Vec<Activations<B>>,
    /// Layers, counted from the last one, whose activations are kept from the forward to the backward pass.
    kept_layers: usize,
    /// The input of each layer.
    inputs: Vec<B::Tensor>,
}

impl<B: TrainingBackend> Differentiable<B> {
    /// Parameters with the folder's values; LoRA pairs as PEFT begins them, drawn from `seed`. `plan`: the layers that run.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for options that cannot be; [`Error::Data`](crate::Error::Data) for a missing
    /// tensor; [`Error::Device`](crate::Error::Device) when memory is short.
    pub fn new(decoder: Decoder<B>, plan: LayerPlan, trainable: Trainable, seed: u64) -> Result<Self> {
        let parameters = Parameters::new(decoder.backend(), decoder.folder(), &plan, &trainable, seed)?;
        let lora = match trainable {
            Trainable::Lora(spec) => Some(spec),
            Trainable::Full | Trainable::Layers { .. } => None,
        };
        let (scratch, work) = (Scratch::new(decoder.backend())?, Work::new(decoder.backend())?);
        let (activations, inputs) = (Vec::new(), Vec::new());
        let mut new =
            Self { decoder, plan, parameters, lora, seed, passes: 0, scratch, work, activations, kept_layers: 0, inputs };
        if new.lora.is_some() {
            let layers = new.decoder.config().num_hidden_layers;
            new.decoder.set_lora(Some(Lora::empty(layers)))?;
        }
        new.refresh()?;
        Ok(new)
    }

    /// The decoder. What it holds of trained parameters, a LoRA adapter among them, has the values of the last
    /// [`refresh`](Self::refresh); layers that are trained whole are not in it.
    pub fn decoder(&self) -> &Decoder<B> {
        &self.decoder
    }

    /// The layers that run.
    pub fn plan(&self) -> &LayerPlan {
        &self.plan
    }

    /// The parameters, always in the same order.
    pub fn parameters(&self) -> &[Parameter<B>] {
        &self.parameters.list
    }

    /// The same, to be changed; [`refresh`](Self::refresh) after that.
    pub fn parameters_mut(&mut self) -> &mut [Parameter<B>] {
        &mut self.parameters.list
    }

    /// The device and the parameters to be changed, together.
    pub fn backend_and_parameters(&mut self) -> (&B, &mut [Parameter<B>]) {
        (self.decoder.backend(), &mut self.parameters.list)
    }

    /// How many batches were accumulated so far: what dropout masks depend on, besides the seed. Part of a saved state.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Goes on as if so many batches had been accumulated.
    pub fn set_passes(&mut self, passes: u64) {
        self.passes = passes;
    }

    /// Keeps activations of the last `layers` layers from the forward to the backward pass, instead of computing them again, which
    /// is a quarter of the arithmetic of training all weights and a third of LoRA's. Changes no bit of the gradients.
    pub fn keep_activations(&mut self, layers: usize) {
        self.kept_layers = layers;
    }

    /// Gives the activations' memory back until the next batch: while results are copied and written it is of no use.
    pub fn release(&mut self) {
        self.activations.clear();
        self.inputs.clear();
    }

    /// Whether LoRA pairs are trained, and not the model's own weights.
    pub fn is_adapter(&self) -> bool {
        self.lora.is_some()
    }

    /// Bytes that the activations of one layer take for each row of a batch.
    pub fn activation_bytes_a_row(&self) -> u64 {
        let rank = self.lora.as_ref().map_or(0, |spec| spec.r);
        self.decoder.backend().tensor_bytes(1, Activations::<B>::row_elements(self.decoder.config(), rank))
    }

    /// All gradients 0.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn zero_grads(&mut self) -> Result<()> {
        for parameter in &mut self.parameters.list {
            self.decoder.backend().fill(&mut parameter.grad, 0.0)?;
        }
        Ok(())
    }

    /// Carries the values of pairs, embedding, head and final norm into the decoder. To be called after every change.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when memory is short.
    pub fn refresh(&mut self) -> Result<()> {
        let Self { decoder, parameters, plan, lora, .. } = self;
        if let Some(embed) = parameters.at(Place::Embed) {
            let embed = decoder.backend().prepare_tensors(&[&embed.value], Direction::Forward)?;
            decoder.set_embed(embed);
        }
        if let (Some(head), false) = (parameters.at(Place::Head), decoder.config().tie_word_embeddings) {
            let head = decoder.backend().prepare_tensors(&[&head.value], Direction::Forward)?;
            decoder.set_head(head);
        }
        if let Some(norm) = parameters.at(Place::FinalNorm) {
            let fresh = weights::copied(decoder.backend(), &norm.value)?;
            *decoder.final_norm_mut() = fresh;
        }
        if let Some(spec) = lora {
            plan.kept().iter().try_for_each(|&layer| weights::set_pairs(decoder, parameters, layer, spec.scale()))?;
        }
        Ok(())
    }

    /// Weights of a layer for one pass. One that is trained whole is made of its parameters anew each time: in the dtype of the
    /// computation it would be in memory a second time otherwise, and the numbers are read for a micro-batch of many rows.
    fn weights(&self, layer: usize, direction: Direction) -> Result<Arc<LayerWeights<B>>> {
        match self.is_trained(layer) {
            true => weights::of_parameters(&self.decoder, &self.parameters, layer, direction).map(Arc::new),
            false => self.decoder.layer(layer),
        }
    }

    /// Whether the layer is trained whole.
    fn is_trained(&self, layer: usize) -> bool {
        self.parameters.at(Place::InputNorm(layer)).is_some()
    }

    /// Brings what is not trained into the form the device computes with, so that no later pass pays for it.
    ///
    /// # Errors
    /// Those of [`Decoder::make_ready`].
    pub fn make_ready(&self, progress: &dyn Progress, kept: &str) -> Result<()> {
        let frozen: Vec<usize> = self.plan.kept().iter().copied().filter(|&layer| !self.is_trained(layer)).collect();
        self.decoder.make_ready(&frozen, progress, kept)
    }

    /// The kept layer at which the backward pass may end, and whether it goes on to the embedding.
    fn first_layer(&self) -> (usize, bool) {
        let embed = self.parameters.at(Place::Embed).is_some();
        let trained = |&layer: &usize| {
            self.is_trained(layer)
                || LinearName::ALL.into_iter().any(|name| self.parameters.at(Place::LoraA(layer, name)).is_some())
        };
        let kept = self.plan.kept();
        (if embed { 0 } else { kept.iter().position(trained).unwrap_or(kept.len()) }, embed)
    }

    /// One batch forward and backward: adds d(scale * sum over targets of the objective)/dp to every parameter's gradient.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn accumulate(
        &mut self,
        batch: &Batch,
        targets: BatchTargets<'_>,
        objective: &Objective<'_, B>,
        scale: f32,
    ) -> Result<BatchLoss> {
        let (first, to_embedding) = self.first_layer();
        let mask = self.lora.as_ref().map(|spec| DropoutMask { seed: self.seed, stream: 0, probability: spec.dropout });
        let mask = mask.filter(|mask| mask.probability > 0.0);
        let layers = self.decoder.config().num_hidden_layers * LinearName::ALL.len();
        let pass = Pass { decoder: &self.decoder, batch, mask, first_stream: self.passes * layers as u64 };
        let (backend, config) = (self.decoder.backend(), self.decoder.config());
        let mut x = match self.parameters.at(Place::Embed) {
            None => self.decoder.embed(&batch.ids)?,
            Some(embed) => {
                let mut x = backend.zeros(batch.rows(), config.hidden_size)?;
                backend.gather_rows(GatherRowsArgs { y: &mut x, x: &embed.value, rows: &batch.ids })?;
                x
            }
        };
        let kept = self.plan.kept();
        while self.inputs.len() < kept.len() - first {
            self.inputs.push(backend.zeros(0, 0)?);
        }
        // The first place serves all layers that keep nothing.
        let keeping_from = kept.len().saturating_sub(self.kept_layers);
        let place = |index: usize| (index + 1).saturating_sub(keeping_from);
        while self.activations.len() <= place(kept.len() - 1) {
            self.activations.push(Activations::new(backend)?);
        }
        for (index, &layer) in kept.iter().enumerate() {
            if index >= first {
                let input = &mut self.inputs[index - first];
                backend.resize(input, x.rows(), x.cols())?;
                backend.copy(input, &x)?;
            }
            let weights = self.weights(layer, Direction::Forward)?;
            let activations = &mut self.activations[if index >= first { place(index) } else { 0 }];
            pass.forward(&weights, &mut x, activations, &mut self.work, Need::Output)?;
        }
        // The rows of the targets through norm and head, and back.
        let count = targets.rows.len();
        let mut picked = backend.zeros(count, config.hidden_size)?;
        backend.gather_rows(GatherRowsArgs { y: &mut picked, x: &x, rows: targets.rows })?;
        let mut normed = backend.zeros(count, config.hidden_size)?;
        norm(backend, config, &mut normed, &picked, self.decoder.final_norm())?;
        let mut d_normed = backend.zeros(count, config.hidden_size)?;
        let losses = backend.cross_entropy_backward(CrossEntropyBackwardArgs {
            d_x: &mut d_normed,
            d_head: self.parameters.grad(Place::Head),
            x: &normed,
            head: self.decoder.head(),
            targets: targets.tokens,
            logit_scale: config.logit_scale,
            scale,
            distillation: objective.distillation(),
        })?;
        // `normed` is done with: its memory becomes the gradient of `picked`.
        backend.fill(&mut normed, 0.0)?;
        let d_picked = &mut normed;
        let d_weight = self.parameters.grad(Place::FinalNorm);
        norm_backward(&self.decoder, d_picked, d_weight, &picked, self.decoder.final_norm(), &d_normed)?;
        let mut d = x;
        backend.fill(&mut d, 0.0)?;
        backend.scatter_rows(ScatterRowsArgs { y: &mut d, x: d_picked, rows: targets.rows })?;
        for (index, &layer) in kept.iter().enumerate().skip(first).rev() {
            let input = &self.inputs[index - first];
            if place(index) == 0 {
                let weights = self.weights(layer, Direction::Forward)?;
                pass.again(&weights, input, &mut self.activations[0], &mut self.work)?;
            }
            let weights = self.weights(layer, Direction::Backward)?;
            let activations = &self.activations[place(index)];
            if place(index) > 0 {
                pass.recompute(&weights, input, activations, &mut self.work)?;
            }
            let need = index > first || to_embedding;
            pass.backward(&weights, input, &mut d, activations, &mut self.work, &mut self.parameters, need)?;
        }
        if let Some(d_table) = self.parameters.grad(Place::Embed) {
            backend.embedding_backward(EmbeddingBackwardArgs { d_table, d_y: &d, ids: &batch.ids })?;
        }
        self.passes += 1;
        Ok(objective.sums(losses))
    }

    /// Losses without gradients and without dropout; KL against `reference` (normed hidden states of the same width) where given.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn losses(&mut self, batch: &Batch, targets: BatchTargets<'_>, reference: Option<&B::Tensor>) -> Result<TokenLosses> {
        let mut x = self.decoder.embed(&batch.ids)?;
        for &layer in self.plan.kept() {
            let weights = self.weights(layer, Direction::Forward)?;
            let context = Context::Packed { starts: &batch.starts };
            self.decoder.run_layer(&weights, &mut x, &batch.positions, context, &mut self.scratch)?;
        }
        self.decoder.losses(&self.decoder.normed_rows(&x, targets.rows)?, targets.tokens, reference)
    }
}

/// The family's norm, backward: d_x is added to.
fn norm_backward<B: TrainingBackend>(
    decoder: &Decoder<B>,
    d_x: &mut B::Tensor,
    d_weight: Option<&mut B::Tensor>,
    x: &B::Tensor,
    weight: &B::Tensor,
    d_y: &B::Tensor,
) -> Result<()> {
    let eps = decoder.config().norm_eps;
    match decoder.config().architecture {
        Architecture::Llama | Architecture::Qwen2 => {
            decoder.backend().rms_norm_backward(RmsNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps })
        }
        Architecture::Cohere => {
            decoder.backend().layer_norm_backward(LayerNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps })
        }
    }
}
