//! The gradients: each is the derivative of its formula written out in f64, on every instruction set and with one, two and
//! three threads, which must agree bit for bit in f32. `+=` results begin at something other than zero.

use crate::compare::{chain, close, same};
use crate::data::{floats, host, indices, rounded, wide};
use crate::harness::{best, levels};
use prunectl::backend::cpu::{CpuBackend, Tensor};
use prunectl::ops::cases::{ATTENTION, AttentionCase, HEAD, HEADS, HeadCase, HeadsCase, LINEAR, LinearCase, ROWS, RowsCase};
use prunectl::ops::*;
use prunectl::random::Philox4x32;
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &[
    "attention_backward",
    "cross_entropy_backward",
    "dropout",
    "embedding_backward",
    "fill",
    "head_norm_backward",
    "layer_norm_backward",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "rms_norm_backward",
    "rope_backward",
    "swiglu_backward",
];

const EPS: f32 = 1e-5;

/// What `op` gives, which must be the same bits on every instruction set and with any number of threads.
fn invariant<const N: usize>(what: &str, op: impl Fn(&CpuBackend) -> [Vec<f32>; N]) -> [Vec<f32>; N] {
    let expected = op(&best(Dtype::F32));
    let others = [1, 3].map(|threads| CpuBackend::new(Dtype::F32, Some(threads)).unwrap());
    let levels = levels().into_iter().map(|isa| CpuBackend::with_isa(Dtype::F32, Some(2), isa).unwrap());
    for backend in levels.chain(others) {
        for (found, expected) in op(&backend).iter().zip(&expected) {
            same(&format!("{what} on {}, {} threads", backend.isa().name(), backend.threads()), found, expected);
        }
    }
    expected
}

fn up(backend: &CpuBackend, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    backend.upload(rows, cols, values).unwrap()
}

fn nan(backend: &CpuBackend, rows: usize, cols: usize) -> Tensor {
    up(backend, rows, cols, &vec![f32::NAN; rows * cols])
}

