use crate::compare::{chain, close, same};
use crate::data::floats;
use crate::harness::{best, invariant};
use prunectl::backend::cpu::CpuBackend;
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

pub(crate) fn attention(backend: &CpuBackend, qkv: &[f32], lengths: &[usize], heads: Heads) -> Vec<f32> {
    let rows = lengths.iter().sum();
    let qkv = backend.upload(rows, heads.qkv_cols(), qkv).unwrap();
    let mut y = backend.upload(rows, heads.q_cols(), &vec![f32::NAN; rows * heads.q_cols()]).unwrap();
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
        let y = invariant(&format!("{case:?}"), 1, rows * heads.q_cols(), |backend, picked| {
            if picked.is_empty() { Vec::new() } else { attention(backend, &qkv, lengths, heads) }
        });
        check(&format!("{case:?}"), &y, &qkv, lengths, heads);
    }
}

#[test]
fn a_sequence_does_not_see_its_neighbours() {
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 20 };
    let lengths = [21, 40, 5];
    let qkv = floats(7, 66 * heads.qkv_cols());
    let backend = best(Dtype::F32);
    let together = attention(&backend, &qkv, &lengths, heads);
    let alone = attention(&backend, &qkv[21 * heads.qkv_cols()..61 * heads.qkv_cols()], &[40], heads);
    same("the middle sequence", &together[21 * heads.q_cols()..61 * heads.q_cols()], &alone);
}

#[test]
fn a_row_does_not_see_its_future() {
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 20 };
    let backend = best(Dtype::F32);
    let mut qkv = floats(8, 60 * heads.qkv_cols());
    let before = attention(&backend, &qkv, &[60], heads);
    for last in [1, 15, 16, 37] {
        let cut = attention(&backend, &qkv[..last * heads.qkv_cols()], &[last], heads);
        same(&format!("the first {last} rows alone"), &cut, &before[..last * heads.q_cols()]);
    }
    qkv[37 * heads.qkv_cols()..].fill(f32::NAN);
    let after = attention(&backend, &qkv, &[60], heads);
    same("before a NaN", &after[..37 * heads.q_cols()], &before[..37 * heads.q_cols()]);
    assert!(after[37 * heads.q_cols()..].iter().all(|y| y.is_nan()));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 4 };
    let qkv = backend.zeros(3, 16).unwrap();
    let mut y = backend.zeros(3, 8).unwrap();
    let error = backend.attention(AttentionArgs { y: &mut y, qkv: &qkv, heads, starts: &[0, 2], scale: 1.0 }).unwrap_err();
    assert_eq!(error.to_string(), "attention: starts has shape [0, 2], expected [0, 3]");
}
