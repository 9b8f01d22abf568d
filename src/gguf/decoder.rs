//! Names, shapes and config.json of the decoder families, from GGUF's keys and tensors.
//!
//! Every key under the architecture's name and every tensor must be one that is understood: an option that is overlooked
//! here would give a folder that computes something else.

use super::reader::{Gguf, TensorInfo};
use super::rope_factors::Llama3;
use crate::error::{Error, Result};
use crate::tensor::Dtype;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeSet;

/// The families, as GGUF names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Qwen2,
    CommandR,
}

impl Family {
    fn from_name(gguf: &Gguf, name: &str) -> Result<Self> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "command-r" => Ok(Self::CommandR),
            other => Err(Error::unsupported(
                gguf.path(),
                "key general.architecture",
                format!("{other} is not supported; these are: llama, qwen2, command-r"),
            )),
        }
    }

    const fn key_prefix(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::CommandR => "command-r",
        }
    }

    /// `architectures` and `model_type` of config.json.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Llama => ("LlamaForCausalLM", "llama"),
            Self::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Self::CommandR => ("CohereForCausalLM", "cohere"),
        }
    }
}

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// Name in the Hugging Face folder.
    pub name: String,
    /// Name in the GGUF file.
    pub source: String,
    /// Where it lies and how it is stored.
    pub info: TensorInfo,
    /// llama.cpp interleaves the two halves of each head's rows in Llama's q and k, because its rotary op wants pairs side
    /// by side: the number of heads whose rows go back to halves, or `None` where rows stay in order.
    pub interleaved_heads: Option<usize>,
}

/// What the folder will hold.
#[derive(Debug)]
pub struct Plan {
    /// `LlamaForCausalLM` and so on.
    pub architecture: &'static str,
    /// Layers.
    pub num_hidden_layers: usize,
    /// config.json, without `torch_dtype`.
    pub config: Map<String, Json>,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tensors in the order of the forward pass.
    pub tensors: Vec<PlannedTensor>,
}

/// Sizes that the tensors' shapes follow from.
struct Sizes {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    context: usize,
}

/// Collects tensors and remembers which of the file's have been claimed.
struct Collector<'a> {
    gguf: &'a Gguf,
    claimed: BTreeSet<String>,
    tensors: Vec<PlannedTensor>,
}

impl Collector<'_> {
    fn has(&self, source: &str) -> bool {
        self.gguf.tensors().contains_key(source)
    }

    fn take(&mut self, name: String, source: String, shape: &[usize], interleaved_heads: Option<usize>) -> Result<()> {
        let at = || format!("tensor {source}");
        let info = self.gguf.tensors().get(&source).ok_or_else(|| Error::data(self.gguf.path(), at(), "missing"))?;
        if info.shape != shape {
            return Err(Error::data(self.gguf.path(), at(), format!("has shape {:?}, expected {shape:?}", info.shape)));
        }
        if interleaved_heads.is_some() && shape.len() == 1 && info.kind.block_elements() != 1 {
            return Err(Error::unsupported(self.gguf.path(), at(), format!("a bias of type {}", info.kind)));
        }
        self.claimed.insert(source.clone());
        self.tensors.push(PlannedTensor { name, source, info: info.clone(), interleaved_heads });
        Ok(())
    }

    /// Whether every layer has `suffixes`, or none has any.
    fn all_or_none(&self, layers: usize, suffixes: &[&str]) -> Result<bool> {
        let names = || (0..layers).flat_map(|layer| suffixes.iter().map(move |suffix| format!("blk.{layer}.{suffix}")));
        if !names().any(|name| self.has(&name)) {
            return Ok(false);
        }
        match names().find(|name| !self.has(name)) {
            None => Ok(true),
            Some(absent) => {
                Err(Error::data(self.gguf.path(), format!("tensor {absent}"), "missing, while others of its kind are there"))
            }
        }
    }
}

