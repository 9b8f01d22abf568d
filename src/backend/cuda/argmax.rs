//! Launch of kernels/argmax.cu between products with chunks of the head.

use super::driver::{Argument, Element, Geometry};
use super::{CudaBackend, Matrix, Storage, Tensor, kernels, size};
use crate::error::Result;
use crate::ops::{Argmax, ArgmaxArgs, Shaped};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernel.
const BLOCK: u32 = 256;

/// Logits at a time: 32 MiB. The largest does not depend on how they are cut.
const LOGITS: usize = 8 << 20;

/// Mirrors ArgmaxSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct ArgmaxSizes {
    chunk: u32,
    first: u32,
    logit_scale: f32,
}

const _: () =
    assert!(size_of::<ArgmaxSizes>() == 12 && offset_of!(ArgmaxSizes, logit_scale) == 8, "layout shared with the kernel");

impl Argmax for CudaBackend {
    fn argmax(&self, args: ArgmaxArgs<'_, Tensor, Matrix>) -> Result<Vec<u32>> {
        args.check()?;
        let ArgmaxArgs { x, head, logit_scale } = args;
        let (rows, vocab) = (x.rows, head.rows());
        if rows == 0 {
            return Ok(Vec::new());
        }
        let head = &*head.dense(self)?;
        let operand = self.operand(x, head)?;
        // Whole tiles of the product, and at least one.
        let chunk = (LOGITS / rows / 128 * 128).clamp(128, vocab.max(128)).min(vocab.max(1));
        let mut logits = self.tensor(rows, chunk, Storage::F32)?;
        let mut values = self.gpu.allocate(rows * size_of::<f32>())?;
        let mut ids = self.gpu.allocate(rows * size_of::<u32>())?;
        let geometry = Geometry::row(size("argmax", "x", rows)?, BLOCK);
        let mut first = 0;
        while first < vocab {
            let range = first..(first + chunk).min(vocab);
            first = range.end;
            logits.cols = range.len();
            self.logits(&mut logits, &operand, head, range.clone())?;
            let sizes = ArgmaxSizes {
                chunk: size("argmax", "head", range.len())?,
                first: size("argmax", "head", range.start)?,
                logit_scale,
            };
            let arguments = [Argument::write(&mut values, Element::F32), Argument::write(&mut ids, Element::U32), logits.read()];
            self.gpu.launch(kernels::ARGMAX_CHUNK, geometry, &arguments, sizes)?;
        }
        self.gpu.download(&ids)
    }
}
