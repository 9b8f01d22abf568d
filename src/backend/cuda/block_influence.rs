//! Launch of kernels/block_influence.cu.

use super::driver::{Argument, Element, Geometry};
use super::{CudaBackend, Tensor, kernels, size};
use crate::error::Result;
use crate::ops::{BlockInfluence, BlockInfluenceArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernel; a warp a row.
const BLOCK: u32 = 128;
const ROWS_A_BLOCK: usize = 4;

/// Mirrors BlockInfluenceSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct BlockInfluenceSizes {
    rows: u32,
    hidden: u32,
}

const _: () = assert!(
    size_of::<BlockInfluenceSizes>() == 8 && offset_of!(BlockInfluenceSizes, hidden) == 4,
    "layout shared with the kernel"
);

impl BlockInfluence for CudaBackend {
    fn block_influence(&self, args: BlockInfluenceArgs<'_, Tensor>) -> Result<Vec<f64>> {
        args.check()?;
        let BlockInfluenceArgs { before, after } = args;
        let sizes = BlockInfluenceSizes {
            rows: size("block_influence", "before", before.rows)?,
            hidden: size("block_influence", "before", before.cols)?,
        };
        let geometry = Geometry::row(size("block_influence", "before", before.rows.div_ceil(ROWS_A_BLOCK))?, BLOCK);
        let mut cosines = self.gpu.allocate(before.rows * size_of::<f64>())?;
        self.with_f32(before, |before| {
            self.with_f32(after, |after| {
                let arguments = [Argument::write(&mut cosines, Element::F64), before.read(), after.read()];
                self.gpu.launch(kernels::BLOCK_INFLUENCE_F32, geometry, &arguments, sizes)
            })
        })?;
        self.gpu.download(&cosines)
    }
}
