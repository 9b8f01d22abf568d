//! Which tensors a model consists of, in transformers' names and shapes.

use super::config::{Architecture, DecoderConfig};

/// Begins the name of every tensor of a layer, the layer's number follows.
pub const LAYERS_PREFIX: &str = "model.layers.";

/// The layer a tensor belongs to by its name, `model.layers.3.mlp.down_proj.weight` -> 3.
#[must_use]
pub fn layer_of(name: &str) -> Option<usize> {
    let (digits, _) = name.strip_prefix(LAYERS_PREFIX)?.split_once('.')?;
    // `parse` would take "+3" and "03": names that no layer has.
    (digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'))).then(|| digits.parse().ok())?
}

/// Names (after `model.layers.N.`) and shapes of the tensors of one layer.
#[must_use]
pub fn layer_tensors(c: &DecoderConfig) -> Vec<(&'static str, Vec<usize>)> {
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let mut set = vec![
        ("input_layernorm.weight", vec![c.hidden_size]),
        ("self_attn.q_proj.weight", vec![q, c.hidden_size]),
        ("self_attn.k_proj.weight", vec![kv, c.hidden_size]),
        ("self_attn.v_proj.weight", vec![kv, c.hidden_size]),
        ("self_attn.o_proj.weight", vec![c.hidden_size, q]),
        ("mlp.gate_proj.weight", vec![c.intermediate_size, c.hidden_size]),
        ("mlp.up_proj.weight", vec![c.intermediate_size, c.hidden_size]),
        ("mlp.down_proj.weight", vec![c.hidden_size, c.intermediate_size]),
    ];
    match c.architecture {
        // The parallel block has one norm for both branches.
        Architecture::Cohere => {}
        Architecture::Llama | Architecture::Qwen2 => set.push(("post_attention_layernorm.weight", vec![c.hidden_size])),
    }
    if c.qkv_bias {
        set.push(("self_attn.q_proj.bias", vec![q]));
        set.push(("self_attn.k_proj.bias", vec![kv]));
        set.push(("self_attn.v_proj.bias", vec![kv]));
    }
    if c.o_bias {
        set.push(("self_attn.o_proj.bias", vec![c.hidden_size]));
    }
    if c.mlp_bias {
        set.push(("mlp.gate_proj.bias", vec![c.intermediate_size]));
        set.push(("mlp.up_proj.bias", vec![c.intermediate_size]));
        set.push(("mlp.down_proj.bias", vec![c.hidden_size]));
    }
    if c.use_qk_norm {
        set.push(("self_attn.q_norm.weight", vec![c.num_attention_heads, c.head_dim]));
        set.push(("self_attn.k_norm.weight", vec![c.num_key_value_heads, c.head_dim]));
    }
    set
}

/// Names and shapes of the tensors outside the layers.
#[must_use]
pub fn outer_tensors(c: &DecoderConfig) -> Vec<(&'static str, Vec<usize>)> {
    let mut set =
        vec![("model.embed_tokens.weight", vec![c.vocab_size, c.hidden_size]), ("model.norm.weight", vec![c.hidden_size])];
    if !c.tie_word_embeddings {
        set.push(("lm_head.weight", vec![c.vocab_size, c.hidden_size]));
    }
    set
}

/// True for buffers that old releases of transformers saved and every release ignores: the rotary frequencies.
#[must_use]
pub fn is_ignored(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}
