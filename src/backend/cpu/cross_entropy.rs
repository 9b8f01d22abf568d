//! Cross-entropy and Kullback-Leibler divergence of the softmax over the vocabulary.
//!
//! The plain loops, with logits l = logit_scale * x head^T and r the same for the reference:
//! ```text
//! lse(l) = ln(sum over n of e^l[n]);  nll = lse(l) - l[target]
//! kl = sum over n of p[n] ((r[n] - lse(r)) - (l[n] - lse(l))) with p[n] = e^(r[n] - lse(r))
//!    = (sum over n of e^r[n] (r[n] - l[n])) / (sum over n of e^r[n]) - lse(r) + lse(l)
//! ```
//! A chunk of 256 ids keeps its maximum and its sums relative to it, in f32; chunks are put together in f64.

use super::exp;
use super::head::{CHUNK, Logits, Reduce};
use super::simd::{LANES, Line, Simd};
use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{CrossEntropy, CrossEntropyArgs, Shaped, TokenLosses};

/// Of one chunk.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    max: f32,
    /// sum of e^(l - max).
    sum: f32,
    /// l\[target\] if the chunk holds the target.
    target: f32,
    reference_max: f32,
    /// sum of e^(r - reference_max).
    reference_sum: f32,
    /// sum of e^(r - reference_max) (r - l).
    difference: f32,
}

struct Softmax<'a> {
    logit_scale: f32,
    targets: &'a [u32],
}

/// Scaled logits with -inf behind the vocabulary's end, and the largest.
#[inline(always)]
fn scaled<S: Simd>(s: S, lines: &[Line], logit_scale: f32, valid: usize, out: &mut [Line]) -> f32 {
    for (line, out) in lines.iter().zip(&mut *out) {
        s.store(s.mul(s.load(&line.0), s.splat(logit_scale)), &mut out.0);
    }
    if valid < CHUNK {
        // The vocabulary's last chunk only.
        for n in valid..CHUNK {
            out[n / LANES].0[n % LANES] = f32::NEG_INFINITY;
        }
    }
    let mut max = s.splat(f32::NEG_INFINITY);
    for out in &*out {
        max = s.max(s.load(&out.0), max);
    }
    s.max_lane(max)
}

impl Reduce for Softmax<'_> {
    type Kept = Sums;

    #[inline(always)]
    fn reduce<S: Simd>(&self, s: S, logits: Logits<'_>, reference: Option<&[Line]>) -> Sums {
        let mut l = [Line([0.0; LANES]); CHUNK / LANES];
        let max = scaled(s, logits.lines, self.logit_scale, logits.valid, &mut l);
        let mut sum = s.splat(0.0);
        for line in &l {
            sum = s.add(sum, exp::below_zero(s, s.sub(s.load(&line.0), s.splat(max))));
        }
        let mut sums = Sums { max, sum: s.sum(sum), ..Sums::default() };
        let target = (self.targets[logits.row] as usize).wrapping_sub(logits.first);
        if target < logits.valid {
            sums.target = l[target / LANES].0[target % LANES];
        }
        let Some(reference) = reference else { return sums };
        let mut r = [Line([0.0; LANES]); CHUNK / LANES];
        sums.reference_max = scaled(s, reference, self.logit_scale, logits.valid, &mut r);
        let (mut sum, mut difference) = (s.splat(0.0), s.splat(0.0));
        for (index, (r, l)) in r.iter().zip(&mut l).enumerate() {
            // Behind the end e^r is 0 and the difference must not be inf - inf.
            let real = logits.valid.saturating_sub(index * LANES).min(LANES);
            let weight = exp::below_zero(s, s.sub(s.load(&r.0), s.splat(sums.reference_max)));
            sum = s.add(sum, weight);
            s.store(s.sub(s.load(&r.0), s.load(&l.0)), &mut l.0);
            l.0[real..].fill(0.0);
            difference = s.fma(weight, s.load(&l.0), difference);
        }
        (sums.reference_sum, sums.difference) = (s.sum(sum), s.sum(difference));
        sums
    }
}

/// ln of the sum of e^logit over chunks in vocabulary order, as (maximum, sum relative to it).
fn log_sum(chunks: impl Iterator<Item = (f32, f32)> + Clone) -> (f64, f64) {
    let max = f64::from(chunks.clone().fold(f32::NEG_INFINITY, |m, (max, _)| if max > m { max } else { m }));
    (max, chunks.map(|(m, sum)| f64::from(sum) * (f64::from(m) - max).exp()).sum())
}

/// f64 to f32, rounded.
pub(super) fn narrow(x: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is wanted")]
    let narrow = x as f32;
    narrow
}

impl CrossEntropy for CpuBackend {
    fn cross_entropy(&self, args: CrossEntropyArgs<'_, Tensor, Matrix>) -> Result<TokenLosses> {
        args.check()?;
        let CrossEntropyArgs { x, head, targets, logit_scale, reference } = args;
        let rows = x.rows();
        if rows == 0 {
            return Ok(TokenLosses { nll: Vec::new(), kl: Vec::new() });
        }
        let kept = self.sweep_head(x, reference, head, &Softmax { logit_scale, targets })?;
        let mut losses = vec![(0.0, 0.0); rows];
        self.pool.chunks(&mut losses, self.pool.rows_per_task(rows, head.rows() / 16), |first, losses| {
            for (row, (nll, kl)) in losses.iter_mut().enumerate() {
                let row = first + row;
                let chunks: Vec<Sums> = kept.row(row).collect();
                let (max, sum) = log_sum(chunks.iter().map(|c| (c.max, c.sum)));
                let log_sum_exp = max + sum.ln();
                let target = chunks.get(targets[row] as usize / CHUNK).map_or(f32::NAN, |c| c.target);
                *nll = narrow(log_sum_exp - f64::from(target));
                if reference.is_some() {
                    let (max, sum) = log_sum(chunks.iter().map(|c| (c.reference_max, c.reference_sum)));
                    let difference: f64 =
                        chunks.iter().map(|c| f64::from(c.difference) * (f64::from(c.reference_max) - max).exp()).sum();
                    *kl = narrow(difference / sum - (max + sum.ln()) + log_sum_exp);
                }
            }
        });
        let (nll, kl) = losses.into_iter().unzip();
        Ok(TokenLosses { nll, kl: if reference.is_some() { kl } else { Vec::new() } })
    }
}
