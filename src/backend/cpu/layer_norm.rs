//! LayerNorm without bias, over rows and over heads.
//!
//! Two passes: the mean, then the mean of squared distances to it. Sums in sixteen lanes, added up by a fixed tree.

use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{HeadNormArgs, LayerNorm, LayerNormArgs, Shaped};

/// (mean, 1 / sqrt(variance + eps)).
#[inline(always)]
pub(super) fn statistics<S: Simd>(s: S, x: &[f32], eps: f32) -> (f32, f32) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sum = s.load_part(rest, 0.0);
    for x in chunks {
        sum = s.add(s.load(x), sum);
    }
    let mean = s.sum(sum) / x.len() as f32;
    let means = s.splat(mean);
    // Filled up with the mean: no distance.
    let last = s.sub(s.load_part(rest, mean), means);
    let mut squares = s.mul(last, last);
    for x in chunks {
        let distance = s.sub(s.load(x), means);
        squares = s.fma(distance, distance, squares);
    }
    (mean, 1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt())
}

struct WholeRows<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for WholeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        for (y, x) in self.y.chunks_exact_mut(cols).zip(self.x.chunks_exact(cols)) {
            let (mean, inv_std) = statistics(s, x, self.eps);
            for ((y, &x), &weight) in y.iter_mut().zip(x).zip(self.weight) {
                *y = (x - mean) * inv_std * weight;
            }
        }
    }
}

struct HeadsInPlace<'a> {
    x: &'a mut [f32],
    cols: usize,
    first_col: usize,
    head_dim: usize,
    /// [heads][head_dim].
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for HeadsInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.cols) {
            let heads = row[self.first_col..].chunks_exact_mut(self.head_dim);
            for (head, weight) in heads.zip(self.weight.chunks_exact(self.head_dim)) {
                let (mean, inv_std) = statistics(s, head, self.eps);
                for (x, &weight) in head.iter_mut().zip(weight) {
                    *x = (*x - mean) * inv_std * weight;
                }
            }
        }
    }
}

impl LayerNorm for CpuBackend {
    fn layer_norm(&self, args: LayerNormArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let LayerNormArgs { y, x, weight, eps } = args;
        let cols = x.cols();
        if cols == 0 {
            return Ok(());
        }
        self.pool.chunks(&mut y.data, cols * self.pool.rows_per_task(x.rows(), cols), |first, y| {
            self.isa.run(WholeRows { x: &x.data[first..][..y.len()], y, weight: &weight.data, eps });
        });
        Ok(())
    }

    fn head_norm(&self, args: HeadNormArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let HeadNormArgs { x, weight, first_col, eps } = args;
        let (cols, head_dim) = (x.cols(), weight.cols());
        if cols == 0 || head_dim == 0 {
            return Ok(());
        }
        let per_task = self.pool.rows_per_task(x.rows(), weight.data.len());
        self.pool.chunks(&mut x.data, cols * per_task, |_, x| {
            self.isa.run(HeadsInPlace { x, cols, first_col, head_dim, weight: &weight.data, eps });
        });
        Ok(())
    }
}
