//! What a device can do at most, and its clock.

use super::Limit;
use crate::backend::cpu::CpuBackend;
use crate::backend::cpu::peak::ReadBuffer;
use crate::error::Result;
use crate::tensor::Dtype;
use std::sync::Arc;
use std::time::Instant;

/// Measures a device.
pub(super) trait Yardstick {
    /// What the ceilings are, in words.
    fn name(&self) -> &'static str;

    /// Work a second that the device does at most, now.
    fn rate(&mut self, limit: Limit) -> Result<f64>;

    /// Seconds that one of `calls` calls takes, of an op of the backend that computes in `dtype`.
    fn seconds(&self, dtype: Dtype, calls: u64, call: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
}

pub(super) struct CpuYardstick {
    backend: Arc<CpuBackend>,
    memory: ReadBuffer,
}

impl CpuYardstick {
    pub(super) fn new(backend: Arc<CpuBackend>) -> Self {
        Self { backend, memory: ReadBuffer::new(192 << 20) }
    }
}

impl Yardstick for CpuYardstick {
    fn name(&self) -> &'static str {
        "independent multiply-adds and a read of memory by all threads"
    }

    fn rate(&mut self, limit: Limit) -> Result<f64> {
        Ok(match limit {
            Limit::F32Flops => self.backend.peak_f32(),
            Limit::Bf16Flops => self.backend.peak_bf16(),
            Limit::MemoryBytes => self.backend.peak_read(&self.memory),
        })
    }

    fn seconds(&self, _dtype: Dtype, calls: u64, call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let calls = calls as f64;
        Ok(start.elapsed().as_secs_f64() / calls)
    }
}
