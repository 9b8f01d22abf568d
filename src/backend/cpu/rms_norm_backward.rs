//! Gradient of RMSNorm. Rows give d_x; then column ranges give d_weight, each a chain over all rows.

use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{RmsNormBackward, RmsNormBackwardArgs, Shaped};

/// Columns a task of d_weight takes.
pub(super) const WEIGHT_COLUMNS: usize = 64;

struct Rows<'a> {
    d_x: &'a mut [f32],
    /// inv_rms of each row, written.
    inv_rms: &'a mut [f32],
    x: &'a [f32],
    d_y: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        let rows = self.x.chunks_exact(cols).zip(self.d_y.chunks_exact(cols));
        for ((d_x, (x, d_y)), inv) in self.d_x.chunks_exact_mut(cols).zip(rows).zip(self.inv_rms) {
            let (mut squares, mut products) = (s.splat(0.0), s.splat(0.0));
            for ((x, d_y), w) in x.chunks(LANES).zip(d_y.chunks(LANES)).zip(self.weight.chunks(LANES)) {
                let (x, d_y, w) = (s.load_part(x, 0.0), s.load_part(d_y, 0.0), s.load_part(w, 0.0));
                squares = s.fma(x, x, squares);
                products = s.fma(s.mul(d_y, w), x, products);
            }
            let inv_rms = 1.0 / (s.sum(squares) / cols as f32 + self.eps).sqrt();
            let pull = s.sum(products) / cols as f32 * inv_rms * inv_rms;
            for (((d_x, &x), &d_y), &w) in d_x.iter_mut().zip(x).zip(d_y).zip(self.weight) {
                *d_x += inv_rms * (w * d_y - x * pull);
            }
            *inv = inv_rms;
        }
    }
}

struct Columns<'a> {
    d_weight: &'a mut [f32],
    first: usize,
    cols: usize,
    x: &'a [f32],
    d_y: &'a [f32],
    inv_rms: &'a [f32],
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let mut sums = [0.0_f32; WEIGHT_COLUMNS];
        let width = self.d_weight.len().min(WEIGHT_COLUMNS);
        let rows = self.x.chunks_exact(self.cols).zip(self.d_y.chunks_exact(self.cols));
        for ((x, d_y), &inv_rms) in rows.zip(self.inv_rms) {
            let (x, d_y) = (&x[self.first..][..width], &d_y[self.first..][..width]);
            for ((sum, &x), &d_y) in sums.iter_mut().zip(x).zip(d_y) {
                *sum += d_y * (x * inv_rms);
            }
        }
        self.d_weight.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
    }
}

impl RmsNormBackward for CpuBackend {
    fn rms_norm_backward(&self, args: RmsNormBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let RmsNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps } = args;
        let (rows, cols) = (x.rows(), x.cols());
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let mut inv_rms = vec![0.0; rows];
        let per_task = self.pool.rows_per_task(rows, cols);
        let parts = d_x.data.chunks_mut(cols * per_task).zip(inv_rms.chunks_mut(per_task));
        self.pool.each(parts, |index, (d_x, inv_rms)| {
            let range = index * per_task * cols..index * per_task * cols + d_x.len();
            let (x, d_y) = (&x.data[range.clone()], &d_y.data[range]);
            self.isa.run(Rows { d_x, inv_rms, x, d_y, weight: &weight.data, eps });
        });
        if let Some(d_weight) = d_weight {
            self.pool.each(d_weight.data.chunks_mut(WEIGHT_COLUMNS), |index, d_weight| {
                let first = index * WEIGHT_COLUMNS;
                self.isa.run(Columns { d_weight, first, cols, x: &x.data, d_y: &d_y.data, inv_rms: &inv_rms });
            });
        }
        Ok(())
    }
}
