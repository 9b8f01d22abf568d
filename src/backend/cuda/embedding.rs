//! Embedding: rows of a weight matrix, gathered by kernels/rows.cu.

use super::rows::RowsSizes;
use super::{CudaBackend, Matrix, Tensor, kernel_for, kernels};
use crate::error::Result;
use crate::ops::{Embedding, EmbeddingArgs};

impl Embedding for CudaBackend {
    fn embedding(&self, args: EmbeddingArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let EmbeddingArgs { y, table, ids } = args;
        let table = table.dense(self)?;
        let kernels =
            [Some(kernels::GATHER_ROWS_F32_F32), Some(kernels::GATHER_ROWS_F32_BF16), None, Some(kernels::GATHER_ROWS_BF16_BF16)];
        let kernel = kernel_for("embedding", y.storage, table.storage, kernels)?;
        let sizes = RowsSizes::new("embedding", y.rows, y.cols, y.cols, table.stride)?;
        let ids = self.indices.get(&self.gpu, ids)?;
        self.gpu.launch(kernel, sizes.geometry(sizes.cols)?, &[y.write(), table.read(), ids.read()], sizes)
    }
}
