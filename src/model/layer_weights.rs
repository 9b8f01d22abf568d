//! The weights of one decoder layer on a device.

use super::config::{Architecture, DecoderConfig};
use super::folder::ModelFolder;
use super::linear_name::Stack;
use super::nf4_weights::Weight;
use crate::error::Result;
use crate::ops::Backend;
use crate::quant::Nf4Tensor;
use crate::tensor::HostTensor;

/// Weights of one layer, q, k, v and gate, up stacked so that each needs one product.
pub struct LayerWeights<B: Backend> {
    /// The layer's number in the folder.
    pub layer: usize,
    /// `input_layernorm`, [1, hidden_size].
    pub input_norm: B::Tensor,
    /// `q_proj`, `k_proj`, `v_proj`: [qkv_cols, hidden_size].
    pub qkv: B::Matrix,
    /// [1, qkv_cols].
    pub qkv_bias: Option<B::Tensor>,
    /// `q_norm` and `k_norm`: [heads, head_dim], [kv_heads, head_dim].
    pub qk_norm: Option<[B::Tensor; 2]>,
    /// `o_proj`: [hidden_size, heads * head_dim].
    pub o: B::Matrix,
    /// [1, hidden_size].
    pub o_bias: Option<B::Tensor>,
    /// `post_attention_layernorm`; a parallel block (Cohere) has none.
    pub post_norm: Option<B::Tensor>,
    /// `gate_proj`, `up_proj`: [2 * intermediate_size, hidden_size].
    pub gate_up: B::Matrix,
    /// [1, 2 * intermediate_size].
    pub gate_up_bias: Option<B::Tensor>,
    /// `down_proj`: [hidden_size, intermediate_size].
    pub down: B::Matrix,
    /// [1, hidden_size].
    pub down_bias: Option<B::Tensor>,
}

impl<B: Backend> LayerWeights<B> {
    /// Weights of layer `layer` from the folder's mapped bytes.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) for a missing tensor; [`Error::Device`](crate::Error::Device) when memory is short.
    pub fn load(backend: &B, folder: &ModelFolder, layer: usize) -> Result<Self> {
        let config = &folder.config;
        let loader = Loader { backend, folder, prefix: format!("model.layers.{layer}.") };
        Ok(Self {
            layer,
            input_norm: loader.vector(&["input_layernorm.weight"])?,
            qkv: loader.matrix(&["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"])?,
            qkv_bias: loader
                .vector_if(config.qkv_bias, &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"])?,
            qk_norm: if config.use_qk_norm {
                Some([
                    loader.heads("self_attn.q_norm.weight", config, config.num_attention_heads)?,
                    loader.heads("self_attn.k_norm.weight", config, config.num_key_value_heads)?,
                ])
            } else {
                None
            },
            o: loader.matrix(&["self_attn.o_proj.weight"])?,
            o_bias: loader.vector_if(config.o_bias, &["self_attn.o_proj.bias"])?,
            post_norm: loader.vector_if(config.architecture != Architecture::Cohere, &["post_attention_layernorm.weight"])?,
            gate_up: loader.matrix(&["mlp.gate_proj.weight", "mlp.up_proj.weight"])?,
            gate_up_bias: loader.vector_if(config.mlp_bias, &["mlp.gate_proj.bias", "mlp.up_proj.bias"])?,
            down: loader.matrix(&["mlp.down_proj.weight"])?,
            down_bias: loader.vector_if(config.mlp_bias, &["mlp.down_proj.bias"])?,
        })
    }

    /// The matrix of linears that share one product, and their biases.
    pub fn stack(&self, stack: Stack) -> (&B::Matrix, Option<&B::Tensor>) {
        match stack {
            Stack::Qkv => (&self.qkv, self.qkv_bias.as_ref()),
            Stack::O => (&self.o, self.o_bias.as_ref()),
            Stack::GateUp => (&self.gate_up, self.gate_up_bias.as_ref()),
            Stack::Down => (&self.down, self.down_bias.as_ref()),
        }
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    folder: &'a ModelFolder,
    prefix: String,
}

impl<B: Backend> Loader<'_, B> {
    fn parts(&self, names: &[&str]) -> Result<Vec<HostTensor>> {
        names.iter().map(|name| self.folder.tensor(&format!("{}{name}", self.prefix)).cloned()).collect()
    }

    /// The named matrices stacked: all dense, or all in four bits; where they are mixed, all dense.
    fn matrix(&self, names: &[&str]) -> Result<B::Matrix> {
        let weights =
            names.iter().map(|name| self.folder.weight(&format!("{}{name}", self.prefix))).collect::<Result<Vec<_>>>()?;
        let nf4: Vec<Nf4Tensor> =
            weights.iter().filter_map(|w| if let Weight::Nf4(nf4) = w { Some((*nf4).clone()) } else { None }).collect();
        if nf4.len() == weights.len() {
            return self.backend.prepare_nf4(&nf4);
        }
        let dense = weights.iter().map(|weight| match weight {
            Weight::Dense(dense) => Ok((*dense).clone()),
            Weight::Nf4(nf4) => nf4.to_dense(),
        });
        self.backend.prepare(&dense.collect::<Result<Vec<_>>>()?)
    }

    /// The named vectors one behind the other, as [1, n].
    fn vector(&self, names: &[&str]) -> Result<B::Tensor> {
        let values: Vec<f32> = self.parts(names)?.iter().flat_map(HostTensor::to_f32).collect();
        self.backend.upload(1, values.len(), &values)
    }

    fn vector_if(&self, wanted: bool, names: &[&str]) -> Result<Option<B::Tensor>> {
        if wanted { self.vector(names).map(Some) } else { Ok(None) }
    }

    fn heads(&self, name: &str, config: &DecoderConfig, heads: usize) -> Result<B::Tensor> {
        let values: Vec<f32> = self.parts(&[name])?.iter().flat_map(HostTensor::to_f32).collect();
        self.backend.upload(heads, config.head_dim, &values)
    }
}
