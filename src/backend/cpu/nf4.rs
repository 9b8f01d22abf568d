//! NF4 matrices on the CPU.

use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{Nf4, Nf4DequantiseArgs, Shaped};
use crate::quant::Nf4Tensor;

impl Nf4 for CpuBackend {
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Matrix> {
        let dense = parts.iter().map(Nf4Tensor::to_dense).collect::<Result<Vec<_>>>()?;
        Matrix::new(&dense)
    }

    fn nf4_dequantise(&self, args: Nf4DequantiseArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let Nf4DequantiseArgs { y, weight, first_row } = args;
        let cols = y.cols();
        if cols == 0 {
            return Ok(());
        }
        let per_task = self.pool.rows_per_task(y.rows(), cols);
        self.pool.chunks(&mut y.data, cols * per_task, |first, y| {
            for (index, y) in y.chunks_exact_mut(cols).enumerate() {
                weight.copy_row(first_row + first / cols + index, y);
            }
        });
        Ok(())
    }
}
