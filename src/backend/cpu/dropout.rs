//! Dropout: four elements a block of random words.

use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Dropout, DropoutArgs};
use crate::random::Philox4x32;

/// Elements a task takes; a multiple of four, so that no block of random words is drawn twice.
const TASK: usize = 1 << 14;

impl Dropout for CpuBackend {
    fn dropout(&self, args: DropoutArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let DropoutArgs { y, x, mask } = args;
        let random = Philox4x32::new(mask.seed, mask.stream);
        let threshold = mask.threshold();
        let factor = 1.0 / (1.0 - mask.probability);
        self.pool.chunks(&mut y.data, TASK, |first, y| {
            for ((y, x), block) in y.chunks_mut(4).zip(x.data[first..].chunks(4)).zip(first as u64 / 4..) {
                for ((y, x), word) in y.iter_mut().zip(x).zip(random.block(block)) {
                    *y = if word >= threshold { x * factor } else { 0.0 };
                }
            }
        });
        Ok(())
    }
}
