//! Sizes at which every op is tested (`tests/ops`) and timed (`prunectl bench`).
//!
//! The tables have nothing, one row, sizes beside every tile, primes, and shapes of real models; all sizes of a case differ,
//! so that swapped axes show. What is timed are the cases that a model's sizes come to ([`ModelSizes`]): those of [`TINY`] are in
//! the tables, so the tests check the very cases that `bench --shape tiny` times.

use super::Heads;

/// Rows times columns, for ops on whole rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowsCase {
    /// Tokens.
    pub rows: usize,
    /// Elements a row.
    pub cols: usize,
}

/// Columns within wider rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColsCase {
    /// Tokens.
    pub rows: usize,
    /// Columns that are read or written.
    pub cols: usize,
    /// Where they begin in the wider tensor.
    pub first_col: usize,
    /// Columns behind them, which must stay as they are.
    pub behind: usize,
}

/// A linear layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearCase {
    /// Tokens.
    pub rows: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y.
    pub out_features: usize,
    /// With a bias.
    pub bias: bool,
    /// Added to y.
    pub accumulate: bool,
}

/// A head over a vocabulary: argmax and cross-entropy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadCase {
    /// Tokens.
    pub rows: usize,
    /// Columns of x.
    pub hidden_size: usize,
    /// Rows of the head.
    pub vocab_size: usize,
    /// Factor on the logits.
    pub logit_scale: f32,
}

/// Rotary embedding, and norms of heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadsCase {
    /// Tokens.
    pub rows: usize,
    /// Heads in a row.
    pub heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Columns behind the heads, which must stay as they are.
    pub behind: usize,
}

/// Packed sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionCase {
    /// Rows of each sequence.
    pub lengths: &'static [usize],
    /// How a row is cut.
    pub heads: Heads,
}

