//! Rows picked out, and put back.

use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{GatherRowsArgs, Rows, ScatterRowsArgs, Shaped};

impl Rows for CpuBackend {
    fn gather_rows(&self, args: GatherRowsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let GatherRowsArgs { y, x, rows } = args;
        let cols = x.cols();
        if cols == 0 {
            return Ok(());
        }
        self.pool.chunks(&mut y.data, cols * self.pool.rows_per_task(rows.len(), cols), |first, y| {
            for (y, &row) in y.chunks_exact_mut(cols).zip(&rows[first / cols..]) {
                y.copy_from_slice(x.row(row as usize));
            }
        });
        Ok(())
    }

    fn scatter_rows(&self, args: ScatterRowsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let ScatterRowsArgs { y, x, rows } = args;
        let cols = y.cols();
        // Which rows are written is data: one thread, at the speed of memory.
        for (x, &row) in x.data.chunks_exact(cols.max(1)).zip(rows) {
            y.data[row as usize * cols..][..cols].copy_from_slice(x);
        }
        Ok(())
    }
}
