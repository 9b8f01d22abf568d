//! The models whose sizes are measured.

use crate::ops::cases::{AYA_8B, ModelSizes, SMOLLM2, TINY};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A model by its sizes; there are no weights of it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Small enough to run anywhere: for checks, and for the emulated device.
    Tiny,
    /// SmolLM2-135M: what a CPU scans.
    Smollm2,
    /// Aya-Expanse-8B: what a GPU scans.
    #[serde(rename = "aya-8b")]
    Aya8b,
}

/// Records of a scan.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanSizes {
    pub(super) records: usize,
    pub(super) tokens: usize,
    pub(super) scored: usize,
}

impl Shape {
    /// Extents of its ops.
    pub(super) const fn sizes(self) -> ModelSizes {
        match self {
            Self::Tiny => TINY,
            Self::Smollm2 => SMOLLM2,
            Self::Aya8b => AYA_8B,
        }
    }

    /// Bytes of the weights of a decoding case together, in bf16: more than caches hold.
    pub(super) const fn rotated_bytes(self) -> usize {
        match self {
            Self::Tiny => 0,
            Self::Smollm2 => 128 << 20,
            Self::Aya8b => 512 << 20,
        }
    }

    pub(super) const fn scan(self) -> ScanSizes {
        match self {
            Self::Tiny => ScanSizes { records: 6, tokens: 16, scored: 5 },
            Self::Smollm2 => ScanSizes { records: 32, tokens: 128, scored: 127 },
            Self::Aya8b => ScanSizes { records: 200, tokens: 256, scored: 100 },
        }
    }

    /// config.json of such a model.
    pub(super) fn config(self) -> Map<String, Value> {
        let (name, kind, layers, positions) = match self {
            Self::Tiny => ("LlamaForCausalLM", "llama", 4, 64),
            Self::Smollm2 => ("LlamaForCausalLM", "llama", 30, 8192),
            Self::Aya8b => ("CohereForCausalLM", "cohere", 32, 8192),
        };
        let sizes = self.sizes();
        let mut config = json!({
            "architectures": [name], "model_type": kind, "torch_dtype": "bfloat16", "hidden_act": "silu",
            "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate, "vocab_size": sizes.vocab,
            "num_hidden_layers": layers, "num_attention_heads": sizes.heads.heads, "num_key_value_heads": sizes.heads.kv_heads,
            "max_position_embeddings": positions, "rope_theta": 10000.0, "tie_word_embeddings": true,
        });
        let norm = if kind == "cohere" {
            json!({ "layer_norm_eps": 1e-5, "logit_scale": 0.0625, "use_qk_norm": false })
        } else {
            json!({ "rms_norm_eps": 1e-5 })
        };
        let mut map = Map::new();
        for part in [config.take(), norm] {
            if let Value::Object(part) = part {
                map.extend(part);
            }
        }
        map
    }
}
