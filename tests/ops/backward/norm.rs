//! Gradients of RMSNorm and LayerNorm.

use super::{EPS, Found, down, everywhere, up};
use crate::any::{Any, Stored};
use crate::compare::{chain, close};
use crate::data::{floats, rounded, wide};
use crate::everywhere::{gpu, stored_as_bf16};
use crate::harness::pick;
use prunectl::ops::cases::{HEADS, HeadsCase, ROWS, RowsCase};
use prunectl::ops::*;
use prunectl::tensor::Dtype;

/// Gradients of y = n weight with n = (x - mean) inv, mean 0 for RMSNorm, of one row: (d_x, d_weight, magnitude of d_x).
fn norm_gradient(x: &[f64], d_y: &[f64], weight: &[f64], centred: bool) -> (Vec<f64>, Vec<f64>, f64) {
    let count = x.len() as f64;
    let mean = if centred { x.iter().sum::<f64>() / count } else { 0.0 };
    let inv = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count + f64::from(EPS)).sqrt();
    let n: Vec<f64> = x.iter().map(|x| (x - mean) * inv).collect();
    let g: Vec<f64> = d_y.iter().zip(weight).map(|(d, w)| d * w).collect();
    let mean_g = if centred { g.iter().sum::<f64>() / count } else { 0.0 };
    let mean_gn = g.iter().zip(&n).map(|(g, n)| g * n).sum::<f64>() / count;
    let d_x = g.iter().zip(&n).map(|(g, n)| inv * (g - mean_g - n * mean_gn)).collect();
    let d_weight = d_y.iter().zip(&n).map(|(d, n)| d * n).collect();
    let most = |v: &[f64]| v.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    (d_x, d_weight, inv * most(&g) * (1.0 + most(&n)))
}

#[test]
fn norms_of_rows() {
    for &RowsCase { rows, cols } in ROWS {
        let (x, d_y, weight) = (floats(1, rows * cols), floats(2, rows * cols), floats(3, cols));
        let (x_before, w_before) = (floats(4, rows * cols), floats(5, cols));
        for centred in [false, true] {
            let what = format!("{rows} x {cols}, centred {centred}");
            let found = everywhere(&what, |b| {
                let (mut d_x, mut d_w) = (up(b, rows, cols, &x_before), up(b, 1, cols, &w_before));
                let (x, weight, d_y) = (up(b, rows, cols, &x), up(b, 1, cols, &weight), up(b, rows, cols, &d_y));
                let (x, weight, d_y, d_weight) = (&x, &weight, &d_y, Some(&mut d_w));
                if centred {
                    b.layer_norm_backward(LayerNormBackwardArgs { d_x: &mut d_x, d_weight, x, weight, d_y, eps: EPS }).unwrap();
                } else {
                    b.rms_norm_backward(RmsNormBackwardArgs { d_x: &mut d_x, d_weight, x, weight, d_y, eps: EPS }).unwrap();
                }
                [down(b, &d_x), down(b, &d_w)]
            });
            let (mut expected_x, mut expected_w) = (wide(&x_before), wide(&w_before));
            let (mut size_x, mut size_w) = (vec![1.0; rows * cols], vec![1.0; cols]);
            for r in 0..rows {
                let row = |v: &[f32]| wide(&v[r * cols..][..cols]);
                let (d_x, d_weight, size) = norm_gradient(&row(&x), &row(&d_y), &wide(&weight), centred);
                for c in 0..cols {
                    expected_x[r * cols + c] += d_x[c];
                    size_x[r * cols + c] += size;
                    expected_w[c] += d_weight[c];
                    size_w[c] += d_weight[c].abs() + if centred { size } else { 0.0 };
                }
            }
            for Found { what, values: [d_x, d_w] } in found {
                close(&what, &d_x, &expected_x, &size_x, chain(cols));
                close(&what, &d_w, &expected_w, &size_w, chain(rows + cols));
            }
        }
    }
}

#[test]
fn norms_of_heads() {
    for &HeadsCase { rows, heads, head_dim, behind } in HEADS {
        let first_col = 3;
        let (own, cols) = (heads * head_dim, first_col + heads * head_dim + behind);
        let (x, d, weight, before) = (floats(1, rows * cols), floats(2, rows * cols), floats(3, own), floats(4, own));
        let what = format!("{rows} rows, {heads} x {head_dim}");
        let all: Vec<usize> = (0..rows).collect();
        let op = |b: &Any, x: &[f32], d: &[f32], picked: &[usize]| {
            let rows = picked.len();
            let (x, mut d) = (up(b, rows, cols, &pick(x, cols, picked)), up(b, rows, cols, &pick(d, cols, picked)));
            let (weight, mut d_w) = (b.upload_f32(heads, head_dim, &weight), b.upload_f32(heads, head_dim, &before));
            let d_weight = Some(&mut d_w);
            b.head_norm_backward(HeadNormBackwardArgs { d: &mut d, d_weight, x: &x, weight: &weight, first_col, eps: EPS })
                .unwrap();
            [down(b, &d), down(b, &d_w)]
        };
        let found = everywhere(&what, |b| op(b, &x, &d, &all));
        stored_as_bf16(&what, rows, cols, 0.0, |b, round, picked| {
            let [d_x, _] = op(b, &round(&x), &round(&d), picked);
            d_x
        });
        let (mut expected, mut size) = (wide(&d), vec![0.0; rows * cols]);
        let (mut expected_w, mut size_w) = (wide(&before), vec![1.0; own]);
        for r in 0..rows {
            for h in 0..heads {
                let at = r * cols + first_col + h * head_dim;
                let part = |v: &[f32]| wide(&v[at..at + head_dim]);
                let (d_x, d_weight, magnitude) =
                    norm_gradient(&part(&x), &part(&d), &wide(&weight[h * head_dim..][..head_dim]), true);
                for c in 0..head_dim {
                    (expected[at + c], size[at + c]) = (d_x[c], magnitude);
                    expected_w[h * head_dim + c] += d_weight[c];
                    size_w[h * head_dim + c] += d_weight[c].abs() + magnitude;
                }
            }
        }
        for Found { what, values: [d_x, d_w] } in found {
            close(&what, &d_x, &expected, &size, chain(head_dim));
            close(&what, &d_w, &expected_w, &size_w, chain(rows + head_dim));
        }
        // d_weight is summed in f32 whatever x and d are stored in.
        if let Some(gpu) = gpu(Dtype::Bf16, Stored::Scratch) {
            let [x, d] = [&x, &d].map(|values| rounded(values, Dtype::Bf16));
            let [_, expected] = op(&Any::Cpu(crate::harness::best(Dtype::F32)), &x, &d, &all);
            let [_, d_w] = op(&gpu, &x, &d, &all);
            close(&format!("{what} stored as bf16, d_weight"), &d_w, &wide(&expected), &size_w, chain(rows + head_dim));
        }
    }
}
