//! Launches of kernels/rows.cu: rows by index, and from one storage type to another.

use super::driver::{Argument, Geometry};
use super::{CudaBackend, Storage, Tensor, kernel_for, kernels, size};
use crate::error::Result;
use crate::ops::{GatherRowsArgs, Rows, ScatterRowsArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernels.
const BLOCK: u32 = 256;

/// Mirrors RowsSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
pub(super) struct RowsSizes {
    rows: u32,
    pub(super) cols: u32,
    y_stride: u32,
    x_stride: u32,
}

const _: () = assert!(size_of::<RowsSizes>() == 16 && offset_of!(RowsSizes, x_stride) == 12, "layout shared with the kernels");

impl RowsSizes {
    /// `rows` rows of `cols` elements, these far apart.
    pub(super) fn new(op: &'static str, rows: usize, cols: usize, y_stride: usize, x_stride: usize) -> Result<Self> {
        Ok(Self {
            rows: size(op, "y", rows)?,
            cols: size(op, "y", cols)?,
            y_stride: size(op, "y", y_stride)?,
            x_stride: size(op, "x", x_stride)?,
        })
    }

    /// A thread for what it copies; `written`: columns of y that are written.
    pub(super) fn geometry(&self, written: u32) -> Result<Geometry> {
        let aligned = self.cols.is_multiple_of(8) && self.y_stride.is_multiple_of(8) && self.x_stride.is_multiple_of(8);
        let in_row = if aligned { written / 8 } else { written };
        Geometry::over(self.rows as usize * in_row as usize, BLOCK)
    }
}

/// A copy that changes how elements are stored; shapes are equal.
pub(super) struct Convert<'a> {
    pub(super) y: &'a mut Tensor,
    pub(super) x: &'a Tensor,
}

impl CudaBackend {
    /// y = x, between different storage types.
    pub(super) fn convert(&self, args: Convert<'_>) -> Result<()> {
        let Convert { y, x } = args;
        let (cols, storage) = (y.cols, y.storage);
        self.convert_rows(y.write(), storage, cols, x)
    }

    /// `x` into rows `stride` apart, zeros behind the columns of `x`.
    pub(super) fn convert_rows(&self, y: Argument<'_>, storage: Storage, stride: usize, x: &Tensor) -> Result<()> {
        let kernels = [None, Some(kernels::CONVERT_F32_BF16), Some(kernels::CONVERT_BF16_F32), Some(kernels::CONVERT_BF16_BF16)];
        let kernel = kernel_for("convert", storage, x.storage, kernels)?;
        let sizes = RowsSizes::new("convert", x.rows, x.cols, stride, x.cols)?;
        self.gpu.launch(kernel, sizes.geometry(sizes.y_stride)?, &[y, x.read()], sizes)
    }
}

impl Rows for CudaBackend {
    fn gather_rows(&self, args: GatherRowsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let GatherRowsArgs { y, x, rows } = args;
        let kernels =
            [Some(kernels::GATHER_ROWS_F32_F32), Some(kernels::GATHER_ROWS_F32_BF16), None, Some(kernels::GATHER_ROWS_BF16_BF16)];
        let kernel = kernel_for("gather_rows", y.storage, x.storage, kernels)?;
        let sizes = RowsSizes::new("gather_rows", y.rows, y.cols, y.cols, x.cols)?;
        let rows = self.indices.get(&self.gpu, rows)?;
        self.gpu.launch(kernel, sizes.geometry(sizes.cols)?, &[y.write(), x.read(), rows.read()], sizes)
    }

    fn scatter_rows(&self, args: ScatterRowsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let ScatterRowsArgs { y, x, rows } = args;
        let kernels = [Some(kernels::SCATTER_ROWS_F32_F32), None, None, Some(kernels::SCATTER_ROWS_BF16_BF16)];
        let kernel = kernel_for("scatter_rows", y.storage, x.storage, kernels)?;
        let sizes = RowsSizes::new("scatter_rows", x.rows, x.cols, y.cols, x.cols)?;
        let rows = self.indices.get(&self.gpu, rows)?;
        self.gpu.launch(kernel, sizes.geometry(sizes.cols)?, &[y.write(), x.read(), rows.read()], sizes)
    }
}
