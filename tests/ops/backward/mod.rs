//! The gradients: each is the derivative of its formula written out in f64, on every instruction set and with one, two and
//! three threads, which must agree bit for bit in f32, and on the GPU. `+=` results begin at something other than zero.

mod attention;
mod cross_entropy;
mod linear;
mod norm;

use crate::any::{Any, Stored, Tensor};
use crate::compare::{chain, close, same};
use crate::data::{floats, indices, rounded, wide};
use crate::everywhere::{backends, gpu, stored_as_bf16};
use crate::harness::{best, levels, pick};
use prunectl::backend::cpu::CpuBackend;
use prunectl::ops::cases::{HEADS, HeadsCase, ROWS, RowsCase};
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

/// What a backend computed, for comparison with the formula.
struct Found<const N: usize> {
    what: String,
    values: [Vec<f32>; N],
}

/// What `op` gives in f32: on the CPU, which must be the same bits on every instruction set and with any number of threads, and on
/// the GPU, which must be the same bits twice.
fn everywhere<const N: usize>(what: &str, op: impl Fn(&Any) -> [Vec<f32>; N]) -> Vec<Found<N>> {
    let values = op(&Any::Cpu(best(Dtype::F32)));
    let others = [1, 3].map(|threads| CpuBackend::new(Dtype::F32, Some(threads)).unwrap());
    let levels = levels().into_iter().map(|isa| CpuBackend::with_isa(Dtype::F32, Some(2), isa).unwrap());
    for backend in levels.chain(others) {
        let what = format!("{what} on {}, {} threads", backend.isa().name(), backend.threads());
        all_same(&what, &op(&Any::Cpu(backend)), &values);
    }
    let cpu = Found { what: what.to_owned(), values };
    std::iter::once(cpu).chain(gpu(Dtype::F32, Stored::Plain).map(|gpu| twice(what, &gpu, &op))).collect()
}

/// What `op` gives on the GPU in bf16 arithmetic; nothing where there is no GPU.
fn on_gpu_in_bf16<const N: usize>(what: &str, stored: Stored, op: impl Fn(&Any) -> [Vec<f32>; N]) -> Option<Found<N>> {
    gpu(Dtype::Bf16, stored).map(|gpu| twice(&format!("{what} in bf16"), &gpu, &op))
}

fn twice<const N: usize>(what: &str, gpu: &Any, op: &impl Fn(&Any) -> [Vec<f32>; N]) -> Found<N> {
    let what = format!("{what} on {}", gpu.name());
    let values = op(gpu);
    all_same(&format!("{what}, again"), &op(gpu), &values);
    Found { what, values }
}

fn all_same<const N: usize>(what: &str, found: &[Vec<f32>; N], expected: &[Vec<f32>; N]) {
    found.iter().zip(expected).for_each(|(found, expected)| same(what, found, expected));
}

fn up(backend: &Any, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    backend.upload(rows, cols, values).unwrap()
}

fn nan(backend: &Any, rows: usize, cols: usize) -> Tensor {
    up(backend, rows, cols, &vec![f32::NAN; rows * cols])
}

fn down(backend: &Any, tensor: &Tensor) -> Vec<f32> {
    backend.download(tensor).unwrap()
}

#[test]
fn rope_backward_is_the_transpose_of_rope() {
    for &HeadsCase { rows, heads, head_dim, behind } in HEADS {
        let cols = heads * head_dim + behind;
        let (half, positions) = (head_dim / 2, indices(1, rows, 50));
        let (cos, sin) = (floats(2, 50 * half), floats(3, 50 * half));
        let x = floats(4, rows * cols);
        for interleaved in [false, true] {
            let all: Vec<usize> = (0..rows).collect();
            let op = |b: &Any, x: &[f32], picked: &[usize]| {
                let mut x = up(b, picked.len(), cols, &pick(x, cols, picked));
                let (cos, sin) = (b.upload_f32(50, half, &cos), b.upload_f32(50, half, &sin));
                let positions: Vec<u32> = picked.iter().map(|&row| positions[row]).collect();
                b.rope_backward(RopeArgs { x: &mut x, heads, cos: &cos, sin: &sin, positions: &positions, interleaved }).unwrap();
                down(b, &x)
            };
            let what = format!("rope_backward, {rows} rows, {heads} x {head_dim}, interleaved {interleaved}");
            let found = everywhere(&what, |b| [op(b, &x, &all)]);
            stored_as_bf16(&what, rows, cols, 0.0, |b, round, picked| op(b, &round(&x), picked));
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
            for Found { what, values: [y] } in found {
                close(&what, &y, &expected, &vec![2.0; rows * cols], chain(2));
            }
        }
    }
}

