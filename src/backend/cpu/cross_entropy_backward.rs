//! Cross-entropy, distillation and their gradients. The logits of a group of rows are one product; a pass over them gives the
//! losses and leaves the gradient in their place, which two more products carry to x and to the head.
//!
//! The plain loops for a row, with l = logit_scale * x head^T, t the teacher's, T the temperature, m the mix:
//! ```text
//! nll = lse(l) - l[target];  p = softmax(t / T);  q = softmax(l / T);  kl = sum of p (ln p - ln q)
//! d_logit[n] = scale logit_scale ((1 - m) (softmax(l)[n] - (n == target)) + m T (q[n] - p[n]))
//! ```
//! Sums of 256 values are f32, put together in f64.

use super::cross_entropy::narrow;
use super::exp;
use super::linear::Product;
use super::linear_backward::WeightGradient;
use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{CrossEntropyBackward, CrossEntropyBackwardArgs, Distillation, Shaped, Teacher, TokenLosses};
use bytemuck::cast_slice_mut;

/// Bytes of logits that exist at a time: so many rows of large vocabularies that the products still run at speed.
const LOGITS_BYTES: usize = 16 << 20;
/// The same where the head is trained, whose gradient is read and written once for so many rows.
const LOGITS_BYTES_WITH_HEAD: usize = 64 << 20;

/// Values whose sum is kept in f32.
const CHUNK: usize = 256;

/// What the pass over a row needs beside its logits.
#[derive(Clone, Copy)]
struct Loss {
    logit_scale: f32,
    scale: f32,
    temperature: f32,
    mix: f32,
}

/// A teacher's part for one row.
enum RowTeacher<'a> {
    None,
    /// Its logits before `logit_scale`; overwritten.
    Logits(&'a mut [f32], f32),
    /// Ids and log-probabilities.
    TopK(&'a [u32], &'a [f32]),
}

/// One row: logits become the gradient; gives (nll, kl).
struct Row<'a> {
    logits: &'a mut [f32],
    target: usize,
    teacher: RowTeacher<'a>,
    loss: Loss,
}

/// x *= factor, and the largest.
#[inline(always)]
fn scale_and_max<S: Simd>(s: S, x: &mut [f32], factor: f32) -> f32 {
    let mut max = s.splat(f32::NEG_INFINITY);
    for x in x.chunks_mut(LANES) {
        let scaled = s.mul(s.load_part(x, f32::NEG_INFINITY), s.splat(factor));
        max = s.max(scaled, max);
        s.store_part(scaled, x);
    }
    s.max_lane(max)
}

/// Sum of e^((x - max) inverse).
#[inline(always)]
fn sum_exp<S: Simd>(s: S, x: &[f32], max: f32, inverse: f32) -> f64 {
    let mut total = 0.0;
    for x in x.chunks(CHUNK) {
        let mut sum = s.splat(0.0);
        for x in x.chunks(LANES) {
            let x = s.sub(s.load_part(x, f32::NEG_INFINITY), s.splat(max));
            sum = s.add(sum, exp::lanes(s, s.mul(x, s.splat(inverse))));
        }
        total += f64::from(s.sum(sum));
    }
    total
}

