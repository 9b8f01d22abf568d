//! Gradient of the embedding: each task owns a range of the table, so no row is added to by two threads.

use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{EmbeddingBackward, EmbeddingBackwardArgs, Shaped};

impl EmbeddingBackward for CpuBackend {
    fn embedding_backward(&self, args: EmbeddingBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let EmbeddingBackwardArgs { d_table, d_y, ids } = args;
        let cols = d_y.cols();
        if cols == 0 || ids.is_empty() {
            return Ok(());
        }
        // By id, and the rows of one id in their order.
        let mut order: Vec<(u32, usize)> = ids.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let per_task = d_table.rows().div_ceil(4 * self.pool.threads());
        self.pool.chunks(&mut d_table.data, cols * per_task, |first, table| {
            let ids = first / cols..first / cols + table.len() / cols;
            let start = order.partition_point(|&(id, _)| (id as usize) < ids.start);
            for &(id, row) in order[start..].iter().take_while(|&&(id, _)| (id as usize) < ids.end) {
                let d = &mut table[(id as usize - ids.start) * cols..][..cols];
                d.iter_mut().zip(d_y.row(row)).for_each(|(d, d_y)| *d += d_y);
            }
        });
        Ok(())
    }
}
