//! One decoder layer forward, keeping what its gradient needs, and backward.

use super::norm_backward;
use super::parameter::{Parameters, Place, pair_number};
use crate::error::Result;
use crate::model::batch::Batch;
use crate::model::block::norm;
use crate::model::config::{Architecture, DecoderConfig};
use crate::model::decoder::Decoder;
use crate::model::layer_weights::LayerWeights;
use crate::model::linear_name::{LinearName, Stack};
use crate::ops::{
    AddColsArgs, AttentionArgs, AttentionBackwardArgs, DropoutArgs, DropoutMask, HeadNormArgs, HeadNormBackwardArgs, Heads,
    LinearArgs, LinearBackwardBiasArgs, LinearBackwardInputArgs, LinearBackwardWeightArgs, RopeArgs, Shaped, SwigluArgs,
    SwigluBackwardArgs, TakeColsArgs, TrainingBackend,
};
use crate::tensor::Dtype;

/// A batch on its way through the layers.
pub(super) struct Pass<'a, B: TrainingBackend> {
    pub(super) decoder: &'a Decoder<B>,
    pub(super) batch: &'a Batch,
    /// Dropout on the LoRA pairs' inputs; a pair's stream is `first_stream` and its number.
    pub(super) mask: Option<DropoutMask>,
    pub(super) first_stream: u64,
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// The layer's output.
    Output,
    /// What its gradient needs: the last product is left out.
    Gradient,
}

/// What a layer's forward pass leaves for its gradients; the rest of it is in [`Recomputed`].
pub(super) struct Activations<B: TrainingBackend> {
    /// q and k before their norm, where they have one.
    qkv_before_norm: B::Tensor,
    /// q and k rotated.
    qkv: B::Tensor,
    attended: B::Tensor,
    /// The residual stream between attention and MLP; a parallel block has none.
    middle: B::Tensor,
    gate_up: B::Tensor,
    /// x A^T of each pair.
    lora: [B::Tensor; LinearName::ALL.len()],
}

/// Activations of the layer at hand that are a third of all and follow from the others without a product: computed again for its
/// gradients rather than kept.
struct Recomputed<B: TrainingBackend> {
    /// Norm of the layer's input.
    normed: B::Tensor,
    /// Norm of `middle`.
    middle_normed: B::Tensor,
    /// SwiGLU of `gate_up`.
    activated: B::Tensor,
}

/// Room for what lives within a layer's pass; memory is kept from layer to layer.
pub(super) struct Work<B: TrainingBackend> {
    recomputed: Recomputed<B>,
    /// [rows, hidden_size].
    d_normed: B::Tensor,
    /// [rows, qkv_cols].
    d_qkv: B::Tensor,
    /// [rows, heads * head_dim].
    d_attended: B::Tensor,
    /// [rows, intermediate_size].
    d_activated: B::Tensor,
    /// [rows, 2 intermediate_size].
    d_gate_up: B::Tensor,
    /// [rows, hidden_size]: the gradient of the residual stream, as products round it.
    d_rounded: B::Tensor,
    pair: PairWork<B>,
}

/// Room for one LoRA pair.
struct PairWork<B: TrainingBackend> {
    /// The pair's input behind dropout.
    dropped: B::Tensor,
    /// [rows, out_features].
    wide: B::Tensor,
    /// [rows, r].
    narrow: B::Tensor,
    /// The same, scaled.
    scaled: B::Tensor,
    /// [rows, in_features].
    d_x: B::Tensor,
}

impl<B: TrainingBackend> Activations<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        // What a matrix product reads next may be stored as the product rounds it; the residual stream may not.
        let empty = || backend.scratch(0, 0);
        let [a, b, c, d, e, f, g] = [empty()?, empty()?, empty()?, empty()?, empty()?, empty()?, empty()?];
        Ok(Self {
            qkv_before_norm: empty()?,
            qkv: empty()?,
            attended: empty()?,
            middle: backend.zeros(0, 0)?,
            gate_up: empty()?,
            lora: [a, b, c, d, e, f, g],
        })
    }

    /// Elements a row of a batch takes.
    pub(super) fn row_elements(config: &DecoderConfig, lora_rank: usize) -> usize {
        let heads = config.heads();
        let middle = usize::from(config.architecture != Architecture::Cohere);
        let qkv = if config.use_qk_norm { 2 } else { 1 };
        middle * config.hidden_size
            + qkv * heads.qkv_cols()
            + heads.q_cols()
            + 2 * config.intermediate_size
            + LinearName::ALL.len() * lora_rank
    }
}

