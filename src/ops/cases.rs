//! Sizes at which every op is tested (`tests/ops`) and, where they are those of a real model, timed (`prunectl bench ops`).
//!
//! Each table has nothing, one row, sizes beside every tile, primes, and shapes of real models; all sizes of a case differ,
//! so that swapped axes show.

use super::Heads;

/// Rows times columns, for ops on whole rows.
#[derive(Debug, Clone, Copy)]
pub struct RowsCase {
    /// Tokens.
    pub rows: usize,
    /// Elements a row.
    pub cols: usize,
}

/// Columns within wider rows.
#[derive(Debug, Clone, Copy)]
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
#[derive(Debug, Clone, Copy)]
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
#[derive(Debug, Clone, Copy)]
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
#[derive(Debug, Clone, Copy)]
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
#[derive(Debug, Clone, Copy)]
pub struct AttentionCase {
    /// Rows of each sequence.
    pub lengths: &'static [usize],
    /// How a row is cut.
    pub heads: Heads,
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
pub const ROWS: &[RowsCase] =
    &[rows(0, 8), rows(1, 1), rows(3, 15), rows(2, 16), rows(5, 17), rows(7, 257), rows(33, 64), rows(70, 576), rows(2, 14336)];

/// `add_cols`, `take_cols`.
pub const COLS: &[ColsCase] = &[
    cols(0, 3, 2, 1),
    cols(1, 1, 0, 0),
    cols(3, 15, 1, 2),
    cols(4, 16, 16, 0),
    cols(5, 17, 0, 31),
    cols(67, 192, 576, 192),
    cols(9, 0, 4, 3),
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
];

/// `argmax`, `cross_entropy`.
pub const HEAD: &[HeadCase] = &[
    head(0, 4, 6, 1.0),
    head(1, 1, 2, 1.0),
    head(2, 65, 1003, 0.0625),
    head(17, 31, 256, 1.0),
    head(40, 48, 257, 2.0),
    head(150, 24, 767, 1.0),
];

/// `rope`, `head_norm`.
pub const HEADS: &[HeadsCase] = &[
    HeadsCase { rows: 0, heads: 2, head_dim: 8, behind: 4 },
    HeadsCase { rows: 1, heads: 1, head_dim: 2, behind: 0 },
    HeadsCase { rows: 5, heads: 3, head_dim: 80, behind: 7 },
    HeadsCase { rows: 67, heads: 12, head_dim: 64, behind: 192 },
];

/// `attention`, `attention_paged`, `kv_write`.
pub const ATTENTION: &[AttentionCase] = &[
    AttentionCase { lengths: &[], heads: heads(2, 1, 8) },
    AttentionCase { lengths: &[1], heads: heads(1, 1, 2) },
    AttentionCase { lengths: &[0, 3, 0, 17], heads: heads(4, 2, 10) },
    AttentionCase { lengths: &[16, 15, 33], heads: heads(3, 3, 80) },
    AttentionCase { lengths: &[50, 7], heads: heads(16, 1, 24) },
    AttentionCase { lengths: &[130, 1], heads: heads(9, 3, 64) },
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
    ("rms_norm", ROWS.len()),
    ("rope", HEADS.len()),
    ("scatter_rows", ROWS.len()),
    ("squared_norm", ROWS.len()),
    ("swiglu", ROWS.len()),
    ("take_cols", COLS.len()),
];