impl Kernel for Row<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let Self { logits: l, target, teacher, loss: Loss { logit_scale, scale, temperature, mix } } = self;
        let max = scale_and_max(s, l, logit_scale);
        let sum = sum_exp(s, l, max, 1.0);
        let at_target = l[target];
        let nll = narrow(f64::from(max) + sum.ln() - f64::from(at_target));
        let out = scale * logit_scale;
        let (hard, soft) = (out * (1.0 - mix), out * mix * temperature);
        let own = narrow(f64::from(hard) / sum);
        let inverse = 1.0 / temperature;
        let kl = match teacher {
            RowTeacher::None => {
                let factor = narrow(f64::from(out) / sum);
                for l in l.chunks_mut(LANES) {
                    let e = exp::lanes(s, s.sub(s.load_part(l, f32::NEG_INFINITY), s.splat(max)));
                    s.store_part(s.mul(e, s.splat(factor)), l);
                }
                l[target] -= out;
                return (nll, 0.0);
            }
            RowTeacher::Logits(t, teacher_scale) => {
                let student_sum = sum_exp(s, l, max, inverse);
                let teacher_max = scale_and_max(s, t, teacher_scale);
                let teacher_sum = sum_exp(s, t, teacher_max, inverse);
                let (q_factor, p_factor) = (narrow(f64::from(soft) / student_sum), narrow(f64::from(soft) / teacher_sum));
                let mut difference = 0.0;
                for (l, t) in l.chunks_mut(CHUNK).zip(t.chunks(CHUNK)) {
                    let mut sums = s.splat(0.0);
                    for (l, t) in l.chunks_mut(LANES).zip(t.chunks(LANES)) {
                        // Behind the end both are equal and e^t is 0.
                        let (x, y) = (s.load_part(l, f32::MIN), s.load_part(t, f32::MIN));
                        let (from_max, from_teacher_max) = (s.sub(x, s.splat(max)), s.sub(y, s.splat(teacher_max)));
                        let p = exp::lanes(s, s.mul(from_teacher_max, s.splat(inverse)));
                        let q = exp::lanes(s, s.mul(from_max, s.splat(inverse)));
                        sums = s.fma(p, s.sub(y, x), sums);
                        let hard = s.mul(exp::lanes(s, from_max), s.splat(own));
                        let both = s.fma(q, s.splat(q_factor), hard);
                        s.store_part(s.sub(both, s.mul(p, s.splat(p_factor))), l);
                    }
                    difference += f64::from(s.sum(sums));
                }
                let lse_teacher = f64::from(teacher_max) * f64::from(inverse) + teacher_sum.ln();
                let lse_student = f64::from(max) * f64::from(inverse) + student_sum.ln();
                difference / teacher_sum * f64::from(inverse) - lse_teacher + lse_student
            }
            RowTeacher::TopK(ids, log_probs) => {
                let student_sum = sum_exp(s, l, max, inverse);
                let lse_student = f64::from(max) * f64::from(inverse) + student_sum.ln();
                let top = log_probs.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
                let weight = |log_prob: f32| (f64::from(log_prob - top) * f64::from(inverse)).exp();
                let total: f64 = log_probs.iter().map(|&v| weight(v)).sum();
                let term = |(&id, &log_prob): (&u32, &f32)| {
                    let ln_p = f64::from(log_prob - top) * f64::from(inverse) - total.ln();
                    let ln_q = f64::from(l[id as usize]) * f64::from(inverse) - lse_student;
                    ln_p.exp() * (ln_p - ln_q)
                };
                let kl: f64 = ids.iter().zip(log_probs).map(term).sum();
                let q_factor = narrow(f64::from(soft) / student_sum);
                for l in l.chunks_mut(LANES) {
                    let from_max = s.sub(s.load_part(l, f32::NEG_INFINITY), s.splat(max));
                    let hard = s.mul(exp::lanes(s, from_max), s.splat(own));
                    let q = exp::lanes(s, s.mul(from_max, s.splat(inverse)));
                    s.store_part(s.fma(q, s.splat(q_factor), hard), l);
                }
                for (&id, &log_prob) in ids.iter().zip(log_probs) {
                    l[id as usize] -= narrow(f64::from(soft) * weight(log_prob) / total);
                }
                kl
            }
        };
        l[target] -= hard;
        (nll, narrow(kl))
    }
}