impl<B: TrainingBackend> Work<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        let empty = || backend.scratch(0, 0);
        Ok(Self {
            recomputed: Recomputed { normed: empty()?, middle_normed: empty()?, activated: empty()? },
            // Several products add to it.
            d_normed: backend.zeros(0, 0)?,
            d_qkv: empty()?,
            d_attended: empty()?,
            d_activated: empty()?,
            d_gate_up: empty()?,
            d_rounded: empty()?,
            pair: PairWork { dropped: empty()?, wide: empty()?, narrow: empty()?, scaled: empty()?, d_x: empty()? },
        })
    }
}

/// A product and the LoRA pairs beside it.
struct Projection<'a, B: TrainingBackend> {
    weights: &'a LayerWeights<B>,
    stack: Stack,
    x: &'a B::Tensor,
}

impl<B: TrainingBackend> Pass<'_, B> {
    fn heads(&self) -> Heads {
        self.decoder.config().heads()
    }

    /// Factor on q·k.
    fn scale(&self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
        let scale = 1.0 / (self.heads().head_dim as f32).sqrt();
        scale
    }

    fn rope<'a>(&'a self, x: &'a mut B::Tensor) -> RopeArgs<'a, B::Tensor> {
        let (cos, sin) = self.decoder.rotary_tables();
        let heads = self.heads();
        let interleaved = self.decoder.config().architecture == Architecture::Cohere;
        RopeArgs { x, heads: heads.heads + heads.kv_heads, cos, sin, positions: &self.batch.positions, interleaved }
    }

    /// x = layer(x), keeping the activations. The same ops in the same order as [`Decoder::run_layer`].
    pub(super) fn forward(
        &self,
        weights: &LayerWeights<B>,
        x: &mut B::Tensor,
        kept: &mut Activations<B>,
        work: &mut Work<B>,
        need: Need,
    ) -> Result<()> {
        let (backend, config, heads, rows) = (self.decoder.backend(), self.decoder.config(), self.heads(), x.rows());
        let Activations { qkv_before_norm, qkv, attended, middle, gate_up, lora } = kept;
        let Work { recomputed: Recomputed { normed, middle_normed, activated }, pair, .. } = work;
        backend.resize(normed, rows, config.hidden_size)?;
        backend.resize(qkv, rows, heads.qkv_cols())?;
        backend.resize(attended, rows, heads.q_cols())?;
        backend.resize(gate_up, rows, 2 * config.intermediate_size)?;
        backend.resize(activated, rows, config.intermediate_size)?;
        norm(backend, config, normed, x, &weights.input_norm)?;
        self.project(Projection { weights, stack: Stack::Qkv, x: normed }, Some((&mut *qkv, false)), lora, pair)?;
        if let Some([q_norm, k_norm]) = &weights.qk_norm {
            backend.resize(qkv_before_norm, rows, heads.qkv_cols())?;
            backend.copy(qkv_before_norm, qkv)?;
            let eps = config.norm_eps;
            backend.head_norm(HeadNormArgs { x: qkv, weight: q_norm, first_col: 0, eps })?;
            backend.head_norm(HeadNormArgs { x: qkv, weight: k_norm, first_col: heads.q_cols(), eps })?;
        }
        backend.rope(self.rope(qkv))?;
        let (starts, scale) = (&self.batch.starts[..], self.scale());
        backend.attention(AttentionArgs { y: attended, qkv, heads, starts, scale })?;
        self.project(Projection { weights, stack: Stack::O, x: attended }, Some((&mut *x, true)), lora, pair)?;
        let mlp_input = if let Some(post_norm) = &weights.post_norm {
            backend.resize(middle, rows, config.hidden_size)?;
            backend.resize(middle_normed, rows, config.hidden_size)?;
            backend.copy(middle, x)?;
            norm(backend, config, middle_normed, x, post_norm)?;
            middle_normed
        } else {
            normed
        };
        self.project(Projection { weights, stack: Stack::GateUp, x: mlp_input }, Some((&mut *gate_up, false)), lora, pair)?;
        backend.swiglu(SwigluArgs { y: activated, gate_up })?;
        let output = (need == Need::Output).then_some((x, true));
        self.project(Projection { weights, stack: Stack::Down, x: activated }, output, lora, pair)
    }

    /// The pair's input: behind dropout, if there is any.
    fn dropped<'a>(&self, layer: usize, name: LinearName, x: &'a B::Tensor, room: &'a mut B::Tensor) -> Result<&'a B::Tensor> {
        let Some(mask) = self.mask(layer, name) else { return Ok(x) };
        let backend = self.decoder.backend();
        backend.resize(room, x.rows(), x.cols())?;
        backend.dropout(DropoutArgs { y: room, x, mask })?;
        Ok(room)
    }

    fn mask(&self, layer: usize, name: LinearName) -> Option<DropoutMask> {
        self.mask.map(|mask| DropoutMask { stream: self.first_stream + pair_number(layer, name), ..mask })
    }

    /// y = x W^T + bias (+ y), and the pairs' shares; without y only what the pairs' gradients need.
    fn project(
        &self,
        projection: Projection<'_, B>,
        mut y: Option<(&mut B::Tensor, bool)>,
        lora: &mut [B::Tensor; LinearName::ALL.len()],
        room: &mut PairWork<B>,
    ) -> Result<()> {
        let Projection { weights, stack, x } = projection;
        let (backend, layer) = (self.decoder.backend(), weights.layer);
        if let Some((y, accumulate)) = &mut y {
            let (weight, bias) = weights.stack(stack);
            backend.linear(LinearArgs { y, x, weight, bias, accumulate: *accumulate })?;
        }
        let Some(pairs) = self.decoder.layer_lora(layer) else { return Ok(()) };
        for &name in stack.linears() {
            let Some(pair) = pairs.pair(name) else { continue };
            let x = self.dropped(layer, name, x, &mut room.dropped)?;
            let inner = &mut lora[name as usize];
            backend.resize(inner, x.rows(), pair.a.rows())?;
            backend.linear(LinearArgs { y: inner, x, weight: &pair.a, bias: None, accumulate: false })?;
            if let Some((y, _)) = &mut y {
                backend.resize(&mut room.wide, x.rows(), pair.b.rows())?;
                backend.linear(LinearArgs { y: &mut room.wide, x: inner, weight: &pair.b, bias: None, accumulate: false })?;
                let first_col = name.first_col(self.decoder.config());
                backend.add_cols(AddColsArgs { y, x: &room.wide, first_col, scale: pair.scale })?;
            }
        }
        Ok(())
    }

    /// From the gradient `d_y` of a projection's output: the gradients of its parameters, and d_x (+)= that of its input.
    fn project_backward(
        &self,
        projection: Projection<'_, B>,
        d_y: &B::Tensor,
        mut d_x: Option<(&mut B::Tensor, bool)>,
        lora: &[B::Tensor; LinearName::ALL.len()],
        parameters: &mut Parameters<B>,
        room: &mut PairWork<B>,
    ) -> Result<()> {
        let Projection { weights, stack, x } = projection;
        let (backend, config, layer) = (self.decoder.backend(), self.decoder.config(), weights.layer);
        if let Some((d_x, accumulate)) = &mut d_x {
            let weight = weights.stack(stack).0;
            backend.resize(d_x, d_y.rows(), weight.cols())?;
            backend.linear_backward_input(LinearBackwardInputArgs { d_x, d_y, weight, accumulate: *accumulate })?;
        }
        for &name in stack.linears() {
            let first_col = name.first_col(config);
            if let Some(d_weight) = parameters.grad(Place::Weight(layer, name)) {
                backend.linear_backward_weight(LinearBackwardWeightArgs { d_weight, x, d_y, first_col, scale: 1.0 })?;
            }
            if let Some(d_bias) = parameters.grad(Place::Bias(layer, name)) {
                backend.linear_backward_bias(LinearBackwardBiasArgs { d_bias, d_y, first_col })?;
            }
            let Some(pair) = self.decoder.layer_lora(layer).and_then(|pairs| pairs.pair(name)) else { continue };
            let inner = &lora[name as usize];
            if let Some(d_weight) = parameters.grad(Place::LoraB(layer, name)) {
                let args = LinearBackwardWeightArgs { d_weight, x: inner, d_y, first_col, scale: pair.scale };
                backend.linear_backward_weight(args)?;
            }
            let own = if stack.linears().len() == 1 {
                d_y
            } else {
                backend.resize(&mut room.wide, d_y.rows(), pair.b.rows())?;
                backend.take_cols(TakeColsArgs { y: &mut room.wide, x: d_y, first_col })?;
                &room.wide
            };
            backend.resize(&mut room.narrow, d_y.rows(), pair.b.cols())?;
            let (weight, accumulate) = (&pair.b, false);
            let args = LinearBackwardInputArgs { d_x: &mut room.narrow, d_y: own, weight, accumulate };
            backend.linear_backward_input(args)?;
            backend.resize(&mut room.scaled, d_y.rows(), pair.b.cols())?;
            backend.fill(&mut room.scaled, 0.0)?;
            backend.add_cols(AddColsArgs { y: &mut room.scaled, x: &room.narrow, first_col: 0, scale: pair.scale })?;
            if let Some(d_weight) = parameters.grad(Place::LoraA(layer, name)) {
                let x = self.dropped(layer, name, x, &mut room.dropped)?;
                let args = LinearBackwardWeightArgs { d_weight, x, d_y: &room.scaled, first_col: 0, scale: 1.0 };
                backend.linear_backward_weight(args)?;
            }
            let Some((d_x, _)) = &mut d_x else { continue };
            let (d_y, weight) = (&room.scaled, &pair.a);
            match self.mask(layer, name) {
                None => backend.linear_backward_input(LinearBackwardInputArgs { d_x, d_y, weight, accumulate: true })?,
                Some(mask) => {
                    backend.resize(&mut room.d_x, d_x.rows(), d_x.cols())?;
                    let args = LinearBackwardInputArgs { d_x: &mut room.d_x, d_y, weight, accumulate: false };
                    backend.linear_backward_input(args)?;
                    backend.resize(&mut room.dropped, d_x.rows(), d_x.cols())?;
                    backend.dropout(DropoutArgs { y: &mut room.dropped, x: &room.d_x, mask })?;
                    backend.add_cols(AddColsArgs { y: d_x, x: &room.dropped, first_col: 0, scale: 1.0 })?;
                }
            }
        }
        Ok(())
    }

    /// `d` as products round it, once for all that read it; `d` itself where the device stores both alike.
    fn rounded<'a>(&self, d: &'a B::Tensor, room: &'a mut B::Tensor) -> Result<&'a B::Tensor> {
        let backend = self.decoder.backend();
        if backend.scratch_dtype() == Dtype::F32 {
            return Ok(d);
        }
        backend.resize(room, d.rows(), d.cols())?;
        backend.copy(room, d)?;
        Ok(room)
    }

    /// The activations of a layer that kept none, from its `input`.
    pub(super) fn again(
        &self,
        weights: &LayerWeights<B>,
        input: &B::Tensor,
        kept: &mut Activations<B>,
        work: &mut Work<B>,
    ) -> Result<()> {
        let backend = self.decoder.backend();
        // The norm's backward pass needs the input once more, and the forward pass changes it.
        let mut own_input = backend.zeros(input.rows(), input.cols())?;
        backend.copy(&mut own_input, input)?;
        self.forward(weights, &mut own_input, kept, work, Need::Gradient)
    }

    /// What a layer that kept its activations did not keep.
    pub(super) fn recompute(
        &self,
        weights: &LayerWeights<B>,
        input: &B::Tensor,
        kept: &Activations<B>,
        work: &mut Work<B>,
    ) -> Result<()> {
        let (backend, config, rows) = (self.decoder.backend(), self.decoder.config(), input.rows());
        let Recomputed { normed, middle_normed, activated } = &mut work.recomputed;
        backend.resize(normed, rows, config.hidden_size)?;
        backend.resize(activated, rows, config.intermediate_size)?;
        norm(backend, config, normed, input, &weights.input_norm)?;
        if let Some(post_norm) = &weights.post_norm {
            backend.resize(middle_normed, rows, config.hidden_size)?;
            norm(backend, config, middle_normed, &kept.middle, post_norm)?;
        }
        backend.swiglu(SwigluArgs { y: activated, gate_up: &kept.gate_up })
    }

    /// From the gradient `d` of the layer's output to that of its input, in place. `kept`: the activations of its forward
    /// pass from `input`; what is recomputed lies in `work`. `need_input`: whether anything before the layer is trained.
    #[expect(clippy::too_many_arguments, reason = "a layer's state lies in as many places; each is of a type of its own")]
    pub(super) fn backward(
        &self,
        weights: &LayerWeights<B>,
        input: &B::Tensor,
        d: &mut B::Tensor,
        kept: &Activations<B>,
        work: &mut Work<B>,
        parameters: &mut Parameters<B>,
        need_input: bool,
    ) -> Result<()> {
        let (backend, config, heads, layer) = (self.decoder.backend(), self.decoder.config(), self.heads(), weights.layer);
        let rows = d.rows();
        let Activations { qkv_before_norm, qkv, attended, middle, gate_up, lora } = kept;
        let Work { recomputed, d_normed, d_qkv, d_attended, d_activated, d_gate_up, d_rounded, pair } = work;
        let Recomputed { normed, middle_normed, activated } = &*recomputed;
        let sequential = weights.post_norm.is_some();
        let mlp_input = if sequential { middle_normed } else { normed };

        let down = Projection { weights, stack: Stack::Down, x: activated };
        self.project_backward(down, self.rounded(d, d_rounded)?, Some((&mut *d_activated, false)), lora, parameters, pair)?;
        backend.resize(d_gate_up, rows, gate_up.cols())?;
        backend.swiglu_backward(SwigluBackwardArgs { d_gate_up, gate_up, d_y: d_activated })?;
        let up = Projection { weights, stack: Stack::GateUp, x: mlp_input };
        self.project_backward(up, d_gate_up, Some((&mut *d_normed, false)), lora, parameters, pair)?;
        if let Some(post_norm) = &weights.post_norm {
            let d_weight = parameters.grad(Place::PostNorm(layer));
            norm_backward(self.decoder, d, d_weight, middle, post_norm, d_normed)?;
        }

        let out = Projection { weights, stack: Stack::O, x: attended };
        self.project_backward(out, self.rounded(d, d_rounded)?, Some((&mut *d_attended, false)), lora, parameters, pair)?;
        backend.resize(d_qkv, rows, heads.qkv_cols())?;
        let (starts, scale) = (&self.batch.starts[..], self.scale());
        let args = AttentionBackwardArgs { d_qkv, qkv, y: attended, d_y: d_attended, heads, starts, scale };
        backend.attention_backward(args)?;
        backend.rope_backward(self.rope(d_qkv))?;
        if let Some([q_norm, k_norm]) = &weights.qk_norm {
            let norms = [(Place::QNorm(layer), q_norm, 0), (Place::KNorm(layer), k_norm, heads.q_cols())];
            for (place, weight, first_col) in norms {
                let d_weight = parameters.grad(place);
                let (x, eps) = (qkv_before_norm, config.norm_eps);
                backend.head_norm_backward(HeadNormBackwardArgs { d: d_qkv, d_weight, x, weight, first_col, eps })?;
            }
        }
        // A parallel block's norm feeds attention and MLP: both gradients add up.
        let trained = parameters.at(Place::InputNorm(layer)).is_some();
        let d_x = (need_input || trained).then_some((&mut *d_normed, !sequential));
        let qkv = Projection { weights, stack: Stack::Qkv, x: normed };
        self.project_backward(qkv, d_qkv, d_x, lora, parameters, pair)?;
        if need_input || trained {
            let d_weight = parameters.grad(Place::InputNorm(layer));
            norm_backward(self.decoder, d, d_weight, input, &weights.input_norm, d_normed)?;
        }
        Ok(())
    }
}