fn down(backend: &CpuBackend, tensor: &Tensor) -> Vec<f32> {
    backend.download(tensor).unwrap()
}

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
            let [d_x, d_w] = invariant(&what, |b| {
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
            close(&what, &d_x, &expected_x, &size_x, chain(cols));
            close(&what, &d_w, &expected_w, &size_w, chain(rows + cols));
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
        let [d_x, d_w] = invariant(&what, |b| {
            let (mut d, mut d_w) = (up(b, rows, cols, &d), up(b, heads, head_dim, &before));
            let (x, weight, d_weight) = (up(b, rows, cols, &x), up(b, heads, head_dim, &weight), Some(&mut d_w));
            b.head_norm_backward(HeadNormBackwardArgs { d: &mut d, d_weight, x: &x, weight: &weight, first_col, eps: EPS })
                .unwrap();
            [down(b, &d), down(b, &d_w)]
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
        close(&what, &d_x, &expected, &size, chain(head_dim));
        close(&what, &d_w, &expected_w, &size_w, chain(rows + head_dim));
    }
}

#[test]
fn rope_backward_is_the_transpose_of_rope() {
    for &HeadsCase { rows, heads, head_dim, behind } in HEADS {
        let cols = heads * head_dim + behind;
        let (half, positions) = (head_dim / 2, indices(1, rows, 50));
        let (cos, sin) = (floats(2, 50 * half), floats(3, 50 * half));
        let x = floats(4, rows * cols);
        for interleaved in [false, true] {
            let [y] = invariant("rope_backward", |b| {
                let (mut x, cos, sin) = (up(b, rows, cols, &x), up(b, 50, half, &cos), up(b, 50, half, &sin));
                b.rope_backward(RopeArgs { x: &mut x, heads, cos: &cos, sin: &sin, positions: &positions, interleaved }).unwrap();
                [down(b, &x)]
            });
            let mut expected = wide(&x);
            for (r, &position) in positions.iter().enumerate() {
                for h in 0..heads {
                    for i in 0..half {
                        let at = r * cols + h * head_dim;
                        let (a, b) = if interleaved { (at + 2 * i, at + 2 * i + 1) } else { (at + i, at + half + i) };
                        let table = position as usize * half + i;
                        let (c, s) = (f64::from(cos[table]), f64::from(sin[table]));
                        let (x_a, x_b) = (f64::from(x[a]), f64::from(x[b]));
                        (expected[a], expected[b]) = (x_a * c + x_b * s, x_b * c - x_a * s);
                    }
                }
            }
            close("rope_backward", &y, &expected, &vec![2.0; rows * cols], chain(2));
        }
    }
}

#[test]
fn swiglu() {
    for &RowsCase { rows, cols } in ROWS {
        let gate_up: Vec<f32> = floats(1, rows * 2 * cols).iter().map(|x| 12.0 * x).collect();
        let d_y = floats(2, rows * cols);
        let [d] = invariant("swiglu_backward", |b| {
            let mut d = nan(b, rows, 2 * cols);
            let (gate_up, d_y) = (up(b, rows, 2 * cols, &gate_up), up(b, rows, cols, &d_y));
            b.swiglu_backward(SwigluBackwardArgs { d_gate_up: &mut d, gate_up: &gate_up, d_y: &d_y }).unwrap();
            [down(b, &d)]
        });
        let (mut expected, mut size) = (vec![0.0; rows * 2 * cols], vec![0.0; rows * 2 * cols]);
        for r in 0..rows {
            for c in 0..cols {
                let (at_gate, at_up) = (r * 2 * cols + c, r * 2 * cols + cols + c);
                let (g, u, d) = (f64::from(gate_up[at_gate]), f64::from(gate_up[at_up]), f64::from(d_y[r * cols + c]));
                let s = 1.0 / (1.0 + (-g).exp());
                (expected[at_gate], size[at_gate]) = (d * u * s * (1.0 + g * (1.0 - s)), (d * u * s).abs() * (1.0 + g.abs()));
                (expected[at_up], size[at_up]) = (d * g * s, (d * g * s).abs());
            }
        }
        close("swiglu_backward", &d, &expected, &size, chain(8));
    }
}

#[test]
fn embedding_dropout_and_fill() {
    for &RowsCase { rows, cols } in ROWS {
        let (vocab, d_y) = (11, floats(1, rows * cols));
        let (ids, before) = (indices(2, rows, vocab), floats(3, vocab * cols));
        let [d] = invariant("embedding_backward", |b| {
            let mut d = up(b, vocab, cols, &before);
            b.embedding_backward(EmbeddingBackwardArgs { d_table: &mut d, d_y: &up(b, rows, cols, &d_y), ids: &ids }).unwrap();
            [down(b, &d)]
        });
        let (mut expected, mut size) = (wide(&before), vec![1.0; vocab * cols]);
        for (r, &id) in ids.iter().enumerate() {
            for c in 0..cols {
                expected[id as usize * cols + c] += f64::from(d_y[r * cols + c]);
                size[id as usize * cols + c] += 1.0;
            }
        }
        close("embedding_backward", &d, &expected, &size, chain(rows));
        let mask = DropoutMask { seed: 0x1234_5678_9abc, stream: 77, probability: 0.3 };
        let [y] = invariant("dropout", |b| {
            let mut y = nan(b, rows, cols);
            b.dropout(DropoutArgs { y: &mut y, x: &up(b, rows, cols, &d_y), mask }).unwrap();
            [down(b, &y)]
        });
        let random = Philox4x32::new(mask.seed, mask.stream);
        for (i, (y, x)) in y.iter().zip(&d_y).enumerate() {
            let word = random.block(i as u64 / 4)[i % 4];
            let kept = f64::from(word) >= (0.3_f32 as f64 * 4_294_967_296.0).floor();
            let expected = if kept { f64::from(*x) / (1.0 - f64::from(0.3_f32)) } else { 0.0 };
            assert!(
                (f64::from(*y) - expected).abs() <= 2e-7 * expected.abs(),
                "dropout: element {i} is {y}, expected {expected}"
            );
        }
        let [y] = invariant("fill", |b| {
            let mut y = nan(b, rows, cols);
            b.fill(&mut y, 1.5).unwrap();
            [down(b, &y)]
        });
        assert!(y.len() == rows * cols && y.iter().all(|&y| y == 1.5));
    }
    let b = best(Dtype::F32);
    let (mut y, x) = (b.zeros(1, 2).unwrap(), b.zeros(1, 2).unwrap());
    let mask = DropoutMask { seed: 0, stream: 0, probability: 1.0 };
    let error = b.dropout(DropoutArgs { y: &mut y, x: &x, mask }).unwrap_err();
    assert_eq!(error.to_string(), "dropout must be at least 0 and below 1, not 1");
}

/// Gradients of a linear layer: d_x accumulated or not, d_W of some columns of d_y, d_bias.
fn linear_gradients(b: &CpuBackend, case: LinearCase, parted: bool, data: [&[f32]; 5]) -> [Vec<f32>; 3] {
    let LinearCase { rows, in_features, out_features, accumulate, .. } = case;
    let [x, w, d_y, before, before_w] = data;
    let weight = if parted {
        b.prepare_tensors(&[&up(b, out_features, in_features, w)]).unwrap()
    } else {
        b.prepare(&[host("w", &[out_features, in_features], w, Dtype::F32)]).unwrap()
    };
    let x = up(b, rows, in_features, x);
    let d_y = up(b, rows, out_features, d_y);
    let mut d_x = if accumulate { up(b, rows, in_features, before) } else { nan(b, rows, in_features) };
    b.linear_backward_input(LinearBackwardInputArgs { d_x: &mut d_x, d_y: &d_y, weight: &weight, accumulate }).unwrap();
    // The last half of the outputs, as a part of a stack.
    let first_col = out_features / 2;
    let own = out_features - first_col;
    let mut d_weight = up(b, own, in_features, &before_w[..own * in_features]);
    b.linear_backward_weight(LinearBackwardWeightArgs { d_weight: &mut d_weight, x: &x, d_y: &d_y, first_col, scale: -1.5 })
        .unwrap();
    let mut d_bias = up(b, 1, own, &floats(9, own));
    b.linear_backward_bias(LinearBackwardBiasArgs { d_bias: &mut d_bias, d_y: &d_y, first_col }).unwrap();
    [down(b, &d_x), down(b, &d_weight), down(b, &d_bias)]
}

#[test]
fn linear() {
    for &case in
        LINEAR.iter().chain(&[LinearCase { rows: 2100, in_features: 35, out_features: 67, bias: false, accumulate: false }])
    {
        let LinearCase { rows, in_features, out_features, accumulate, .. } = case;
        let (x, w, d_y) = (floats(1, rows * in_features), floats(2, out_features * in_features), floats(3, rows * out_features));
        let (before, before_w) = (floats(4, rows * in_features), floats(5, out_features * in_features));
        let what = format!("{case:?}");
        let data: [&[f32]; 5] = [&x, &w, &d_y, &before, &before_w];
        let check = |what: &str, found: &[Vec<f32>; 3], exact: [&[f32]; 3]| {
            let [x, w, d_y] = exact;
            let (mut d_x, mut size_x) = (vec![0.0; rows * in_features], vec![1.0; rows * in_features]);
            if accumulate {
                d_x = wide(&before);
            }
            let first_col = out_features / 2;
            let own = out_features - first_col;
            let (mut d_w, mut size_w) = (wide(&before_w[..own * in_features]), vec![1.0; own * in_features]);
            let (mut d_b, mut size_b) = (wide(&floats(9, own)), vec![1.0; own]);
            for r in 0..rows {
                for n in 0..out_features {
                    let d = f64::from(d_y[r * out_features + n]);
                    for k in 0..in_features {
                        let term = d * f64::from(w[n * in_features + k]);
                        d_x[r * in_features + k] += term;
                        size_x[r * in_features + k] += term.abs();
                    }
                    let Some(n) = n.checked_sub(first_col) else { continue };
                    for k in 0..in_features {
                        let term = -1.5 * d * f64::from(x[r * in_features + k]);
                        d_w[n * in_features + k] += term;
                        size_w[n * in_features + k] += term.abs();
                    }
                }
            }
            // Sums of d_y are not products: nothing is rounded to bf16.
            for d_y in data[2].chunks(out_features) {
                for (n, &d) in d_y[first_col..].iter().enumerate() {
                    d_b[n] += f64::from(d);
                    size_b[n] += f64::from(d).abs();
                }
            }
            close(&format!("{what} d_x"), &found[0], &d_x, &size_x, chain(out_features));
            close(&format!("{what} d_weight"), &found[1], &d_w, &size_w, chain(rows));
            close(&format!("{what} d_bias"), &found[2], &d_b, &size_b, chain(rows));
        };
        for parted in [false, true] {
            let found = invariant(&what, |b| linear_gradients(b, case, parted, data));
            check(&what, &found, [&x, &w, &d_y]);
        }
        let round = |values: &[f32]| rounded(values, Dtype::Bf16);
        let (exact_x, exact_w, exact_d_y) = (round(&x), round(&w), round(&d_y));
        for isa in levels() {
            let found = [1, 2, 3].map(|threads| {
                let b = CpuBackend::with_isa(Dtype::Bf16, Some(threads), isa).unwrap();
                linear_gradients(&b, case, threads == 2, data)
            });
            let what = format!("{what} in bf16 on {}", isa.name());
            check(&what, &found[0], [&exact_x, &exact_w, &exact_d_y]);
            for other in &found[1..] {
                for (found, other) in found[0].iter().zip(other) {
                    same(&what, found, other);
                }
            }
        }
    }
}

#[test]
fn attention() {
    let long = AttentionCase { lengths: &[3, 171, 57], heads: Heads { heads: 6, kv_heads: 2, head_dim: 40 } };
    for &AttentionCase { lengths, heads } in ATTENTION.iter().chain(&[long]) {
        let rows: usize = lengths.iter().sum();
        let mut starts = vec![0_u32];
        for &length in lengths {
            starts.push(starts[starts.len() - 1] + u32::try_from(length).unwrap());
        }
        let (cols, q_cols, kv_cols, dim) = (heads.qkv_cols(), heads.q_cols(), heads.kv_cols(), heads.head_dim);
        let (qkv, d_y) = (floats(1, rows * cols), floats(2, rows * q_cols));
        let scale = 1.7 / (dim as f32).sqrt();
        let what = format!("{lengths:?} {heads:?}");
        let [found] = invariant(&what, |b| {
            let (qkv, d_y) = (up(b, rows, cols, &qkv), up(b, rows, q_cols, &d_y));
            let (mut y, mut d_qkv) = (nan(b, rows, q_cols), nan(b, rows, cols));
            b.attention(AttentionArgs { y: &mut y, qkv: &qkv, heads, starts: &starts, scale }).unwrap();
            let args = AttentionBackwardArgs { d_qkv: &mut d_qkv, qkv: &qkv, y: &y, d_y: &d_y, heads, starts: &starts, scale };
            b.attention_backward(args).unwrap();
            [down(b, &d_qkv)]
        });
        let (qkv, d_y, scale) = (wide(&qkv), wide(&d_y), f64::from(scale));
        let (mut expected, mut size) = (vec![0.0; rows * cols], vec![1.0; rows * cols]);
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
        close(&what, &found, &expected, &size, chain(200));
    }
}

#[derive(Clone, Copy)]
enum From {
    Nobody,
    States,
    TopK,
}

#[test]
fn cross_entropy() {
    for &HeadCase { rows, hidden_size, vocab_size, logit_scale } in HEAD {
        let (x, head) = (floats(1, rows * hidden_size), floats(2, vocab_size * hidden_size));
        let teacher_size = hidden_size + 3;
        let (teacher_x, teacher_head) = (floats(3, rows * teacher_size), floats(4, vocab_size * teacher_size));
        let targets = indices(5, rows, vocab_size);
        let before = floats(6, vocab_size * hidden_size);
        let k = 2;
        let ids: Vec<u32> = (0..rows * k).map(|i| u32::try_from((i * 7 + 1) % vocab_size).unwrap()).collect();
        let log_probs: Vec<f32> = floats(7, rows * k).iter().map(|x| 2.0 * x - 2.0).collect();
        let scale = 0.37;
        for (from, temperature, mix) in [
            (From::Nobody, 1.0, 0.0),
            (From::States, 1.0, 1.0),
            (From::States, 2.5, 0.6),
            (From::TopK, 1.0, 0.3),
            (From::TopK, 3.0, 0.8),
        ] {
            let what = format!("{rows} x {hidden_size} x {vocab_size}, temperature {temperature}, mix {mix}");
            let run = |b: &CpuBackend, with_head: bool| {
                let head = b.prepare(&[host("head", &[vocab_size, hidden_size], &head, Dtype::F32)]).unwrap();
                let t_head = b.prepare(&[host("t", &[vocab_size, teacher_size], &teacher_head, Dtype::F32)]).unwrap();
                let (x, t_x) = (up(b, rows, hidden_size, &x), up(b, rows, teacher_size, &teacher_x));
                let teacher = match from {
                    From::Nobody => None,
                    From::States => Some(Teacher::States { x: &t_x, head: &t_head, logit_scale: 0.8 }),
                    From::TopK => Some(Teacher::TopK { k, ids: &ids, log_probs: &log_probs }),
                };
                let (mut d_x, mut d_head) = (nan(b, rows, hidden_size), up(b, vocab_size, hidden_size, &before));
                let losses = b
                    .cross_entropy_backward(CrossEntropyBackwardArgs {
                        d_x: &mut d_x,
                        d_head: with_head.then_some(&mut d_head),
                        x: &x,
                        head: &head,
                        targets: &targets,
                        logit_scale,
                        scale,
                        distillation: teacher.map(|teacher| Distillation { teacher, temperature, mix }),
                    })
                    .unwrap();
                [down(b, &d_x), down(b, &d_head), losses.nll, losses.kl]
            };
            let [d_x, d_head, nll, kl] = invariant(&what, |b| run(b, true));
            let [alone, untouched, ..] = run(&best(Dtype::F32), false);
            same(&what, &alone, &d_x);
            same(&what, &untouched, &before);
            let (t, m) = (f64::from(temperature), f64::from(mix));
            let softmax = |l: &[f64]| {
                let max = l.iter().fold(f64::NEG_INFINITY, |m, l| m.max(*l));
                let total: f64 = l.iter().map(|l| (l - max).exp()).sum();
                l.iter().map(|l| (l - max).exp() / total).collect::<Vec<f64>>()
            };
            let logits = |x: &[f32], head: &[f32], width: usize, factor: f32, row: usize| -> Vec<f64> {
                let x = &x[row * width..][..width];
                let dot =
                    |n: usize| x.iter().zip(&head[n * width..][..width]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                (0..vocab_size).map(|n| f64::from(factor) * dot(n)).collect()
            };
            let (mut expected_x, mut expected_head) = (vec![0.0; rows * hidden_size], wide(&before));
            let (mut expected_nll, mut expected_kl) = (Vec::new(), Vec::new());
            for row in 0..rows {
                let l = logits(&x, &head, hidden_size, logit_scale, row);
                let soft = |l: &[f64]| softmax(&l.iter().map(|l| l / t).collect::<Vec<f64>>());
                let (own, q) = (softmax(&l), soft(&l));
                let p = match from {
                    From::Nobody => None,
                    From::States => Some(soft(&logits(&teacher_x, &teacher_head, teacher_size, 0.8, row))),
                    From::TopK => {
                        let weights: Vec<f64> = (0..k).map(|i| (f64::from(log_probs[row * k + i]) / t).exp()).collect();
                        let mut p = vec![0.0; vocab_size];
                        for (i, weight) in weights.iter().enumerate() {
                            p[ids[row * k + i] as usize] = weight / weights.iter().sum::<f64>();
                        }
                        Some(p)
                    }
                };
                let target = targets[row] as usize;
                expected_nll.push(-own[target].ln());
                if let Some(p) = &p {
                    expected_kl.push(p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
                }
                for n in 0..vocab_size {
                    let hard = own[n] - f64::from(u8::from(n == target));
                    let from_teacher = p.as_ref().map_or(0.0, |p| m * t * (q[n] - p[n]));
                    let share = if p.is_some() { 1.0 - m } else { 1.0 };
                    let d = f64::from(scale) * f64::from(logit_scale) * (share * hard + from_teacher);
                    for c in 0..hidden_size {
                        expected_x[row * hidden_size + c] += d * f64::from(head[n * hidden_size + c]);
                        expected_head[n * hidden_size + c] += d * f64::from(x[row * hidden_size + c]);
                    }
                }
            }
            let sized = |len: usize, size: f64| vec![size; len];
            let magnitude = f64::from(scale * logit_scale) * f64::from(temperature) * 4.0;
            close(&format!("{what} d_x"), &d_x, &expected_x, &sized(d_x.len(), magnitude), chain(hidden_size));
            close(&format!("{what} d_head"), &d_head, &expected_head, &sized(d_head.len(), 1.0 + magnitude), chain(hidden_size));
            close(&format!("{what} nll"), &nll, &expected_nll, &sized(rows, 8.0), chain(hidden_size));
            close(&format!("{what} kl"), &kl, &expected_kl, &sized(expected_kl.len(), 8.0), chain(hidden_size));
        }
    }
}

#[test]
fn options_out_of_range_are_named() {
    let b = best(Dtype::F32);
    let head = b.prepare(&[host("head", &[4, 2], &floats(1, 8), Dtype::F32)]).unwrap();
    let x = b.zeros(1, 2).unwrap();
    for (temperature, mix, message) in [
        (0.0, 0.5, "the temperature must be above 0, not 0"),
        (f32::NAN, 0.5, "the temperature must be above 0, not NaN"),
        (1.0, 1.5, "the weight of the teacher must be 0 to 1, not 1.5"),
    ] {
        let teacher = Teacher::TopK { k: 1, ids: &[3], log_probs: &[0.0] };
        let error = b
            .cross_entropy_backward(CrossEntropyBackwardArgs {
                d_x: &mut b.zeros(1, 2).unwrap(),
                d_head: None,
                x: &x,
                head: &head,
                targets: &[1],
                logit_scale: 1.0,
                scale: 1.0,
                distillation: Some(Distillation { teacher, temperature, mix }),
            })
            .unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}
