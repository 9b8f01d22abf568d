//! One decoder layer, forward. The only place that knows in which order its ops run.

use super::config::{Architecture, DecoderConfig};
use super::decoder::Decoder;
use super::layer_weights::LayerWeights;
use super::linear_name::Stack;
use crate::error::Result;
use crate::ops::{
    AddColsArgs, AttentionArgs, AttentionPagedArgs, Backend, HeadNormArgs, Heads, KvCache, KvWriteArgs, LayerNormArgs,
    LinearArgs, LinearSwigluArgs, PagedRow, RmsNormArgs, RopeArgs, Shaped, SwigluArgs,
};

/// What the rows of a batch attend to.
pub enum Context<'a, B: Backend> {
    /// Whole sequences, packed: rows of one sequence see each other, causally.
    Packed {
        /// First row of each sequence, then the number of rows.
        starts: &'a [u32],
    },
    /// Rows that continue sequences whose past lies in pages.
    Paged {
        /// The pages.
        pages: &'a mut <B as KvCache>::KvPages,
        /// Where each row's own k and v go.
        slots: &'a [u32],
        /// What each row sees, itself included.
        rows: &'a [PagedRow<'a>],
    },
}

/// Intermediate activations, kept from call to call so that memory is taken from the system once.
pub struct Scratch<B: Backend> {
    normed: B::Tensor,
    qkv: B::Tensor,
    attended: B::Tensor,
    gate_up: B::Tensor,
    activated: B::Tensor,
    lora: LoraScratch<B>,
}

/// What a LoRA pair computes on the way: x A^T, and that times B^T.
pub struct LoraScratch<B: Backend> {
    down: B::Tensor,
    up: B::Tensor,
}

impl<B: Backend> Scratch<B> {
    /// Empty; grows with the first batch.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            normed: backend.scratch(0, 0)?,
            qkv: backend.scratch(0, 0)?,
            attended: backend.scratch(0, 0)?,
            gate_up: backend.scratch(0, 0)?,
            activated: backend.scratch(0, 0)?,
            lora: LoraScratch { down: backend.scratch(0, 0)?, up: backend.scratch(0, 0)? },
        })
    }

    fn fit(&mut self, backend: &B, config: &DecoderConfig, rows: usize) -> Result<()> {
        let heads = config.heads();
        backend.resize(&mut self.normed, rows, config.hidden_size)?;
        backend.resize(&mut self.qkv, rows, heads.qkv_cols())?;
        backend.resize(&mut self.attended, rows, heads.q_cols())?;
        backend.resize(&mut self.gate_up, rows, 2 * config.intermediate_size)?;
        backend.resize(&mut self.activated, rows, config.intermediate_size)
    }
}

impl DecoderConfig {
    /// Cut of a fused qkv row.
    #[must_use]
    pub fn heads(&self) -> Heads {
        Heads { heads: self.num_attention_heads, kv_heads: self.num_key_value_heads, head_dim: self.head_dim }
    }
}

impl<B: Backend> Decoder<B> {
    /// x = layer(x), in place. `x`: [rows, hidden_size]; `positions`: one a row.
    ///
    /// Llama, Qwen2: x += attention(norm(x)); x += mlp(norm(x)). Cohere: h = norm(x); x += attention(h); x += mlp(h).
    ///
    /// # Errors
    /// Those of the ops.
    pub fn run_layer(
        &self,
        weights: &LayerWeights<B>,
        x: &mut B::Tensor,
        positions: &[u32],
        context: Context<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (backend, config) = (self.backend(), self.config());
        scratch.fit(backend, config, x.rows())?;
        norm(backend, config, &mut scratch.normed, x, &weights.input_norm)?;
        self.attend(weights, positions, context, scratch)?;
        self.project(weights, Stack::O, x, &scratch.attended, true, &mut scratch.lora)?;
        if let Some(post_norm) = &weights.post_norm {
            norm(backend, config, &mut scratch.normed, x, post_norm)?;
        }
        self.activate(weights, scratch)?;
        self.project(weights, Stack::Down, x, &scratch.activated, true, &mut scratch.lora)
    }

