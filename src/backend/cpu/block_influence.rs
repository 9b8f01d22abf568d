//! Block influence: cosine of a row before and after, in f64.
//!
//! Sums in eight lanes (lane i takes columns i, i + 8, …), added up in order.

use super::simd::{Kernel, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{BlockInfluence, BlockInfluenceArgs, Shaped};

const SUMS: usize = 8;

struct Cosine<'a> {
    before: &'a [f32],
    after: &'a [f32],
}

impl Kernel for Cosine<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) -> f64 {
        let (mut dot, mut before, mut after) = ([0.0; SUMS], [0.0; SUMS], [0.0; SUMS]);
        for (a, b) in self.before.chunks(SUMS).zip(self.after.chunks(SUMS)) {
            for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
                let (a, b) = (f64::from(a), f64::from(b));
                dot[i] += a * b;
                before[i] += a * a;
                after[i] += b * b;
            }
        }
        let [dot, before, after] = [dot, before, after].map(|sums| sums.iter().sum::<f64>());
        if before == 0.0 || after == 0.0 { 0.0 } else { dot / (before.sqrt() * after.sqrt()) }
    }
}

impl BlockInfluence for CpuBackend {
    fn block_influence(&self, args: BlockInfluenceArgs<'_, Tensor>) -> Result<Vec<f64>> {
        args.check()?;
        let BlockInfluenceArgs { before, after } = args;
        let mut cosines = vec![0.0; before.rows()];
        self.pool.chunks(&mut cosines, self.pool.rows_per_task(before.rows(), before.cols()), |first, cosines| {
            for (index, cosine) in cosines.iter_mut().enumerate() {
                *cosine = self.isa.run(Cosine { before: before.row(first + index), after: after.row(first + index) });
            }
        });
        Ok(cosines)
    }
}
