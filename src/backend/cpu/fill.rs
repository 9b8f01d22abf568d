//! One value everywhere.

use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::Fill;

impl Fill for CpuBackend {
    fn fill(&self, y: &mut Tensor, value: f32) -> Result<()> {
        self.pool.chunks(&mut y.data, 1 << 18, |_, y| y.fill(value));
        Ok(())
    }
}
