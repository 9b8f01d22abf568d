//! Gradient of attention.

use super::{Found, all_same, down, everywhere, nan, on_gpu_in_bf16, up};
use crate::any::{Any, Stored};
use crate::compare::{chain, close};
use crate::data::{floats, rounded, wide};
use crate::harness::levels;
use prunectl::backend::cpu::CpuBackend;
use prunectl::ops::cases::{ATTENTION, AttentionCase};
use prunectl::ops::*;
use prunectl::tensor::Dtype;

/// d_qkv and the magnitude of what went into each element.
fn reference(heads: Heads, starts: &[u32], scale: f64, qkv: &[f64], d_y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (cols, q_cols, kv_cols, dim) = (heads.qkv_cols(), heads.q_cols(), heads.kv_cols(), heads.head_dim);
    let (mut expected, mut size) = (vec![0.0; qkv.len()], vec![1.0; qkv.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for range in starts.windows(2) {
        for row in range[0] as usize..range[1] as usize {
            for h in 0..heads.heads {
                let group = h / (heads.heads / heads.kv_heads);
                let q_at = row * cols + h * dim;
                let (k_col, v_col) = (q_cols + group * dim, q_cols + kv_cols + group * dim);
                let d_out = &d_y[row * q_cols + h * dim..][..dim];
                let keys: Vec<usize> = (range[0] as usize..=row).collect();
                let at = |t: usize, col: usize| &qkv[t * cols + col..][..dim];
                let scores: Vec<f64> = keys.iter().map(|&t| scale * dot(&qkv[q_at..q_at + dim], at(t, k_col))).collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| s.exp() / total).collect();
                let d_p: Vec<f64> = keys.iter().map(|&t| dot(d_out, at(t, v_col))).collect();
                let mean = dot(&p, &d_p);
                for (i, &t) in keys.iter().enumerate() {
                    let d_s = p[i] * (d_p[i] - mean) * scale;
                    for c in 0..dim {
                        let terms = [
                            (q_at + c, d_s * at(t, k_col)[c]),
                            (t * cols + k_col + c, d_s * qkv[q_at + c]),
                            (t * cols + v_col + c, p[i] * d_out[c]),
                        ];
                        for (index, term) in terms {
                            expected[index] += term;
                            size[index] += term.abs() + p[i] * dim as f64 * 0.1;
                        }
                    }
                }
            }
        }
    }
    (expected, size)
}

#[test]
fn attention() {
    let heads = |heads, kv_heads, head_dim| Heads { heads, kv_heads, head_dim };
    let further = [
        AttentionCase { lengths: &[3, 171, 57], heads: heads(6, 2, 40) },
        // Each kernel on tensor cores, with rows on either side of its blocks.
        AttentionCase { lengths: &[65, 16], heads: heads(2, 1, 128) },
        AttentionCase { lengths: &[33, 49], heads: heads(2, 1, 104) },
        AttentionCase { lengths: &[17, 70], heads: heads(2, 2, 136) },
        AttentionCase { lengths: &[15], heads: heads(1, 1, 256) },
    ];
    for &AttentionCase { lengths, heads } in ATTENTION.iter().chain(&further) {
        let rows: usize = lengths.iter().sum();
        let mut starts = vec![0_u32];
        for &length in lengths {
            starts.push(starts[starts.len() - 1] + u32::try_from(length).unwrap());
        }
        let (cols, q_cols) = (heads.qkv_cols(), heads.q_cols());
        let (qkv, d_y) = (floats(1, rows * cols), floats(2, rows * q_cols));
        let scale = 1.7 / (heads.head_dim as f32).sqrt();
        let what = format!("{lengths:?} {heads:?}");
        let op = |b: &Any, qkv: &[f32], d_y: &[f32]| {
            let (qkv, d_y) = (up(b, rows, cols, qkv), up(b, rows, q_cols, d_y));
            let (mut y, mut d_qkv) = (nan(b, rows, q_cols), nan(b, rows, cols));
            b.attention(AttentionArgs { y: &mut y, qkv: &qkv, heads, starts: &starts, scale }).unwrap();
            let args = AttentionBackwardArgs { d_qkv: &mut d_qkv, qkv: &qkv, y: &y, d_y: &d_y, heads, starts: &starts, scale };
            b.attention_backward(args).unwrap();
            [down(b, &d_qkv)]
        };
        let (expected, size) = reference(heads, &starts, f64::from(scale), &wide(&qkv), &wide(&d_y));
        for Found { what, values: [found] } in everywhere(&what, |b| op(b, &qkv, &d_y)) {
            close(&what, &found, &expected, &size, chain(200));
        }
        // Weights, the scores' gradients and y are rounded to bf16 on the way, at most 2^-8 of each, and the result once more.
        let [qkv, d_y] = [&qkv, &d_y].map(|values| rounded(values, Dtype::Bf16));
        let (expected, size) = reference(heads, &starts, f64::from(scale), &wide(&qkv), &wide(&d_y));
        if let Some(Found { what, values: [found] }) = on_gpu_in_bf16(&what, Stored::Scratch, |b| op(b, &qkv, &d_y)) {
            close(&what, &found, &expected, &size, 4.0 / 256.0);
        }
        for isa in levels() {
            let [one, three] =
                [1, 3].map(|threads| op(&Any::Cpu(CpuBackend::with_isa(Dtype::Bf16, Some(threads), isa).unwrap()), &qkv, &d_y));
            let what = format!("{what} in bf16 on {}", isa.name());
            close(&what, &one[0], &expected, &size, 2.0 / 256.0);
            all_same(&what, &one, &three);
        }
    }
}
