use crate::any::{Any, Stored};
use crate::compare::{chain, close, same};
use crate::data::floats;
use crate::everywhere::{backends, everywhere, gpu, stored_as_bf16};
use prunectl::ops::cases::{ATTENTION, AttentionCase};
use prunectl::ops::{Attention, AttentionArgs, Device, Heads};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["attention"];

/// Sharp enough that softmax weights differ by orders of magnitude.
pub(crate) const SCALE: f32 = 1.7;

pub(crate) fn starts(lengths: &[usize]) -> Vec<u32> {
    let mut starts = vec![0];
    for &length in lengths {
        starts.push(starts.last().unwrap() + u32::try_from(length).unwrap());
    }
    starts
}

pub(crate) fn attention(backend: &Any, qkv: &[f32], lengths: &[usize], heads: Heads) -> Vec<f32> {
    let rows = lengths.iter().sum();
    let qkv = backend.upload(rows, heads.qkv_cols(), qkv).unwrap();
    let mut y = crate::everywhere::poisoned(backend, rows, heads.q_cols());
    backend.attention(AttentionArgs { y: &mut y, qkv: &qkv, heads, starts: &starts(lengths), scale: SCALE }).unwrap();
    backend.download(&y).unwrap()
}

/// In f64, as the formula stands.
pub(crate) fn check(what: &str, found: &[f32], qkv: &[f32], lengths: &[usize], heads: Heads) {
    let Heads { heads: q_heads, kv_heads, head_dim } = heads;
    let at = |row: usize, col: usize| f64::from(qkv[row * heads.qkv_cols() + col]);
    let (mut expected, mut magnitudes) = (Vec::new(), Vec::new());
    for range in starts(lengths).windows(2) {
        for row in range[0] as usize..range[1] as usize {
            for head in 0..q_heads {
                let kv = head / (q_heads / kv_heads);
                let (k, v) = ((q_heads + kv) * head_dim, (q_heads + kv_heads + kv) * head_dim);
                let keys = range[0] as usize..=row;
                let scores: Vec<f64> = keys
                    .clone()
                    .map(|t| f64::from(SCALE) * (0..head_dim).map(|d| at(row, head * head_dim + d) * at(t, k + d)).sum::<f64>())
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    expected.push(keys.clone().zip(&weights).map(|(t, w)| w * at(t, v + d)).sum::<f64>() / total);
                    magnitudes.push(1.0);
                }
            }
        }
    }
    // Scores reach head_dim * SCALE / 3 and their rounding errors stand in the exponent.
    close(what, found, &expected, &magnitudes, chain(head_dim) * f64::from(SCALE) * (head_dim as f64).sqrt().max(4.0));
}

#[test]
fn against_f64() {
    for case in ATTENTION {
        let AttentionCase { lengths, heads } = *case;
        let qkv = floats(1, lengths.iter().sum::<usize>() * heads.qkv_cols());
        let rows: usize = lengths.iter().sum();
        // "Rows" of the invariance are sequences here: each starts at its own first row.
        let outcomes = everywhere(&format!("{case:?}"), 1, rows * heads.q_cols(), |backend, picked| {
            if picked.is_empty() { Vec::new() } else { attention(backend, &qkv, lengths, heads) }
        });
        for outcome in outcomes {
            check(&outcome.what, &outcome.y, &qkv, lengths, heads);
        }
    }
}

/// On tensor cores where head_dim allows it: every kernel's head_dim, and one below it.
#[test]
fn stored_in_bf16() {
    let dims = [8, 32, 40, 64, 80, 96, 112, 128, 136, 256];
    let mut cases = ATTENTION.to_vec();
    cases.extend(dims.map(|head_dim| AttentionCase { lengths: &[70, 0, 3], heads: Heads { heads: 4, kv_heads: 2, head_dim } }));
    // More query heads a key head than a tile has rows.
    cases.push(AttentionCase { lengths: &[20], heads: Heads { heads: 18, kv_heads: 1, head_dim: 16 } });
    for AttentionCase { lengths, heads } in cases {
        let rows: usize = lengths.iter().sum();
        let qkv = floats(9, rows * heads.qkv_cols());
        // Weights are rounded to bf16 before they meet the values: half a step each, and they sum to 1.
        let what = format!("{lengths:?} {heads:?}");
        stored_as_bf16(&what, 1, rows * heads.q_cols(), 1.0 / 256.0, |backend, round, picked| {
            if picked.is_empty() { Vec::new() } else { attention(backend, &round(&qkv), lengths, heads) }
        });
    }
}

