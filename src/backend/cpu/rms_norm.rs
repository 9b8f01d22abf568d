//! RMSNorm: y = x * (1 / sqrt(mean(x^2) + eps)) * weight per row.
//!
//! The sum of squares is kept in sixteen lanes (lane i takes columns i, i + 16, …), added up by a fixed tree.

use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{RmsNorm, RmsNormArgs, Shaped};

struct Rows<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        for (y, x) in self.y.chunks_exact_mut(cols).zip(self.x.chunks_exact(cols)) {
            let (chunks, rest) = x.as_chunks::<LANES>();
            let mut squares = s.splat(0.0);
            for x in chunks {
                let x = s.load(x);
                squares = s.fma(x, x, squares);
            }
            let last = s.load_part(rest, 0.0);
            squares = s.fma(last, last, squares);
            let inv_rms = 1.0 / (s.sum(squares) / cols as f32 + self.eps).sqrt();
            for ((y, &x), &weight) in y.iter_mut().zip(x).zip(self.weight) {
                *y = x * inv_rms * weight;
            }
        }
    }
}

impl RmsNorm for CpuBackend {
    fn rms_norm(&self, args: RmsNormArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let RmsNormArgs { y, x, weight, eps } = args;
        let cols = x.cols();
        if cols == 0 {
            return Ok(());
        }
        self.pool.chunks(&mut y.data, cols * self.pool.rows_per_task(x.rows(), cols), |first, y| {
            self.isa.run(Rows { x: &x.data[first..][..y.len()], y, weight: &weight.data, eps });
        });
        Ok(())
    }
}
