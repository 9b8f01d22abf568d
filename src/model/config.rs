//! config.json -> [`DecoderConfig`]. An option that we do not compute is refused by name; nothing is guessed.

/// The decoder families we compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`: sequential block, RMSNorm.
    Llama,
    /// `Qwen2ForCausalLM`: as Llama, with biases on q, k and v.
    Qwen2,
    /// `CohereForCausalLM`: parallel block, LayerNorm, interleaved rotary, logit_scale, tied head.
    Cohere,
}

/// How rotary frequencies are scaled (`rope_scaling`, or `rope_parameters` of newer folders).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Key `factor`.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, smooth in between.
    Llama3 {
        /// Key `factor`.
        factor: f64,
        /// Key `low_freq_factor`.
        low_freq_factor: f64,
        /// Key `high_freq_factor`.
        high_freq_factor: f64,
        /// Key `original_max_position_embeddings`.
        original_max_position_embeddings: usize,
    },
}

/// Everything the forward pass needs to know of config.json, checked: no field is zero, head counts divide.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family.
    pub architecture: Architecture,
    /// Key of the same name, as all below.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Depth.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides num_attention_heads.
    pub num_key_value_heads: usize,
    /// Even; hidden_size / num_attention_heads where the file does not say.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// `rms_norm_eps` or `layer_norm_eps`.
    pub norm_eps: f32,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// Frequency scaling.
    pub rope_scaling: RopeScaling,
    /// Biases on q, k, v (`attention_bias` of Llama, always in Qwen2).
    pub qkv_bias: bool,
    /// Bias on o_proj (`attention_bias` of Llama).
    pub o_bias: bool,
    /// Biases on gate, up and down (`mlp_bias`).
    pub mlp_bias: bool,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Factor on the logits (Cohere), 1 elsewhere.
    pub logit_scale: f32,
    /// LayerNorm on the heads of q and k (Cohere).
    pub use_qk_norm: bool,
}