    /// y = x W^T + bias (+ y where `accumulate`), then, for each linear of the stack that has a LoRA pair,
    /// y\[its columns\] += scale * (x A^T) B^T.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn project(
        &self,
        weights: &LayerWeights<B>,
        stack: Stack,
        y: &mut B::Tensor,
        x: &B::Tensor,
        accumulate: bool,
        scratch: &mut LoraScratch<B>,
    ) -> Result<()> {
        let backend = self.backend();
        let (weight, bias) = weights.stack(stack);
        backend.linear(LinearArgs { y, x, weight, bias, accumulate })?;
        let Some(lora) = self.layer_lora(weights.layer) else { return Ok(()) };
        for &name in stack.linears() {
            let Some(pair) = lora.pair(name) else { continue };
            let LoraScratch { down, up } = &mut *scratch;
            backend.resize(down, x.rows(), pair.a.rows())?;
            backend.linear(LinearArgs { y: down, x, weight: &pair.a, bias: None, accumulate: false })?;
            backend.resize(up, x.rows(), pair.b.rows())?;
            backend.linear(LinearArgs { y: up, x: down, weight: &pair.b, bias: None, accumulate: false })?;
            let first_col = name.first_col(self.config());
            backend.add_cols(AddColsArgs { y, x: up, first_col, scale: pair.scale })?;
        }
        Ok(())
    }

    /// scratch.activated = what the MLP makes of scratch.normed, before down_proj.
    fn activate(&self, weights: &LayerWeights<B>, scratch: &mut Scratch<B>) -> Result<()> {
        let backend = self.backend();
        let Scratch { normed: x, gate_up, activated: y, lora, .. } = scratch;
        // What an adapter adds comes between the product and the activation.
        if self.layer_lora(weights.layer).is_some() {
            self.project(weights, Stack::GateUp, gate_up, x, false, lora)?;
            return backend.swiglu(SwigluArgs { y, gate_up });
        }
        let (weight, bias) = weights.stack(Stack::GateUp);
        backend.linear_swiglu(LinearSwigluArgs { y, gate_up, x, weight, bias })
    }

    /// scratch.attended = attention heads of scratch.normed, before o_proj.
    fn attend(
        &self,
        weights: &LayerWeights<B>,
        positions: &[u32],
        context: Context<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (backend, config) = (self.backend(), self.config());
        let heads = config.heads();
        let Scratch { normed, qkv, attended, lora, .. } = scratch;
        self.project(weights, Stack::Qkv, qkv, normed, false, lora)?;
        if let Some([q_norm, k_norm]) = &weights.qk_norm {
            backend.head_norm(HeadNormArgs { x: qkv, weight: q_norm, first_col: 0, eps: config.norm_eps })?;
            backend.head_norm(HeadNormArgs { x: qkv, weight: k_norm, first_col: heads.q_cols(), eps: config.norm_eps })?;
        }
        let (cos, sin) = self.rotary_tables();
        let interleaved = config.architecture == Architecture::Cohere;
        let rope = |x| RopeArgs { x, heads: heads.heads + heads.kv_heads, cos, sin, positions, interleaved };
        #[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
        let scale = 1.0 / (heads.head_dim as f32).sqrt();
        match context {
            Context::Packed { starts } => {
                backend.rope(rope(qkv))?;
                backend.attention(AttentionArgs { y: attended, qkv, heads, starts, scale })
            }
            Context::Paged { pages, slots, rows } => {
                backend.kv_write(KvWriteArgs { pages, rope: rope(qkv), heads, slots })?;
                backend.attention_paged(AttentionPagedArgs { y: attended, qkv, heads, pages, rows, scale })
            }
        }
    }
}

/// The family's norm: RMSNorm, or LayerNorm for Cohere.
pub(super) fn norm<B: Backend>(
    backend: &B,
    config: &DecoderConfig,
    y: &mut B::Tensor,
    x: &B::Tensor,
    weight: &B::Tensor,
) -> Result<()> {
    let eps = config.norm_eps;
    match config.architecture {
        Architecture::Llama | Architecture::Qwen2 => backend.rms_norm(RmsNormArgs { y, x, weight, eps }),
        Architecture::Cohere => backend.layer_norm(LayerNormArgs { y, x, weight, eps }),
    }
}