/// Extents of the ops of a model.
#[derive(Debug, Clone, Copy)]
pub struct ModelSizes {
    /// `hidden_size`.
    pub hidden: usize,
    /// `intermediate_size`.
    pub intermediate: usize,
    /// `vocab_size`.
    pub vocab: usize,
    /// How a row of q, k and v is cut.
    pub heads: Heads,
    /// Rows of linear layers, from decoding to scoring.
    pub rows: &'static [usize],
    /// Rows of a batch that is scored.
    pub batch: usize,
    /// Rows of a micro-batch of training.
    pub micro_batch: usize,
    /// Target rows at the head.
    pub targets: usize,
    /// Packed batches: rows of each sequence.
    pub packed: [&'static [usize]; 2],
    /// Decoding: tokens that the one row of each sequence sees.
    pub paged: [&'static [usize]; 2],
    /// Rank of a LoRA pair.
    pub rank: usize,
}

/// Small enough to run anywhere: for checks, and for the emulated device.
pub const TINY: ModelSizes = ModelSizes {
    hidden: 64,
    intermediate: 192,
    vocab: 515,
    heads: heads(4, 2, 16),
    rows: &[1, 3, 70],
    batch: 40,
    micro_batch: 40,
    targets: 5,
    packed: [&[16; 2], &[40]],
    paged: [&[20; 2], &[33]],
    rank: 8,
};

/// SmolLM2-135M.
pub const SMOLLM2: ModelSizes = ModelSizes {
    hidden: 576,
    intermediate: 1536,
    vocab: 49152,
    heads: heads(9, 3, 64),
    rows: &[1, 16, 128, 4096],
    batch: 4096,
    micro_batch: 1024,
    targets: 512,
    packed: [&[128; 32], &[1024; 4]],
    paged: [&[256; 16], &[512]],
    rank: 64,
};

/// Aya-Expanse-8B.
pub const AYA_8B: ModelSizes = ModelSizes {
    hidden: 4096,
    intermediate: 14336,
    vocab: 256_000,
    heads: heads(32, 8, 128),
    rows: &[1, 16, 128, 4096, 16384],
    batch: 16384,
    micro_batch: 1024,
    targets: 2048,
    packed: [&[256; 64], &[2048; 8]],
    paged: [&[1024; 64], &[4096]],
    rank: 64,
};

impl ModelSizes {
    /// Products of a layer: q, k and v; gate and up; down.
    #[must_use]
    pub const fn linears(self, rows: usize) -> [LinearCase; 3] {
        [
            linear(rows, self.hidden, self.heads.qkv_cols(), false, false),
            linear(rows, self.hidden, 2 * self.intermediate, false, false),
            linear(rows, self.intermediate, self.hidden, false, false),
        ]
    }

    /// The first half of the MLP: y has half as many columns as the matrix has rows.
    #[must_use]
    pub const fn gated(self, rows: usize) -> LinearCase {
        linear(rows, self.hidden, self.intermediate, false, false)
    }

    /// Products of a LoRA pair over the residual stream.
    #[must_use]
    pub const fn lora(self, rows: usize) -> [LinearCase; 2] {
        [linear(rows, self.hidden, self.rank, false, false), linear(rows, self.rank, self.hidden, false, false)]
    }

    /// The residual stream.
    #[must_use]
    pub const fn stream(self, rows: usize) -> RowsCase {
        RowsCase { rows, cols: self.hidden }
    }

    /// What the down projection reads.
    #[must_use]
    pub const fn mlp(self, rows: usize) -> RowsCase {
        RowsCase { rows, cols: self.intermediate }
    }

    /// Columns of k, between those of q and v.
    #[must_use]
    pub const fn keys(self, rows: usize) -> ColsCase {
        cols(rows, self.heads.kv_cols(), self.heads.q_cols(), self.heads.kv_cols())
    }

    /// The largest matrix of a layer, as the optimiser sees it.
    #[must_use]
    pub const fn parameters(self) -> RowsCase {
        rows(2 * self.intermediate, self.hidden)
    }

    /// The head over the target rows.
    #[must_use]
    pub const fn head(self) -> HeadCase {
        head(self.targets, self.hidden, self.vocab, 1.0)
    }

    /// Heads of q.
    #[must_use]
    pub const fn queries(self, rows: usize) -> HeadsCase {
        let Heads { heads, head_dim, .. } = self.heads;
        HeadsCase { rows, heads, head_dim, behind: 2 * self.heads.kv_cols() }
    }

    /// Heads of q and k.
    #[must_use]
    pub const fn rotated(self, rows: usize) -> HeadsCase {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        HeadsCase { rows, heads: heads + kv_heads, head_dim, behind: self.heads.kv_cols() }
    }

    /// Packed or paged sequences of these lengths.
    #[must_use]
    pub const fn sequences(self, lengths: &'static [usize]) -> AttentionCase {
        AttentionCase { lengths, heads: self.heads }
    }
}

const fn rows(rows: usize, cols: usize) -> RowsCase {
    RowsCase { rows, cols }
}

const fn cols(rows: usize, cols: usize, first_col: usize, behind: usize) -> ColsCase {
    ColsCase { rows, cols, first_col, behind }
}

const fn linear(rows: usize, in_features: usize, out_features: usize, bias: bool, accumulate: bool) -> LinearCase {
    LinearCase { rows, in_features, out_features, bias, accumulate }
}

const fn head(rows: usize, hidden_size: usize, vocab_size: usize, logit_scale: f32) -> HeadCase {
    HeadCase { rows, hidden_size, vocab_size, logit_scale }
}

const fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { heads, kv_heads, head_dim }
}

/// Ops on whole rows: norms, activations, copies.
pub const ROWS: &[RowsCase] = &[
    rows(0, 8),
    rows(1, 1),
    rows(3, 15),
    rows(2, 16),
    rows(5, 17),
    rows(7, 257),
    rows(33, 64),
    rows(70, 576),
    rows(2, 14336),
    TINY.stream(40),
    TINY.mlp(40),
    TINY.parameters(),
];

/// `add_cols`, `take_cols`.
pub const COLS: &[ColsCase] = &[
    cols(0, 3, 2, 1),
    cols(1, 1, 0, 0),
    cols(3, 15, 1, 2),
    cols(4, 16, 16, 0),
    cols(5, 17, 0, 31),
    cols(67, 192, 576, 192),
    cols(9, 0, 4, 3),
    TINY.keys(40),
];

/// `linear` and `embedding` with matrices in four bits.
pub const NF4: &[LinearCase] = &[
    linear(0, 64, 7, false, false),
    linear(1, 64, 33, false, true),
    linear(1, 1536, 576, false, false),
    linear(2, 128, 3, true, false),
    linear(3, 192, 1003, true, true),
    linear(5, 160, 31, false, false),
    linear(8, 320, 64, true, true),
    linear(9, 64, 65, false, true),
    linear(13, 11, 48, true, false),
    linear(63, 640, 96, false, false),
    linear(300, 128, 97, true, true),
    linear(16, 576, 960, false, false),
    TINY.linears(1)[1],
    TINY.linears(1)[2],
    TINY.linears(3)[1],
    TINY.linears(3)[2],
    TINY.linears(70)[1],
    TINY.linears(70)[2],
];

/// `linear_swiglu`; out_features is intermediate_size. Halves that begin within a panel of the CPU's, those that do not, and more
/// panels of gates than wait for their ups at once.
pub const LINEAR_SWIGLU: &[LinearCase] = &[
    linear(0, 5, 32, false, false),
    linear(1, 17, 32, true, false),
    linear(2, 0, 64, true, false),
    linear(3, 33, 7, true, false),
    linear(15, 67, 65, false, false),
    linear(16, 576, 1536, false, false),
    linear(29, 31, 96, true, false),
    linear(258, 9, 1280, true, false),
    TINY.gated(1),
    TINY.gated(3),
    TINY.gated(70),
];

/// `linear`.
pub const LINEAR: &[LinearCase] = &[
    linear(0, 5, 7, false, false),
    linear(1, 1, 1, true, false),
    linear(1, 17, 33, false, true),
    linear(2, 0, 3, true, false),
    linear(3, 64, 1003, true, true),
    linear(13, 257, 31, false, false),
    linear(14, 31, 32, true, true),
    linear(15, 33, 65, false, true),
    linear(29, 1, 48, true, false),
    linear(300, 79, 97, true, true),
    linear(4, 2600, 40, false, true),
    linear(2, 14336, 35, true, false),
    linear(16, 576, 960, false, false),
    TINY.linears(1)[0],
    TINY.linears(1)[1],
    TINY.linears(1)[2],
    TINY.linears(3)[0],
    TINY.linears(3)[1],
    TINY.linears(3)[2],
    TINY.linears(70)[0],
    TINY.linears(70)[1],
    TINY.linears(70)[2],
    TINY.linears(40)[0],
    TINY.linears(40)[1],
    TINY.linears(40)[2],
    TINY.lora(40)[0],
    TINY.lora(40)[1],
];

/// `argmax`, `cross_entropy`.
pub const HEAD: &[HeadCase] = &[
    head(0, 4, 6, 1.0),
    head(1, 1, 2, 1.0),
    head(2, 65, 1003, 0.0625),
    head(17, 31, 256, 1.0),
    head(40, 48, 257, 2.0),
    head(150, 24, 767, 1.0),
    TINY.head(),
];

/// `rope`, `head_norm`.
pub const HEADS: &[HeadsCase] = &[
    HeadsCase { rows: 0, heads: 2, head_dim: 8, behind: 4 },
    HeadsCase { rows: 1, heads: 1, head_dim: 2, behind: 0 },
    HeadsCase { rows: 5, heads: 3, head_dim: 80, behind: 7 },
    HeadsCase { rows: 67, heads: 12, head_dim: 64, behind: 192 },
    TINY.queries(40),
    TINY.rotated(40),
];

/// `attention`, `attention_paged`, `kv_write`.
pub const ATTENTION: &[AttentionCase] = &[
    AttentionCase { lengths: &[], heads: heads(2, 1, 8) },
    AttentionCase { lengths: &[1], heads: heads(1, 1, 2) },
    AttentionCase { lengths: &[0, 3, 0, 17], heads: heads(4, 2, 10) },
    AttentionCase { lengths: &[16, 15, 33], heads: heads(3, 3, 80) },
    AttentionCase { lengths: &[50, 7], heads: heads(16, 1, 24) },
    AttentionCase { lengths: &[130, 1], heads: heads(9, 3, 64) },
    TINY.sequences(TINY.packed[0]),
    TINY.sequences(TINY.packed[1]),
    TINY.sequences(TINY.paged[0]),
    TINY.sequences(TINY.paged[1]),
];

/// How many cases each op has; every op of [`ALL`](super::ALL) is listed.
pub const COUNTS: &[(&str, usize)] = &[
    ("adamw", ROWS.len()),
    ("add_cols", COLS.len()),
    ("argmax", HEAD.len()),
    ("attention", ATTENTION.len()),
    ("attention_paged", ATTENTION.len()),
    ("block_influence", ROWS.len()),
    ("cross_entropy", HEAD.len()),
    ("embedding", ROWS.len()),
    ("gather_rows", ROWS.len()),
    ("head_norm", HEADS.len()),
    ("kv_write", ATTENTION.len()),
    ("layer_norm", ROWS.len()),
    ("linear", LINEAR.len()),
    ("linear_swiglu", LINEAR_SWIGLU.len()),
    ("rms_norm", ROWS.len()),
    ("rope", HEADS.len()),
    ("scatter_rows", ROWS.len()),
    ("squared_norm", ROWS.len()),
    ("swiglu", ROWS.len()),
    ("take_cols", COLS.len()),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables name TINY's rows one by one, because a constant cannot loop over them.
    #[test]
    fn what_bench_times_of_the_tiny_model_is_tested() {
        for &rows in TINY.rows {
            let linears = TINY.linears(rows);
            assert!(linears.iter().all(|case| LINEAR.contains(case)), "{rows} rows");
            assert!(LINEAR_SWIGLU.contains(&TINY.gated(rows)), "{rows} rows");
            assert!(linears[1..].iter().all(|case| NF4.contains(case)), "{rows} rows");
        }
        for rows in [TINY.batch, TINY.micro_batch] {
            assert!(TINY.linears(rows).iter().chain(&TINY.lora(rows)).all(|case| LINEAR.contains(case)));
            assert!([TINY.stream(rows), TINY.mlp(rows)].iter().all(|case| ROWS.contains(case)));
            assert!([TINY.queries(rows), TINY.rotated(rows)].iter().all(|case| HEADS.contains(case)));
            assert!(COLS.contains(&TINY.keys(rows)));
        }
        let sequences = TINY.packed.into_iter().chain(TINY.paged);
        assert!(sequences.map(|lengths| TINY.sequences(lengths)).all(|case| ATTENTION.contains(&case)));
    }
}