#[test]
fn swiglu() {
    for &RowsCase { rows, cols } in ROWS {
        let gate_up: Vec<f32> = floats(1, rows * 2 * cols).iter().map(|x| 12.0 * x).collect();
        let d_y = floats(2, rows * cols);
        let all: Vec<usize> = (0..rows).collect();
        let op = |b: &Any, gate_up: &[f32], d_y: &[f32], picked: &[usize]| {
            let mut d = nan(b, picked.len(), 2 * cols);
            let gate_up = up(b, picked.len(), 2 * cols, &pick(gate_up, 2 * cols, picked));
            let d_y = up(b, picked.len(), cols, &pick(d_y, cols, picked));
            b.swiglu_backward(SwigluBackwardArgs { d_gate_up: &mut d, gate_up: &gate_up, d_y: &d_y }).unwrap();
            down(b, &d)
        };
        let what = format!("swiglu_backward, {rows} x {cols}");
        let found = everywhere(&what, |b| [op(b, &gate_up, &d_y, &all)]);
        stored_as_bf16(&what, rows, 2 * cols, 0.0, |b, round, picked| op(b, &round(&gate_up), &round(&d_y), picked));
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
        for Found { what, values: [d] } in found {
            close(&what, &d, &expected, &size, chain(8));
        }
    }
}

#[test]
fn embedding_dropout_and_fill() {
    for &RowsCase { rows, cols } in ROWS {
        let (vocab, d_y) = (11, floats(1, rows * cols));
        let (ids, before) = (indices(2, rows, vocab), floats(3, vocab * cols));
        let found = everywhere("embedding_backward", |b| {
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
        for Found { what, values: [d] } in found {
            close(&what, &d, &expected, &size, chain(rows));
        }
        let mask = DropoutMask { seed: 0x1234_5678_9abc, stream: (5 << 32) + 77, probability: 0.3 };
        let dropout = |b: &Any, x: &[f32]| {
            let mut y = nan(b, rows, cols);
            b.dropout(DropoutArgs { y: &mut y, x: &up(b, rows, cols, x), mask }).unwrap();
            [down(b, &y)]
        };
        let random = Philox4x32::new(mask.seed, mask.stream);
        let found = everywhere("dropout", |b| dropout(b, &d_y));
        let mut factors = Vec::with_capacity(rows * cols);
        for i in 0..rows * cols {
            let word = random.block(i as u64 / 4)[i % 4];
            let kept = f64::from(word) >= (f64::from(0.3_f32) * 4_294_967_296.0).floor();
            factors.push(if kept { 1.0 / (1.0 - f64::from(0.3_f32)) } else { 0.0 });
        }
        let check = |found: &Found<1>, x: &[f32], tolerance: f64| {
            for (i, (y, factor)) in found.values[0].iter().zip(&factors).enumerate() {
                let expected = f64::from(x[i]) * factor;
                let error = (f64::from(*y) - expected).abs();
                assert!(error <= tolerance * expected.abs(), "{}: element {i} is {y}, expected {expected}", found.what);
            }
        };
        found.iter().for_each(|found| check(found, &d_y, 2e-7));
        // The same elements are dropped, and each is rounded as often.
        found.iter().for_each(|f| same(&f.what, &f.values[0], &found[0].values[0]));
        let x = rounded(&d_y, Dtype::Bf16);
        let fill = |b: &Any| {
            let mut y = nan(b, rows, cols);
            b.fill(&mut y, 1.5).unwrap();
            [down(b, &y)]
        };
        if let Some(found) = on_gpu_in_bf16("dropout", Stored::Scratch, |b| dropout(b, &x)) {
            check(&found, &x, 1.01 / 256.0);
        }
        for Found { what, values: [y] } in
            everywhere("fill", fill).into_iter().chain(on_gpu_in_bf16("fill", Stored::Scratch, fill))
        {
            assert!(y.len() == rows * cols && y.iter().all(|&y| y == 1.5), "{what}");
        }
    }
    for b in backends(Dtype::F32) {
        let (mut y, x) = (b.zeros(1, 2).unwrap(), b.zeros(1, 2).unwrap());
        let mask = DropoutMask { seed: 0, stream: 0, probability: 1.0 };
        let error = b.dropout(DropoutArgs { y: &mut y, x: &x, mask }).unwrap_err();
        assert_eq!(error.to_string(), "dropout must be at least 0 and below 1, not 1");
    }
}
