//! Launches of kernels/cols.cu.

use super::driver::Geometry;
use super::{CudaBackend, Tensor, kernel_for, kernels, size};
use crate::error::Result;
use crate::ops::{AddColsArgs, Cols, TakeColsArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernels.
const BLOCK: u32 = 256;

/// Mirrors ColsSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct ColsSizes {
    rows: u32,
    cols: u32,
    wide: u32,
    first: u32,
    scale: f32,
}

const _: () = assert!(size_of::<ColsSizes>() == 20 && offset_of!(ColsSizes, scale) == 16, "layout shared with the kernels");

impl ColsSizes {
    fn new(op: &'static str, narrow: &Tensor, wide: &Tensor, first: usize, scale: f32) -> Result<Self> {
        Ok(Self {
            rows: size(op, "x", narrow.rows)?,
            cols: size(op, "x", narrow.cols)?,
            wide: size(op, "y", wide.cols)?,
            first: size(op, "first_col", first)?,
            scale,
        })
    }

    fn geometry(&self) -> Result<Geometry> {
        let aligned = self.cols.is_multiple_of(8) && self.wide.is_multiple_of(8) && self.first.is_multiple_of(8);
        let in_row = if aligned { self.cols / 8 } else { self.cols };
        Geometry::over(self.rows as usize * in_row as usize, BLOCK)
    }
}

impl Cols for CudaBackend {
    fn add_cols(&self, args: AddColsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AddColsArgs { y, x, first_col, scale } = args;
        let kernels =
            [Some(kernels::ADD_COLS_F32_F32), Some(kernels::ADD_COLS_F32_BF16), None, Some(kernels::ADD_COLS_BF16_BF16)];
        let kernel = kernel_for("add_cols", y.storage, x.storage, kernels)?;
        let sizes = ColsSizes::new("add_cols", x, y, first_col, scale)?;
        self.gpu.launch(kernel, sizes.geometry()?, &[y.write(), x.read()], sizes)
    }

    fn take_cols(&self, args: TakeColsArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let TakeColsArgs { y, x, first_col } = args;
        let kernels = [Some(kernels::TAKE_COLS_F32), None, None, Some(kernels::TAKE_COLS_BF16)];
        let kernel = kernel_for("take_cols", y.storage, x.storage, kernels)?;
        let sizes = ColsSizes::new("take_cols", y, x, first_col, 1.0)?;
        self.gpu.launch(kernel, sizes.geometry()?, &[y.write(), x.read()], sizes)
    }
}
