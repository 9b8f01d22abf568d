//! The linears of a layer: their names, their sizes, and how they are stacked into fewer products.

use super::config::DecoderConfig;
use std::fmt;

/// A linear of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are transformers' own: q is self_attn.q_proj")]
pub enum LinearName {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// Linears with one input whose weights are stacked along their outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// q, k, v.
    Qkv,
    /// o.
    O,
    /// gate, up.
    GateUp,
    /// down.
    Down,
}

impl Stack {
    /// All of them, in the order they run.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// Its linears, in the order of their columns.
    #[must_use]
    pub const fn linears(self) -> &'static [LinearName] {
        match self {
            Self::Qkv => &[LinearName::Q, LinearName::K, LinearName::V],
            Self::O => &[LinearName::O],
            Self::GateUp => &[LinearName::Gate, LinearName::Up],
            Self::Down => &[LinearName::Down],
        }
    }
}

impl LinearName {
    /// Every linear, in the order of the layer's arithmetic.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name of the module, as `--targets` and PEFT's `target_modules` have it: `q_proj`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The same within its layer: `self_attn.q_proj`.
    #[must_use]
    pub const fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The linear of that [`name`](Self::name).
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|linear| linear.name() == name)
    }

    /// [out_features, in_features].
    #[must_use]
    pub fn shape(self, config: &DecoderConfig) -> [usize; 2] {
        let heads = config.heads();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match self {
            Self::Q => [heads.q_cols(), hidden],
            Self::K | Self::V => [heads.kv_heads * heads.head_dim, hidden],
            Self::O => [hidden, heads.q_cols()],
            Self::Gate | Self::Up => [inner, hidden],
            Self::Down => [hidden, inner],
        }
    }

    /// The stack it is part of.
    #[must_use]
    pub const fn stack(self) -> Stack {
        match self {
            Self::Q | Self::K | Self::V => Stack::Qkv,
            Self::O => Stack::O,
            Self::Gate | Self::Up => Stack::GateUp,
            Self::Down => Stack::Down,
        }
    }

    /// Its first column in the output of its stack.
    #[must_use]
    pub fn first_col(self, config: &DecoderConfig) -> usize {
        self.stack().linears().iter().take_while(|&&other| other != self).map(|other| other.shape(config)[0]).sum()
    }
}

impl fmt::Display for LinearName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
