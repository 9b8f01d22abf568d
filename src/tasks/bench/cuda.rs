//! GPUs: their clock is the driver's, their ceilings are the largest product and copy of our own, and what NVML says of clocks,
//! power and throttling goes with the figures.

use super::cases::{activations, values, weights};
use super::yardstick::Yardstick;
use super::{Backends, Limit, Report, Request, Shape, measure_all};
use crate::backend::cuda::driver::{self, EMULATED, Facts};
use crate::backend::cuda::{CudaBackend, Matrix, Tensor, nvml};
use crate::error::Result;
use crate::ops::{Device, Linear, LinearArgs, Shaped};
use crate::progress::Progress;
use crate::tensor::Dtype;
use serde::Serialize;
use std::sync::Arc;

/// The GPU that was measured, and its state around that.
#[derive(Debug, Clone, Serialize)]
pub struct Gpu {
    /// Marketing name.
    pub name: String,
    /// True for the emulated device of the tests: its figures say nothing about any GPU.
    pub emulated: bool,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// CUDA version the driver supports.
    pub driver_cuda: String,
    /// The driver's own version, where NVML is there.
    pub driver: Option<String>,
    /// Clocks, power and throttling before the first measurement.
    pub before: Option<nvml::Facts>,
    /// And after the last, while the GPU is still warm.
    pub after: Option<nvml::Facts>,
}

/// Looks at a GPU before it is measured and after.
pub struct Watch {
    gpu: Gpu,
    meter: Option<nvml::Meter>,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn begin(facts: &Facts) -> Result<Self> {
        let meter = nvml::Meter::open(facts);
        let (major, minor) = driver::version()?;
        let gpu = Gpu {
            name: facts.name.clone(),
            emulated: facts.name == EMULATED,
            compute_capability: facts.compute_capability,
            multiprocessors: facts.multiprocessors,
            memory_bytes: facts.total_memory,
            driver_cuda: format!("{major}.{minor}"),
            driver: meter.as_ref().and_then(nvml::Meter::driver_version),
            before: meter.as_ref().and_then(nvml::Meter::facts),
            after: None,
        };
        Ok(Self { gpu, meter })
    }

    /// Ends.
    #[must_use]
    pub fn end(self) -> Gpu {
        Gpu { after: self.meter.as_ref().and_then(nvml::Meter::facts), ..self.gpu }
    }
}

/// Edges of the square products, in bf16 and in f32, and bytes of the copy.
const fn ceilings(shape: Shape) -> ([usize; 2], usize) {
    match shape {
        Shape::Tiny => ([128, 64], 1 << 20),
        Shape::Smollm2 | Shape::Aya8b => ([8192, 4096], 512 << 20),
    }
}

/// A square product y = x W^T.
struct Product {
    backend: Arc<CudaBackend>,
    edge: usize,
    y: Tensor,
    x: Tensor,
    weight: Matrix,
}

impl Product {
    fn new(backend: Arc<CudaBackend>, edge: usize) -> Result<Self> {
        let (x, y) = (activations(&*backend, edge, edge)?, backend.scratch(edge, edge)?);
        let weight = weights(&*backend, edge, edge)?;
        Ok(Self { backend, edge, y, x, weight })
    }

    fn rate(&mut self) -> Result<f64> {
        let Self { backend, edge, y, x, weight } = self;
        let seconds = backend.gpu().seconds(|| backend.linear(LinearArgs { y, x, weight, bias: None, accumulate: false }))?;
        #[expect(clippy::cast_precision_loss, reason = "sizes of a benchmark")]
        let edge = *edge as f64;
        Ok(2.0 * edge * edge * edge / seconds)
    }
}

struct CudaYardstick<'a> {
    backends: &'a Backends<CudaBackend>,
    f32: Product,
    bf16: Product,
    /// Two tensors of f32, larger than caches.
    copied: [Tensor; 2],
}

impl<'a> CudaYardstick<'a> {
    fn new(backends: &'a Backends<CudaBackend>, request: &Request) -> Result<Self> {
        let ([bf16, f32], bytes) = ceilings(request.shape);
        let rows = bytes / (4 * 1024);
        let memory = || backends.f32.upload(rows, 1024, &values(rows * 1024));
        let mut yardstick = Self {
            backends,
            f32: Product::new(backends.f32.clone(), f32)?,
            bf16: Product::new(backends.bf16.clone(), bf16)?,
            copied: [memory()?, memory()?],
        };
        // The first of each loads its kernels.
        for limit in [Limit::F32Flops, Limit::Bf16Flops, Limit::MemoryBytes] {
            yardstick.rate(limit)?;
        }
        Ok(yardstick)
    }
}

impl Yardstick for CudaYardstick<'_> {
    fn name(&self) -> &'static str {
        "this program's own large square products, and a copy within the GPU's memory (read and written bytes)"
    }

    fn rate(&mut self, limit: Limit) -> Result<f64> {
        match limit {
            Limit::F32Flops => self.f32.rate(),
            Limit::Bf16Flops => self.bf16.rate(),
            Limit::MemoryBytes => {
                let backend = &self.backends.f32;
                let [to, from] = &mut self.copied;
                let seconds = backend.gpu().seconds(|| backend.copy(to, from))?;
                #[expect(clippy::cast_precision_loss, reason = "sizes of a benchmark")]
                let bytes = (2 * 4 * from.rows() * from.cols()) as f64;
                Ok(bytes / seconds)
            }
        }
    }

    fn seconds(&self, dtype: Dtype, calls: u64, call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let seconds = self.backends.of(dtype).gpu().seconds(|| (0..calls).try_for_each(|_| call()))?;
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let calls = calls as f64;
        Ok(seconds / calls)
    }
}

/// Measures GPU `ordinal`.
pub(super) fn run(request: &Request, ordinal: usize, progress: &dyn Progress) -> Result<Report> {
    let backends = Backends::open(|dtype| CudaBackend::new(dtype, ordinal), Dtype::size)?;
    let mut yardstick = CudaYardstick::new(&backends, request)?;
    let watch = Watch::begin(backends.f32.gpu().facts())?;
    let makes = super::all(request.what, request.shape);
    let measured = measure_all(request, makes, &backends, &mut yardstick, progress)?;
    let gpu = Some(watch.end());
    Ok(Report { gpu, ..measured.report(request, backends.f32.name(), yardstick.name()) })
}
