//! config.json -> [`DecoderConfig`]. An option that we do not compute is refused by name; nothing is guessed.
//!
//! The reference is what the `transformers` class of the same `model_type` computes, in the spelling of its releases 4
//! (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`). An absent key has that class's
//! default; a key that the class itself does not read is not read here either.

mod keys;
mod rope;

use crate::error::Result;
use crate::quant::checkpoint as quantization;
use keys::Keys;
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

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

impl Architecture {
    /// As config.json's `architectures` spells it.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Cohere => "CohereForCausalLM",
        }
    }

    /// As config.json's `model_type` spells it.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Cohere => "cohere",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())
    }
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

/// Upper limits of sizes. Far above any model, and small enough that no product of the sizes below overflows 64 bits.
mod limit {
    pub(super) const LAYERS: usize = 1 << 14;
    pub(super) const WIDTH: usize = 1 << 22;
    pub(super) const HEADS: usize = 1 << 16;
    pub(super) const VOCAB: usize = 1 << 27;
    pub(super) const POSITIONS: usize = 1 << 40;
}

/// Keys that announce a mixture of experts.
const EXPERTS: [&str; 6] = [
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "num_shared_experts",
];

impl DecoderConfig {
    /// Reads and checks the content of the config.json at `path` (used for messages only).
    ///
    /// # Errors
    /// [`crate::Error::Data`] for a value that is missing, of the wrong type, out of range or that does not divide;
    /// [`crate::Error::Unsupported`] for a valid option that we do not compute. Both name file and key.
    pub fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let keys = Keys::new(path, json);
        let architecture = architecture(&keys)?;
        refuse_other_computations(&keys)?;

        let hidden_size = keys.size("hidden_size", limit::WIDTH)?;
        let num_hidden_layers = keys.size("num_hidden_layers", limit::LAYERS)?;
        let num_attention_heads = keys.size("num_attention_heads", limit::HEADS)?;
        let num_key_value_heads = match (keys.present("num_key_value_heads"), architecture) {
            (true, _) => keys.size("num_key_value_heads", limit::HEADS)?,
            // Qwen2's class defaults to 32, but takes an explicit null as "like the query heads".
            (false, Architecture::Qwen2) if json.get("num_key_value_heads").is_none() => 32,
            (false, _) => num_attention_heads,
        };
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(keys.bad(
                "num_key_value_heads",
                format!("found {num_key_value_heads}, expected a divisor of num_attention_heads, which is {num_attention_heads}"),
            ));
        }
        let head_dim = if keys.present("head_dim") {
            keys.size("head_dim", limit::HEADS)?
        } else if hidden_size % num_attention_heads == 0 {
            hidden_size / num_attention_heads
        } else {
            return Err(keys.bad(
                "hidden_size",
                format!("found {hidden_size}, expected a multiple of num_attention_heads, which is {num_attention_heads}"),
            ));
        };
        if head_dim % 2 != 0 {
            return Err(
                keys.unsupported("head_dim", format!("{head_dim} is odd; rotary embedding turns pairs, so it must be even"))
            );
        }
        if matches!(architecture, Architecture::Qwen2) {
            refuse_sliding_window(&keys, num_hidden_layers)?;
        } else if keys.present("sliding_window") {
            return Err(keys.unsupported("sliding_window", "sliding-window attention is not computed; only null is supported"));
        }
        refuse_layer_types(&keys, num_hidden_layers)?;

        let (eps_key, eps_default) = match architecture {
            Architecture::Llama | Architecture::Qwen2 => ("rms_norm_eps", 1e-6),
            Architecture::Cohere => ("layer_norm_eps", 1e-5),
        };
        let cohere = matches!(architecture, Architecture::Cohere);
        let attention_bias = !matches!(architecture, Architecture::Qwen2) && keys.flag("attention_bias", false)?;
        let max_position_embeddings = match (keys.present("max_position_embeddings"), architecture) {
            (true, _) => keys.size("max_position_embeddings", limit::POSITIONS)?,
            (false, Architecture::Llama) => 2048,
            (false, Architecture::Qwen2) => 32768,
            (false, Architecture::Cohere) => 8192,
        };
        let (rope_theta, rope_scaling) = rope::read(&keys, architecture)?;
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", limit::WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: keys.size("vocab_size", limit::VOCAB)?,
            max_position_embeddings,
            norm_eps: keys.factor_f32(eps_key, eps_default, 1.0)?,
            rope_theta,
            rope_scaling,
            qkv_bias: attention_bias || matches!(architecture, Architecture::Qwen2),
            o_bias: attention_bias,
            mlp_bias: matches!(architecture, Architecture::Llama) && keys.flag("mlp_bias", false)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", cohere)?,
            logit_scale: if cohere { keys.factor_f32("logit_scale", 0.0625, 1e6)? } else { 1.0 },
            use_qk_norm: cohere && keys.flag("use_qk_norm", false)?,
        })
    }
}

