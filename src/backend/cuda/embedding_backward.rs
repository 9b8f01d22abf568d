//! Launch of kernels/embedding_backward.cu.

use super::driver::Geometry;
use super::{CudaBackend, Tensor, kernel_of, kernels, size};
use crate::error::Result;
use crate::ops::{EmbeddingBackward, EmbeddingBackwardArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, a column each: THREADS of the kernel.
const BLOCK: u32 = 256;

/// Mirrors EmbeddingBackwardSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct EmbeddingBackwardSizes {
    ids: u32,
    hidden: u32,
}

const _: () = assert!(
    size_of::<EmbeddingBackwardSizes>() == 8 && offset_of!(EmbeddingBackwardSizes, hidden) == 4,
    "layout shared with the kernel"
);

/// The rows that each id stands in: (id, where its rows begin), ended by where the last one's end; and the rows, by id and in
/// their order.
fn by_id(ids: &[u32]) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut rows = (0..size("embedding_backward", "ids", ids.len())?).collect::<Vec<u32>>();
    // Stable: the rows of one id stay in their order.
    rows.sort_by_key(|&row| ids[row as usize]);
    let mut starts = Vec::new();
    for (at, &row) in (0_u32..).zip(&rows) {
        let id = ids[row as usize];
        if starts.last_chunk().is_none_or(|&[last, _]| last != id) {
            starts.extend([id, at]);
        }
    }
    starts.extend([0, size("embedding_backward", "ids", rows.len())?]);
    Ok((starts, rows))
}

impl EmbeddingBackward for CudaBackend {
    fn embedding_backward(&self, args: EmbeddingBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let EmbeddingBackwardArgs { d_table, d_y, ids } = args;
        let kernel = Some(kernels::EMBEDDING_BACKWARD);
        let kernel = kernel_of("embedding_backward", d_table.storage, &[d_y.storage], kernel, None)?;
        let (starts, rows) = by_id(ids)?;
        let sizes = EmbeddingBackwardSizes {
            ids: size("embedding_backward", "ids", starts.len() / 2 - 1)?,
            hidden: size("embedding_backward", "d_y", d_y.cols)?,
        };
        let geometry = Geometry { grid: [sizes.ids, sizes.hidden.div_ceil(BLOCK), 1], block: BLOCK, shared: 0 };
        let starts = self.indices.get(&self.gpu, &starts)?;
        let rows = self.indices.get(&self.gpu, &rows)?;
        self.gpu.launch(kernel, geometry, &[d_table.write(), d_y.read(), starts.read(), rows.read()], sizes)
    }
}
