//! Embedding: rows of the table, from the file's own bytes.

use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{Embedding, EmbeddingArgs, Shaped};

impl Embedding for CpuBackend {
    fn embedding(&self, args: EmbeddingArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let EmbeddingArgs { y, table, ids } = args;
        let cols = y.cols();
        if cols == 0 {
            return Ok(());
        }
        self.pool.chunks(&mut y.data, cols * self.pool.rows_per_task(ids.len(), cols), |first, y| {
            for (y, &id) in y.chunks_exact_mut(cols).zip(&ids[first / cols..]) {
                table.copy_row(id as usize, y);
            }
        });
        Ok(())
    }
}