/// Reads the architecture's keys and tensors.
///
/// # Errors
/// [`Error::Data`] or [`Error::Unsupported`] naming the key or tensor.
pub fn plan(gguf: &Gguf) -> Result<Plan> {
    let name = gguf.text("general.architecture")?.ok_or_else(|| gguf.missing("general.architecture"))?;
    let family = Family::from_name(gguf, name)?;
    refuse_unknown_keys(gguf, family)?;
    let sizes = sizes(gguf, family)?;
    let mut collector = Collector { gguf, claimed: BTreeSet::new(), tensors: Vec::new() };
    let mut config = common_config(gguf, family, &sizes)?;

    collector.take("model.embed_tokens.weight".into(), "token_embd.weight".into(), &[sizes.vocab, sizes.hidden], None)?;
    layers(&mut collector, family, &sizes, &mut config)?;
    collector.take("model.norm.weight".into(), "output_norm.weight".into(), &[sizes.hidden], None)?;
    let tied = family == Family::CommandR || !collector.has("output.weight");
    if !tied {
        collector.take("lm_head.weight".into(), "output.weight".into(), &[sizes.vocab, sizes.hidden], None)?;
    }
    config.insert("tie_word_embeddings".into(), tied.into());
    if family == Family::Llama && collector.has("rope_freqs.weight") {
        let scaling = llama3_scaling(gguf, &sizes, &config)?;
        config.insert("rope_scaling".into(), scaling);
        collector.claimed.insert("rope_freqs.weight".into());
    }
    if let Some(unknown) = gguf.tensors().keys().find(|name| !collector.claimed.contains(*name)) {
        return Err(Error::unsupported(
            gguf.path(),
            format!("tensor {unknown}"),
            format!("is not one that a {} model with {} layers has here", family.key_prefix(), sizes.layers),
        ));
    }
    Ok(Plan {
        architecture: family.names().0,
        num_hidden_layers: sizes.layers,
        config,
        max_position_embeddings: sizes.context,
        vocab_size: sizes.vocab,
        tensors: collector.tensors,
    })
}

/// Keys under the architecture's name that are read below, or whose only supported value is the neutral one.
fn refuse_unknown_keys(gguf: &Gguf, family: Family) -> Result<()> {
    const READ: [&str; 20] = [
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "logit_scale",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.type",
        "vocab_size",
        // What scaling was trained with; says nothing about what to compute.
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
    ];
    let prefix = family.key_prefix();
    for key in gguf.keys() {
        let Some(option) = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) else { continue };
        if READ.contains(&option) {
            continue;
        }
        let neutral = match option {
            "expert_count" | "expert_used_count" => gguf.size(key)? == Some(0),
            "attention.causal" => gguf.flag(key)? == Some(true),
            "use_parallel_residual" => gguf.flag(key)? == Some(family == Family::CommandR),
            _ => false,
        };
        if !neutral {
            return Err(Error::unsupported(gguf.path(), format!("key {key}"), "this option is not supported"));
        }
    }
    Ok(())
}

/// A size that must be there and not be zero.
fn positive(gguf: &Gguf, key: &str) -> Result<usize> {
    match gguf.size(key)?.ok_or_else(|| gguf.missing(key))? {
        0 => Err(gguf.bad_key(key, "must not be 0")),
        n => Ok(n),
    }
}

