//! The models whose sizes are measured.

use crate::ops::Heads;
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

/// Extents of the ops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) vocab: usize,
    pub(super) heads: Heads,
    /// Rows of linear layers, from decoding to scoring.
    pub(super) rows: &'static [usize],
    /// Rows of a batch that is scored.
    pub(super) batch: usize,
    /// Target rows at the head.
    pub(super) targets: usize,
    /// Packed batches: sequences and their length.
    pub(super) packed: [(usize, usize); 2],
    /// Decoding: sequences and what they see.
    pub(super) paged: [(usize, u32); 2],
    /// Weights of a decoding case together: more than caches hold.
    pub(super) rotated_bytes: usize,
}

/// Records of a scan.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanSizes {
    pub(super) records: usize,
    pub(super) tokens: usize,
    pub(super) scored: usize,
}

impl Shape {
    pub(super) const fn sizes(self) -> Sizes {
        match self {
            Self::Tiny => Sizes {
                hidden: 64,
                intermediate: 192,
                vocab: 515,
                heads: Heads { heads: 4, kv_heads: 2, head_dim: 16 },
                rows: &[1, 3, 70],
                batch: 40,
                targets: 5,
                packed: [(2, 16), (1, 40)],
                paged: [(2, 20), (1, 33)],
                rotated_bytes: 0,
            },
            Self::Smollm2 => Sizes {
                hidden: 576,
                intermediate: 1536,
                vocab: 49152,
                heads: Heads { heads: 9, kv_heads: 3, head_dim: 64 },
                rows: &[1, 16, 128, 4096],
                batch: 4096,
                targets: 512,
                packed: [(32, 128), (4, 1024)],
                paged: [(16, 256), (1, 512)],
                rotated_bytes: 128 << 20,
            },
            Self::Aya8b => Sizes {
                hidden: 4096,
                intermediate: 14336,
                vocab: 256_000,
                heads: Heads { heads: 32, kv_heads: 8, head_dim: 128 },
                rows: &[1, 16, 128, 4096, 16384],
                batch: 16384,
                targets: 2048,
                packed: [(64, 256), (8, 2048)],
                paged: [(64, 1024), (1, 4096)],
                rotated_bytes: 512 << 20,
            },
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
