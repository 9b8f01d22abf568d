//! Gradients of linear.

use super::{Found, all_same, down, everywhere, nan, on_gpu_in_bf16, up};
use crate::any::{Any, Stored};
use crate::compare::{chain, close, same};
use crate::data::{floats, host, rounded, wide};
use crate::everywhere::gpu;
use crate::harness::{best, levels};
use prunectl::backend::cpu::CpuBackend;
use prunectl::ops::cases::{LINEAR, LinearCase};
use prunectl::ops::*;
use prunectl::tensor::Dtype;

/// From a file's tensor, and from tensors for either direction.
const DIRECTIONS: [Option<Direction>; 3] = [None, Some(Direction::Forward), Some(Direction::Backward)];

/// Gradients of a linear layer: d_x accumulated or not, d_W of some columns of d_y, d_bias.
fn linear_gradients(b: &Any, case: LinearCase, direction: Option<Direction>, data: [&[f32]; 5]) -> [Vec<f32>; 3] {
    let LinearCase { rows, in_features, out_features, accumulate, .. } = case;
    let [x, w, d_y, before, before_w] = data;
    let weight = match direction {
        None => b.prepare(&[host("w", &[out_features, in_features], w, Dtype::F32)]).unwrap(),
        Some(direction) => {
            // Two parts, the first of which may have an odd number of rows.
            let first = out_features / 3;
            let (upper, lower) = w.split_at(first * in_features);
            let parts = [(first, upper), (out_features - first, lower)].map(|(rows, part)| up(b, rows, in_features, part));
            b.prepare_tensors(&[&parts[0], &parts[1]], direction).unwrap()
        }
    };
    let x = up(b, rows, in_features, x);
    let d_y = up(b, rows, out_features, d_y);
    let mut d_x = if accumulate { up(b, rows, in_features, before) } else { nan(b, rows, in_features) };
    b.linear_backward_input(LinearBackwardInputArgs { d_x: &mut d_x, d_y: &d_y, weight: &weight, accumulate }).unwrap();
    // The last half of the outputs, as a part of a stack.
    let first_col = out_features / 2;
    let own = out_features - first_col;
    let mut d_weight = b.upload_f32(own, in_features, &before_w[..own * in_features]);
    b.linear_backward_weight(LinearBackwardWeightArgs { d_weight: &mut d_weight, x: &x, d_y: &d_y, first_col, scale: -1.5 })
        .unwrap();
    let mut d_bias = b.upload_f32(1, own, &floats(9, own));
    b.linear_backward_bias(LinearBackwardBiasArgs { d_bias: &mut d_bias, d_y: &d_y, first_col }).unwrap();
    [down(b, &d_x), down(b, &d_weight), down(b, &d_bias)]
}

/// Elements of d_weight in the test below.
fn own_size(case: LinearCase) -> usize {
    (case.out_features - case.out_features / 2) * case.in_features
}

#[test]
fn linear() {
    let many = LinearCase { rows: 2100, in_features: 35, out_features: 67, bias: false, accumulate: false };
    // Few inputs for the outputs, as a LoRA pair has: over 2048 rows, not over the 52 left.
    let narrow = LinearCase { in_features: 21, out_features: 135, ..many };
    for &case in LINEAR.iter().chain(&[many, narrow]) {
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
        for direction in DIRECTIONS {
            let found = everywhere(&what, |b| linear_gradients(b, case, direction, data));
            for Found { what, values } in &found {
                check(what, values, [&x, &w, &d_y]);
                // One fused multiply-add a product, in one order, on either: equal bits. Sums of d_y have an order of their own.
                all_same(
                    what,
                    &[values[0].clone(), values[1].clone()],
                    &[found[0].values[0].clone(), found[0].values[1].clone()],
                );
            }
        }
        let round = |values: &[f32]| rounded(values, Dtype::Bf16);
        let (exact_x, exact_w, exact_d_y) = (round(&x), round(&w), round(&d_y));
        for isa in levels() {
            let found = [1, 2, 3].map(|threads| {
                let b = Any::Cpu(CpuBackend::with_isa(Dtype::Bf16, Some(threads), isa).unwrap());
                linear_gradients(&b, case, DIRECTIONS[threads - 1], data)
            });
            let what = format!("{what} in bf16 on {}", isa.name());
            check(&what, &found[0], [&exact_x, &exact_w, &exact_d_y]);
            found[1..].iter().for_each(|other| all_same(&what, &found[0], other));
        }
        let exact: [&[f32]; 3] = [&exact_x, &exact_w, &exact_d_y];
        if let Some(found) = on_gpu_in_bf16(&what, Stored::Plain, |b| linear_gradients(b, case, Some(Direction::Forward), data)) {
            check(&found.what, &found.values, exact);
        }
        // x, d_y and d_x as they are within a layer: what is rounded once more is d_x, which is then at most half a step off.
        let before = round(&before);
        let data: [&[f32]; 5] = [&exact_x, &exact_w, &exact_d_y, &before, &before_w];
        let op = |b: &Any| linear_gradients(b, case, None, data);
        if let Some(Found { what, values }) = on_gpu_in_bf16(&what, Stored::Scratch, op) {
            let [d_x, d_weight, d_bias] = op(&Any::Cpu(best(Dtype::F32)));
            let sizes = |values: &[f32]| values.iter().map(|v| f64::from(v.abs()) + 1e-3).collect::<Vec<_>>();
            close(&format!("{what} d_x"), &values[0], &wide(&d_x), &sizes(&d_x), 1.01 / 256.0);
            let size = |depth: usize| vec![1.0 + 1.5 * depth as f64; own_size(case)];
            close(&format!("{what} d_weight"), &values[1], &wide(&d_weight), &size(rows), chain(rows));
            close(&format!("{what} d_bias"), &values[2], &wide(&d_bias), &vec![1.0 + rows as f64; d_bias.len()], chain(rows));
        }
    }
}