fn sizes(gguf: &Gguf, family: Family) -> Result<Sizes> {
    let prefix = family.key_prefix();
    let key = |name: &str| format!("{prefix}.{name}");
    let hidden = positive(gguf, &key("embedding_length"))?;
    let layers = positive(gguf, &key("block_count"))?;
    if layers > gguf.tensors().len() {
        return Err(gguf.bad_key(&key("block_count"), format!("{layers} layers in a file of {} tensors", gguf.tensors().len())));
    }
    let heads = positive(gguf, &key("attention.head_count"))?;
    let kv_heads = gguf.size(&key("attention.head_count_kv"))?.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(gguf.bad_key(&key("attention.head_count_kv"), format!("{heads} heads do not divide by {kv_heads}")));
    }
    let head_dim = match gguf.size(&key("attention.key_length"))? {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(gguf.bad_key(&key("attention.head_count"), format!("width {hidden} does not divide by {heads} heads")));
        }
    };
    if head_dim == 0 || !head_dim.is_multiple_of(2) || heads.checked_mul(head_dim).is_none() {
        return Err(gguf.bad_key(&key("attention.key_length"), format!("heads of {head_dim} dimensions")));
    }
    for same in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = gguf.size(&key(same))?
            && found != head_dim
        {
            return Err(Error::unsupported(
                gguf.path(),
                format!("key {}", key(same)),
                format!("is {found}; only the dimension of the heads ({head_dim}) is supported"),
            ));
        }
    }
    if family != Family::Llama && heads * head_dim != hidden {
        return Err(Error::unsupported(
            gguf.path(),
            format!("key {}", key("attention.key_length")),
            format!("{heads} heads of {head_dim} are not the width {hidden}; this family's config.json cannot say so"),
        ));
    }
    let vocab = gguf
        .tensors()
        .get("token_embd.weight")
        .and_then(|info| info.shape.first().copied())
        .ok_or_else(|| Error::data(gguf.path(), "tensor token_embd.weight", "missing"))?;
    let context = positive(gguf, &key("context_length"))?;
    if let Some(window) = gguf.size(&key("attention.sliding_window"))?
        && window != 0
        && window < context
    {
        return Err(Error::unsupported(
            gguf.path(),
            format!("key {}", key("attention.sliding_window")),
            format!("a window of {window} is not supported"),
        ));
    }
    let intermediate = positive(gguf, &key("feed_forward_length"))?;
    Ok(Sizes { hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context })
}

/// An f32 as people write it: 1e-5, not 9.999999747378752e-6.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

fn common_config(gguf: &Gguf, family: Family, sizes: &Sizes) -> Result<Map<String, Json>> {
    let prefix = family.key_prefix();
    let key = |name: &str| format!("{prefix}.{name}");
    let (architecture, model_type) = family.names();
    let (norm_key, norm_name) = match family {
        Family::Llama | Family::Qwen2 => (key("attention.layer_norm_rms_epsilon"), "rms_norm_eps"),
        Family::CommandR => (key("attention.layer_norm_epsilon"), "layer_norm_eps"),
    };
    let eps = gguf.float(&norm_key)?.ok_or_else(|| gguf.missing(&norm_key))?;
    if eps <= 0.0 {
        return Err(gguf.bad_key(&norm_key, format!("{eps} is not positive")));
    }
    let theta = gguf.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    if theta <= 0.0 {
        return Err(gguf.bad_key(&key("rope.freq_base"), format!("{theta} is not positive")));
    }
    let mut config = Map::new();
    let mut set = |name: &str, value: Json| {
        config.insert(name.to_owned(), value);
    };
    set("architectures", json!([architecture]));
    set("attention_dropout", json!(0.0));
    set("bos_token_id", token_id(gguf, "bos", sizes.vocab)?);
    set("eos_token_id", token_id(gguf, "eos", sizes.vocab)?);
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(sizes.hidden));
    set("initializer_range", json!(0.02));
    set("intermediate_size", json!(sizes.intermediate));
    set("max_position_embeddings", json!(sizes.context));
    set("model_type", json!(model_type));
    set("num_attention_heads", json!(sizes.heads));
    set("num_hidden_layers", json!(sizes.layers));
    set("num_key_value_heads", json!(sizes.kv_heads));
    set("pad_token_id", token_id(gguf, "padding", sizes.vocab)?);
    set(norm_name, json!(decimal(eps)));
    set("rope_scaling", linear_scaling(gguf, prefix)?);
    set("rope_theta", json!(decimal(theta)));
    set("use_cache", json!(true));
    set("vocab_size", json!(sizes.vocab));
    match family {
        Family::Llama => {
            set("head_dim", json!(sizes.head_dim));
            set("pretraining_tp", json!(1));
        }
        Family::Qwen2 => {
            set("max_window_layers", json!(sizes.layers));
            set("sliding_window", Json::Null);
            set("use_sliding_window", json!(false));
        }
        Family::CommandR => {}
    }
    let scale = gguf.float(&key("logit_scale"))?;
    match (family, scale) {
        (Family::CommandR, Some(scale)) => {
            config.insert("logit_scale".into(), json!(decimal(scale)));
        }
        (Family::CommandR, None) => return Err(gguf.missing(&key("logit_scale"))),
        (_, Some(scale)) if scale.to_bits() != 1.0_f32.to_bits() => {
            return Err(Error::unsupported(
                gguf.path(),
                format!("key {}", key("logit_scale")),
                "is not supported for this family",
            ));
        }
        _ => {}
    }
    Ok(config)
}