/// The family, from `model_type` and `architectures`, which must agree.
fn architecture(keys: &Keys<'_>) -> Result<Architecture> {
    let supported = "supported are llama, qwen2 and cohere";
    let architecture = match keys.text("model_type")? {
        None => return Err(keys.bad("model_type", format!("missing; {supported}"))),
        Some("llama") => Architecture::Llama,
        Some("qwen2") => Architecture::Qwen2,
        Some("cohere") => Architecture::Cohere,
        Some(other) => return Err(keys.unsupported("model_type", format!("{other:?} is not computed; {supported}"))),
    };
    match keys.get("architectures") {
        None => Ok(architecture),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
            if list.is_empty() || list.iter().any(|class| class.as_str() == Some(architecture.class())) {
                Ok(architecture)
            } else {
                Err(keys.unsupported(
                    "architectures",
                    format!(
                        "found {}, with model_type {} only {} is computed",
                        keys::shown(&Value::Array(list.clone())),
                        architecture.model_type(),
                        architecture.class()
                    ),
                ))
            }
        }
        Some(other) => Err(keys.wrong("architectures", other, "a list of class names")),
    }
}

/// Options that change what a family computes and that we do not have.
fn refuse_other_computations(keys: &Keys<'_>) -> Result<()> {
    match keys.text("hidden_act")? {
        // Two names of one function.
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(keys.unsupported("hidden_act", format!("{other:?} is not computed; only silu is"))),
    }
    if let Some(problem) = keys.get(quantization::CONFIG_KEY).and_then(quantization::not_computed) {
        return Err(keys.unsupported(quantization::CONFIG_KEY, problem));
    }
    for key in EXPERTS {
        if keys.get(key).is_some_and(|v| !matches!(v, Value::Bool(false)) && v.as_f64() != Some(0.0)) {
            return Err(keys.unsupported(key, "mixtures of experts are not computed; dense MLPs are"));
        }
    }
    for key in ["is_encoder_decoder", "add_cross_attention"] {
        if keys.flag(key, false)? {
            return Err(keys.unsupported(key, "cross-attention is not computed; decoder-only models are"));
        }
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if keys.present(key) {
            return Err(keys.unsupported(key, "soft-capping is not computed; only null is supported"));
        }
    }
    if let Some(value) = keys.get("pretraining_tp")
        && value.as_u64() != Some(1)
    {
        return Err(match value.as_u64() {
            Some(n) if n > 1 => {
                keys.unsupported("pretraining_tp", format!("{n}-way split matrix products are not computed; only 1 is"))
            }
            _ => keys.wrong("pretraining_tp", value, "1"),
        });
    }
    if let Some(value) = keys.get("partial_rotary_factor")
        && value.as_f64() != Some(1.0)
    {
        return Err(keys.unsupported("partial_rotary_factor", format!("{} is not computed; only 1 is", keys::shown(value))));
    }
    if let Some(Value::Object(map)) = keys.get("auto_map")
        && map.contains_key("AutoModelForCausalLM")
    {
        return Err(keys.unsupported(
            "auto_map",
            "the folder brings its own model code, which is not run; only transformers' own classes are computed",
        ));
    }
    for key in ["dtype", "torch_dtype"] {
        match keys.text(key)?.map(|name| name.trim_start_matches("torch.")) {
            None | Some("float32" | "float16" | "bfloat16" | "auto") => {}
            Some(other) => {
                return Err(keys.unsupported(key, format!("{other:?} is not computed; float32, float16 and bfloat16 are")));
            }
        }
    }
    Ok(())
}

/// Qwen2: layers from `max_window_layers` on slide, if `use_sliding_window` and `sliding_window` say so.
fn refuse_sliding_window(keys: &Keys<'_>, layers: usize) -> Result<()> {
    if !keys.flag("use_sliding_window", false)? {
        return Ok(());
    }
    // Absent means 4096 in Qwen2's class; an explicit null switches it off.
    if keys.raw("sliding_window").is_some_and(Value::is_null) {
        return Ok(());
    }
    let first = if keys.present("max_window_layers") { keys.count("max_window_layers", limit::LAYERS)? } else { 28 };
    if first < layers {
        return Err(keys.unsupported(
            "use_sliding_window",
            format!(
                "sliding-window attention is in use from layer {first} (max_window_layers) on; only full attention is computed"
            ),
        ));
    }
    Ok(())
}

/// `layer_types`: one entry a layer, and every one `full_attention`.
fn refuse_layer_types(keys: &Keys<'_>, layers: usize) -> Result<()> {
    let list = match keys.get("layer_types") {
        None => return Ok(()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(keys.wrong("layer_types", other, "a list with one entry a layer")),
    };
    if list.len() != layers {
        return Err(
            keys.bad("layer_types", format!("found {} entries, expected {layers}, one a layer (num_hidden_layers)", list.len()))
        );
    }
    match list.iter().position(|kind| kind.as_str() != Some("full_attention")) {
        None => Ok(()),
        Some(layer) => Err(keys.unsupported(
            "layer_types",
            format!("layer {layer} is {}; only \"full_attention\" is computed", keys::shown(&list[layer])),
        )),
    }
}