/// Weights lie in memory that others have left: nothing of those may be seen, not where a panel or a pair is not full either.
#[test]
fn weights_that_are_gone_leave_no_trace() {
    let (cols, rows) = (6, 33);
    let (w, x, d_y) = (floats(1, rows * cols), floats(2, 5 * cols), floats(3, 5 * rows));
    let cases = [Dtype::F32, Dtype::Bf16].into_iter().flat_map(|dtype| levels().into_iter().map(move |isa| (dtype, isa)));
    let cases = cases.flat_map(|case| [Direction::Forward, Direction::Backward].map(|direction| (case, direction)));
    for ((dtype, isa), direction) in cases {
        let found = [false, true].map(|used| {
            let b = Any::Cpu(CpuBackend::with_isa(dtype, Some(2), isa).unwrap());
            let products = |rows: usize, w: &[f32], d_y: &[f32]| {
                let weight = b.prepare_tensors(&[&up(&b, rows, cols, w)], direction).unwrap();
                let (mut y, mut d_x) = (nan(&b, 5, rows), nan(&b, 5, cols));
                let (x, d_y) = (up(&b, 5, cols, &x), up(&b, 5, rows, d_y));
                b.linear(LinearArgs { y: &mut y, x: &x, weight: &weight, bias: None, accumulate: false }).unwrap();
                let args = LinearBackwardInputArgs { d_x: &mut d_x, d_y: &d_y, weight: &weight, accumulate: false };
                b.linear_backward_input(args).unwrap();
                [down(&b, &y), down(&b, &d_x)]
            };
            if used {
                // One row more takes as much memory.
                products(rows + 1, &vec![f32::NAN; (rows + 1) * cols], &vec![1.0; 5 * (rows + 1)]);
            }
            products(rows, &w, &d_y)
        });
        all_same(&format!("{dtype} on {}, {direction:?}", isa.name()), &found[1], &found[0]);
    }
}

/// A row's d_x does not depend on the rows beside it, whatever tiles that makes.
#[test]
fn many_rows_have_the_bits_of_one() {
    let (rows, in_features, out_features) = (700, 130, 67);
    let (w, d_y) = (floats(2, out_features * in_features), floats(3, rows * out_features));
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let Some(b) = gpu(dtype, Stored::Plain) else { return };
        let weight = b.prepare(&[host("w", &[out_features, in_features], &w, Dtype::F32)]).unwrap();
        let gradient = |range: std::ops::Range<usize>| {
            let d_y = up(&b, range.len(), out_features, &d_y[range.start * out_features..range.end * out_features]);
            let mut d_x = nan(&b, range.len(), in_features);
            let args = LinearBackwardInputArgs { d_x: &mut d_x, d_y: &d_y, weight: &weight, accumulate: false };
            b.linear_backward_input(args).unwrap();
            down(&b, &d_x)
        };
        let all = gradient(0..rows);
        for range in [0..1, 5..40, 300..420, 699..700] {
            let expected = &all[range.start * in_features..range.end * in_features];
            same(&format!("{dtype} rows {range:?}"), &gradient(range), expected);
        }
    }
}

/// Rows of several chains, the last of two stages, in large tiles enough for the emulated multiprocessors, and in so few that each
/// chain gets a block of its own.
#[test]
fn chains_of_rows_have_the_same_bits_in_one_block_and_in_several() {
    let (rows, outputs, [wide_cols, few]) = (2115, 130, [260, 30]);
    let Some(b) = gpu(Dtype::Bf16, Stored::Plain) else { return };
    let d_y = rounded(&floats(1, rows * outputs), Dtype::Bf16);
    let x = rounded(&floats(2, rows * wide_cols), Dtype::Bf16);
    let before = floats(3, outputs * wide_cols);
    let columns =
        |values: &[f32], cols: usize| values.chunks(wide_cols).flat_map(|row| row[..cols].to_vec()).collect::<Vec<f32>>();
    let gradient = |b: &Any, cols: usize| {
        let (x, d_y) = (up(b, rows, cols, &columns(&x, cols)), up(b, rows, outputs, &d_y));
        let mut d_weight = b.upload_f32(outputs, cols, &columns(&before, cols));
        b.linear_backward_weight(LinearBackwardWeightArgs {
            d_weight: &mut d_weight,
            x: &x,
            d_y: &d_y,
            first_col: 0,
            scale: 0.7,
        })
        .unwrap();
        down(b, &d_weight)
    };
    let found = gradient(&b, wide_cols);
    same("a block a chain", &gradient(&b, few), &columns(&found, few));
    let expected = wide(&gradient(&Any::Cpu(best(Dtype::F32)), wide_cols));
    close("d_weight", &found, &expected, &vec![1.0 + 0.7 * rows as f64 / 4.0; found.len()], chain(rows));
}
