//! AdamW, element by element, and the squared norm of a tensor.
//!
//! No fused multiply-add: each operation is rounded as written, so that all instruction sets give the same bits.

use super::simd::{Kernel, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::adamw::Coefficients;
use crate::ops::{Adamw, AdamwArgs};

/// Elements a task: 256 KiB of each of the four arrays.
const CHUNK: usize = 1 << 16;

struct Update<'a> {
    value: &'a mut [f32],
    grad: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    by: Coefficients,
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let by = self.by;
        for (((value, &grad), first), second) in self.value.iter_mut().zip(self.grad).zip(self.first).zip(self.second) {
            let grad = grad * by.scale;
            *first += by.lerp * (grad - *first);
            *second = *second * by.beta2 + by.rest2 * grad * grad;
            let denominator = second.sqrt() / by.root + by.eps;
            *value = *value * by.keep - by.rate * *first / denominator;
        }
    }
}

/// Sums of squares in f64, eight lanes, of one chunk.
struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0_f64; 8];
        let (chunks, rest) = self.0.as_chunks::<8>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}

impl Adamw for CpuBackend {
    fn adamw(&self, args: AdamwArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AdamwArgs { value, grad, first, second, step } = args;
        let by = step.coefficients();
        let chunks = value
            .data
            .chunks_mut(CHUNK)
            .zip(grad.data.chunks(CHUNK))
            .zip(first.data.chunks_mut(CHUNK).zip(second.data.chunks_mut(CHUNK)))
            .map(|((value, grad), (first, second))| Update { value, grad, first, second, by });
        self.pool.each(chunks, |_, update| self.isa.run(update));
        Ok(())
    }

    fn squared_norm(&self, x: &Tensor) -> Result<f64> {
        let mut sums = vec![0.0_f64; x.data.len().div_ceil(CHUNK)];
        self.pool.chunks(&mut sums, 1, |index, sum| {
            let end = x.data.len().min((index + 1) * CHUNK);
            sum[0] = self.isa.run(Squares(&x.data[index * CHUNK..end]));
        });
        Ok(sums.iter().sum())
    }
}