impl CrossEntropyBackward for CpuBackend {
    fn cross_entropy_backward(&self, args: CrossEntropyBackwardArgs<'_, Tensor, Matrix>) -> Result<TokenLosses> {
        args.check()?;
        let CrossEntropyBackwardArgs { d_x, mut d_head, x, head, targets, logit_scale, scale, distillation } = args;
        let (rows, cols, vocab) = (x.rows(), head.cols(), head.rows());
        let mut losses = TokenLosses { nll: Vec::with_capacity(rows), kl: Vec::new() };
        if rows == 0 || vocab == 0 {
            return Ok(losses);
        }
        let (packed, transposed) = (head.packed(self)?, head.transposed_once(self)?);
        let (temperature, mix) = distillation.as_ref().map_or((1.0, 0.0), |d| (d.temperature, d.mix));
        let loss = Loss { logit_scale, scale, temperature, mix };
        let teacher = distillation.as_ref().map(|Distillation { teacher, .. }| teacher);
        let sides = 1 + usize::from(matches!(teacher, Some(Teacher::States { .. })));
        let bytes = if d_head.is_some() { LOGITS_BYTES_WITH_HEAD } else { LOGITS_BYTES };
        let fitting = (bytes / (4 * vocab * sides)).clamp(16, rows.max(16));
        // Pieces of equal size: a small last one would take as much memory.
        let at_once = rows.div_ceil(rows.div_ceil(fitting));
        // Always as much, so that the same memory serves every batch; what is not written takes none.
        let lines = (fitting * vocab).div_ceil(LANES);
        let (mut logits, mut teacher_logits) = (self.spare.lend(lines)?, self.spare.lend((sides - 1) * lines)?);
        let (logits, teacher_logits) = (cast_slice_mut(&mut logits), cast_slice_mut::<u8, f32>(&mut teacher_logits));
        for first in (0..rows).step_by(at_once) {
            let count = (rows - first).min(at_once);
            let elements = first * cols..(first + count) * cols;
            let logits = &mut logits[..count * vocab];
            let x = &x.data[elements.clone()];
            let forward =
                Product { y: logits, x, rows: count, packed, outputs: vocab, cols, bias: None, accumulate: false, gated: false };
            self.multiply(forward);
            let mut teachers: Vec<RowTeacher<'_>> = Vec::with_capacity(count);
            match teacher {
                None => teachers.extend((0..count).map(|_| RowTeacher::None)),
                Some(Teacher::TopK { k, ids, log_probs }) => teachers.extend((first..first + count).map(|row| {
                    let range = row * k..(row + 1) * k;
                    RowTeacher::TopK(&ids[range.clone()], &log_probs[range])
                })),
                Some(Teacher::States { x, head, logit_scale }) => {
                    let (cols, packed) = (head.cols(), head.packed(self)?);
                    let x = &x.data[first * cols..(first + count) * cols];
                    let y = &mut teacher_logits[..count * vocab];
                    self.multiply(Product {
                        y,
                        x,
                        rows: count,
                        packed,
                        outputs: vocab,
                        cols,
                        bias: None,
                        accumulate: false,
                        gated: false,
                    });
                    teachers.extend(teacher_logits.chunks_mut(vocab).take(count).map(|t| RowTeacher::Logits(t, *logit_scale)));
                }
            }
            let mut found = vec![(0.0, 0.0); count];
            let jobs = logits.chunks_mut(vocab).zip(teachers).zip(&targets[first..]).zip(&mut found);
            self.pool.each(jobs, |_, (((logits, teacher), &target), found)| {
                *found = self.isa.run(Row { logits, target: target as usize, teacher, loss });
            });
            losses.nll.extend(found.iter().map(|f| f.0));
            if teacher.is_some() {
                losses.kl.extend(found.iter().map(|f| f.1));
            }
            self.multiply(Product {
                y: &mut d_x.data[elements],
                x: logits,
                rows: count,
                packed: transposed.packed(),
                outputs: cols,
                cols: vocab,
                bias: None,
                accumulate: false,
                gated: false,
            });
            if let Some(d_head) = d_head.as_deref_mut() {
                self.weight_gradient(WeightGradient {
                    d_weight: &mut d_head.data,
                    outputs: vocab,
                    inputs: cols,
                    x,
                    d_y: logits,
                    d_y_cols: vocab,
                    first_col: 0,
                    scale: 1.0,
                });
            }
        }
        Ok(losses)
    }
}