/// `tokenizer.ggml.NAME_token_id`, or null.
pub(super) fn token_id(gguf: &Gguf, name: &str, vocab: usize) -> Result<Json> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    // Converters write 2^32 - 1 (an id of -1) for "none".
    match gguf.size(&key)? {
        None | Some(0xffff_ffff) => Ok(Json::Null),
        Some(id) if id < vocab => Ok(json!(id)),
        Some(id) => Err(gguf.bad_key(&key, format!("{id} is beyond the vocabulary of {vocab}"))),
    }
}

/// `rope_scaling` from the scaling keys: null or linear.
fn linear_scaling(gguf: &Gguf, prefix: &str) -> Result<Json> {
    let type_key = format!("{prefix}.rope.scaling.type");
    let factor_key = format!("{prefix}.rope.scaling.factor");
    let factor = match gguf.float(&factor_key)? {
        Some(factor) => Some(factor),
        None => gguf.float(&format!("{prefix}.rope.scale_linear"))?,
    };
    match gguf.text(&type_key)?.unwrap_or("linear") {
        "none" => Ok(Json::Null),
        "linear" => match factor {
            None | Some(0.0 | 1.0) => Ok(Json::Null),
            Some(factor) if factor > 0.0 => Ok(json!({"rope_type": "linear", "factor": decimal(factor)})),
            Some(factor) => Err(gguf.bad_key(&factor_key, format!("{factor} is not positive"))),
        },
        other => Err(Error::unsupported(
            gguf.path(),
            format!("key {type_key}"),
            format!("{other} is not supported; none and linear are, and Llama 3's factors"),
        )),
    }
}

/// `rope_scaling` of type llama3 from the factors of `rope_freqs.weight`; null where all are 1.
fn llama3_scaling(gguf: &Gguf, sizes: &Sizes, config: &Map<String, Json>) -> Result<Json> {
    let name = "rope_freqs.weight";
    let at = format!("tensor {name}");
    let info = gguf.tensors().get(name).ok_or_else(|| Error::data(gguf.path(), at.as_str(), "missing"))?;
    if info.shape != [sizes.head_dim / 2] || info.kind.block_elements() != 1 {
        return Err(Error::data(
            gguf.path(),
            at,
            format!("has shape {:?} of type {}, expected [{}] of a float type", info.shape, info.kind, sizes.head_dim / 2),
        ));
    }
    let mut factors = vec![0.0; sizes.head_dim / 2];
    super::dequantise::dequantise(info.kind, gguf.blocks(info), &mut factors);
    let current = config.get("rope_scaling").cloned().unwrap_or(Json::Null);
    if factors.iter().all(|factor| factor.to_bits() == 1.0_f32.to_bits()) {
        return Ok(current);
    }
    let theta = config.get("rope_theta").and_then(Json::as_f64).unwrap_or(0.0);
    match Llama3::from_factors(theta, &factors) {
        Some(llama3) if current.is_null() => Ok(json!({
            "rope_type": "llama3",
            "factor": llama3.factor,
            "low_freq_factor": llama3.low_freq_factor,
            "high_freq_factor": llama3.high_freq_factor,
            "original_max_position_embeddings": Json::from(whole(llama3.original_max_position_embeddings)),
        })),
        Some(_) => Err(Error::unsupported(gguf.path(), at, "factors a frequency together with linear scaling")),
        None => Err(Error::unsupported(
            gguf.path(),
            at,
            "no parameters of Llama 3's rotary scaling give these factors, and no other scheme is supported",
        )),
    }
}

