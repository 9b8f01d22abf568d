//! Column ranges, added to and taken.

use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{AddColsArgs, Cols, Shaped, TakeColsArgs};

/// Whole rows of y, and the rows of x that go with them.
struct Add<'a> {
    y: &'a mut [f32],
    y_cols: usize,
    x: &'a [f32],
    x_cols: usize,
    first_col: usize,
    scale: f32,
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scale);
        for (y, x) in self.y.chunks_exact_mut(self.y_cols).zip(self.x.chunks_exact(self.x_cols)) {
            let y = &mut y[self.first_col..][..self.x_cols];
            let (ys, y_rest) = y.as_chunks_mut::<LANES>();
            let (xs, x_rest) = x.as_chunks::<LANES>();
            for (y, x) in ys.iter_mut().zip(xs) {
                s.store(s.fma(scale, s.load(x), s.load(y)), y);
            }
            s.store_part(s.fma(scale, s.load_part(x_rest, 0.0), s.load_part(y_rest, 0.0)), y_rest);
        }
    }
}

impl Cols for CpuBackend {
    fn add_cols(&self, args: AddColsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AddColsArgs { y, x, first_col, scale } = args;
        let (y_cols, x_cols) = (y.cols(), x.cols());
        if x_cols == 0 {
            return Ok(());
        }
        let per_task = self.pool.rows_per_task(y.rows(), x_cols);
        self.pool.chunks(&mut y.data, y_cols * per_task, |first, y| {
            let x = &x.data[first / y_cols * x_cols..][..y.len() / y_cols * x_cols];
            self.isa.run(Add { y, y_cols, x, x_cols, first_col, scale });
        });
        Ok(())
    }

    fn take_cols(&self, args: TakeColsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let TakeColsArgs { y, x, first_col } = args;
        let cols = y.cols();
        if cols == 0 {
            return Ok(());
        }
        let per_task = self.pool.rows_per_task(x.rows(), cols);
        self.pool.chunks(&mut y.data, cols * per_task, |first, y| {
            for (index, y) in y.chunks_exact_mut(cols).enumerate() {
                y.copy_from_slice(&x.row(first / cols + index)[first_col..][..cols]);
            }
        });
        Ok(())
    }
}