/// Longer than one chain of keys (1024): chains are put together.
#[test]
fn long_sequences() {
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 8 };
    let lengths = [2100];
    let qkv = floats(10, 2100 * heads.qkv_cols());
    stored_as_bf16("2100 tokens", 1, 2100 * heads.q_cols(), 1.0 / 256.0, |backend, round, picked| {
        if picked.is_empty() { Vec::new() } else { attention(backend, &round(&qkv), &lengths, heads) }
    });
}

/// A backend and a size of heads for each way attention is computed: on a GPU in bf16, tensor cores take multiples of 8.
fn ways() -> impl Iterator<Item = (Any, Heads)> {
    let heads = |head_dim| Heads { heads: 6, kv_heads: 2, head_dim };
    let f32 = backends(Dtype::F32).into_iter().map(move |backend| (backend, heads(20)));
    let bf16 = [20, 24].into_iter().filter_map(move |size| Some((gpu(Dtype::Bf16, Stored::Scratch)?, heads(size))));
    f32.chain(bf16)
}

#[test]
fn a_sequence_does_not_see_its_neighbours() {
    let lengths = [21, 40, 5];
    for (backend, heads) in ways() {
        let qkv = floats(7, 66 * heads.qkv_cols());
        let together = attention(&backend, &qkv, &lengths, heads);
        let alone = attention(&backend, &qkv[21 * heads.qkv_cols()..61 * heads.qkv_cols()], &[40], heads);
        same(&backend.name(), &together[21 * heads.q_cols()..61 * heads.q_cols()], &alone);
    }
}

#[test]
fn a_row_does_not_see_its_future() {
    for (backend, heads) in ways() {
        let mut qkv = floats(8, 60 * heads.qkv_cols());
        let before = attention(&backend, &qkv, &[60], heads);
        for last in [1, 15, 16, 37] {
            let cut = attention(&backend, &qkv[..last * heads.qkv_cols()], &[last], heads);
            same(&format!("the first {last} rows alone on {}", backend.name()), &cut, &before[..last * heads.q_cols()]);
        }
        qkv[37 * heads.qkv_cols()..].fill(f32::NAN);
        let after = attention(&backend, &qkv, &[60], heads);
        same("before a NaN", &after[..37 * heads.q_cols()], &before[..37 * heads.q_cols()]);
        assert!(after[37 * heads.q_cols()..].iter().all(|y| y.is_nan()), "{}", backend.name());
        // One value alone: rows from its own on, in its own column.
        let (heads_and_keys, column) = (heads.heads + heads.kv_heads, 3);
        let mut one = floats(8, 60 * heads.qkv_cols());
        one[37 * heads.qkv_cols() + heads_and_keys * heads.head_dim + column] = f32::INFINITY;
        let after = attention(&backend, &one, &[60], heads);
        for (index, (y, without)) in after.iter().zip(&before).enumerate() {
            let (row, col) = (index / heads.q_cols(), index % heads.q_cols());
            let reached = row >= 37 && col / heads.head_dim < heads.heads / heads.kv_heads && col % heads.head_dim == column;
            assert!(
                if reached { !y.is_finite() } else { y.to_bits() == without.to_bits() },
                "row {row}, column {col} is {y} on {}, {without} without the infinity",
                backend.name()
            );
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    for (backend, _) in ways() {
        let heads = Heads { heads: 2, kv_heads: 1, head_dim: 4 };
        let qkv = backend.zeros(3, 16).unwrap();
        let mut y = backend.zeros(3, 8).unwrap();
        let error = backend.attention(AttentionArgs { y: &mut y, qkv: &qkv, heads, starts: &[0, 2], scale: 1.0 }).unwrap_err();
        assert_eq!(error.to_string(), "attention: starts has shape [0, 2], expected [0, 3]");
    }
}