/// A rounded positive f64 as an integer.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1, rounded, and `as` saturates")]
fn whole(x: f64) -> u64 {
    x as u64
}

fn layers(collector: &mut Collector<'_>, family: Family, sizes: &Sizes, config: &mut Map<String, Json>) -> Result<()> {
    let Sizes { hidden, intermediate, heads, kv_heads, head_dim, .. } = *sizes;
    let (q_rows, kv_rows) = (heads * head_dim, kv_heads * head_dim);
    let (attention_bias, mlp_bias) = match family {
        Family::Llama => {
            let attention = ["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"];
            let attention = collector.all_or_none(sizes.layers, &attention)?;
            let mlp = collector.all_or_none(sizes.layers, &["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"])?;
            config.insert("attention_bias".into(), attention.into());
            config.insert("mlp_bias".into(), mlp.into());
            (attention, mlp)
        }
        // Always on q, k and v, never on the output, and config.json does not mention them.
        Family::Qwen2 => (true, false),
        Family::CommandR => {
            config.insert("attention_bias".into(), false.into());
            (false, false)
        }
    };
    let qk_norm =
        family == Family::CommandR && collector.all_or_none(sizes.layers, &["attn_q_norm.weight", "attn_k_norm.weight"])?;
    if family == Family::CommandR {
        config.insert("use_qk_norm".into(), qk_norm.into());
    }
    let interleaved = |heads| (family == Family::Llama).then_some(heads);
    for layer in 0..sizes.layers {
        let mut take = |name: &str, source: &str, shape: &[usize], heads: Option<usize>| {
            collector.take(format!("model.layers.{layer}.{name}"), format!("blk.{layer}.{source}"), shape, heads)
        };
        take("input_layernorm.weight", "attn_norm.weight", &[hidden], None)?;
        take("self_attn.q_proj.weight", "attn_q.weight", &[q_rows, hidden], interleaved(heads))?;
        take("self_attn.k_proj.weight", "attn_k.weight", &[kv_rows, hidden], interleaved(kv_heads))?;
        take("self_attn.v_proj.weight", "attn_v.weight", &[kv_rows, hidden], None)?;
        take("self_attn.o_proj.weight", "attn_output.weight", &[hidden, q_rows], None)?;
        if attention_bias {
            take("self_attn.q_proj.bias", "attn_q.bias", &[q_rows], interleaved(heads))?;
            take("self_attn.k_proj.bias", "attn_k.bias", &[kv_rows], interleaved(kv_heads))?;
            take("self_attn.v_proj.bias", "attn_v.bias", &[kv_rows], None)?;
        }
        if attention_bias && family == Family::Llama {
            take("self_attn.o_proj.bias", "attn_output.bias", &[hidden], None)?;
        }
        if qk_norm {
            take("self_attn.q_norm.weight", "attn_q_norm.weight", &[heads, head_dim], None)?;
            take("self_attn.k_norm.weight", "attn_k_norm.weight", &[kv_heads, head_dim], None)?;
        }
        // Cohere's block is parallel: attention and MLP share one norm.
        if family != Family::CommandR {
            take("post_attention_layernorm.weight", "ffn_norm.weight", &[hidden], None)?;
        }
        take("mlp.gate_proj.weight", "ffn_gate.weight", &[intermediate, hidden], None)?;
        take("mlp.up_proj.weight", "ffn_up.weight", &[intermediate, hidden], None)?;
        take("mlp.down_proj.weight", "ffn_down.weight", &[hidden, intermediate], None)?;
        if mlp_bias {
            take("mlp.gate_proj.bias", "ffn_gate.bias", &[intermediate], None)?;
            take("mlp.up_proj.bias", "ffn_up.bias", &[intermediate], None)?;
            take("mlp.down_proj.bias", "ffn_down.bias", &[hidden], None)?;
        }
    }
    Ok(())
}

/// `torch_dtype` of config.json.
#[must_use]
pub const fn torch_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}
