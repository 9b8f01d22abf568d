//! Ops at the sizes of real models, against what the machine can do at most. Ceiling and op are measured in turn, some
//! hundredths of a second each, so that a machine whose speed changes changes both; the share is the median of the ratios.

mod cases;
#[cfg(feature = "cuda")]
pub mod cuda;
mod nf4;
mod rows;
pub mod scan;
mod sizes;
mod train;
mod yardstick;

pub use sizes::Shape;

use crate::backend::cpu::CpuBackend;
use crate::error::Result;
use crate::ops::{Adamw, Device, TrainingBackend};
use crate::progress::Progress;
use crate::tensor::Dtype;
use cases::Make;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use yardstick::{CpuYardstick, Yardstick};

/// Which ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// All of them.
    Ops,
    /// Linear layers and the head.
    Gemm,
    /// Attention with and without a cache.
    Attention,
    /// Linear layers in four bits.
    Nf4,
    /// Gradients and the optimiser.
    Train,
}

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Which ops.
    pub what: What,
    /// At the sizes of which model.
    pub shape: Shape,
    /// Number of the GPU; `None` for the CPU.
    pub gpu: Option<usize>,
    /// Threads of the CPU backend; none: all.
    pub threads: Option<usize>,
    /// Pairs of measurements an op.
    pub repeats: usize,
}

/// What an op's time is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Fused multiply-adds in f32.
    F32Flops,
    /// bf16 products.
    Bf16Flops,
    /// Bytes to and from memory.
    MemoryBytes,
}

/// One op at one size.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// As in `ops::ALL`.
    pub op: &'static str,
    /// Sizes in words.
    pub case: String,
    /// Arithmetic.
    pub dtype: String,
    /// Median time of a call.
    pub microseconds: f64,
    /// What limits it most, of what it was held against.
    pub limit: Limit,
    /// Work of a call: FLOPs or bytes.
    pub work: f64,
    /// Work a second, in 10^9.
    pub giga_per_second: f64,
    /// Of the ceiling measured beside it.
    pub share: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// As `--device` takes it.
    pub device: String,
    /// The model whose sizes these are.
    pub shape: Shape,
    /// What the ceilings are.
    pub ceilings: &'static str,
    /// f32 FLOP/s, median, in 10^9.
    pub f32_gflops: f64,
    /// bf16 FLOP/s, median, in 10^9.
    pub bf16_gflops: f64,
    /// Bytes a second, median, in 10^9.
    pub memory_gbytes: f64,
    /// Instruction set of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isa: Option<&'static str>,
    /// Threads of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The GPU.
    #[cfg(feature = "cuda")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<cuda::Gpu>,
    /// The ops.
    pub rows: Vec<Row>,
}

/// An op ready to run.
pub struct Case {
    /// As in `ops::ALL`.
    pub op: &'static str,
    /// Sizes in words.
    pub case: String,
    /// Arithmetic.
    pub dtype: Dtype,
    /// FLOPs and bytes of a call, by what they are held against: the share is that of whichever takes longest.
    pub work: Vec<(Limit, f64)>,
    /// The call. The first one packs weights and touches memory.
    pub call: Box<dyn FnMut() -> Result<()>>,
}

/// A device in both arithmetics.
pub(crate) struct Backends<B> {
    f32: Arc<B>,
    bf16: Arc<B>,
    /// Bytes of a weight that the file holds in bf16, by the arithmetic.
    weight_bytes: fn(Dtype) -> usize,
}

impl<B: Device> Backends<B> {
    fn open(open: impl Fn(Dtype) -> Result<B>, weight_bytes: fn(Dtype) -> usize) -> Result<Self> {
        Ok(Self { f32: Arc::new(open(Dtype::F32)?), bf16: Arc::new(open(Dtype::Bf16)?), weight_bytes })
    }

    fn weight_bytes(&self, dtype: Dtype) -> f64 {
        (self.weight_bytes)(dtype) as f64
    }

    fn of(&self, dtype: Dtype) -> Arc<B> {
        match dtype {
            Dtype::F32 | Dtype::F16 => self.f32.clone(),
            Dtype::Bf16 => self.bf16.clone(),
        }
    }

    /// The arithmetic in which ops that multiply no weights are measured: f32, unless activations are stored in bf16.
    fn activations(&self) -> Dtype {
        self.bf16.scratch_dtype()
    }
}

/// The ops of `what` at a shape's sizes on the CPU, each made when it is asked for.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) without threads.
pub fn cpu_cases(what: What, shape: Shape, threads: Option<usize>) -> Result<impl ExactSizeIterator<Item = Result<Case>>> {
    let backends = on_cpu(threads)?;
    Ok(all(what, shape).into_iter().map(move |make| make(&backends)))
}

/// The CPU keeps bf16 weights in two bytes in either arithmetic.
fn on_cpu(threads: Option<usize>) -> Result<Backends<CpuBackend>> {
    Backends::open(|dtype| CpuBackend::new(dtype, threads), |_| Dtype::Bf16.size())
}

/// Ops of models and of training.
fn all<B: TrainingBackend + Adamw + 'static>(what: What, shape: Shape) -> Vec<Make<B>> {
    match what {
        What::Train => train::all(shape),
        What::Ops => cases::all(what, shape).into_iter().chain(train::all(shape)).collect(),
        What::Gemm | What::Attention | What::Nf4 => cases::all(what, shape),
    }
}

/// Measures.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) without threads or memory; [`Error::Interrupted`](crate::Error::Interrupted).
pub fn run(request: &Request, progress: &dyn Progress) -> Result<Report> {
    #[cfg(feature = "cuda")]
    if let Some(ordinal) = request.gpu {
        return cuda::run(request, ordinal, progress);
    }
    let backends = on_cpu(request.threads)?;
    let mut yardstick = CpuYardstick::new(backends.f32.clone());
    let measured = measure_all(request, all(request.what, request.shape), &backends, &mut yardstick, progress)?;
    Ok(Report {
        isa: Some(backends.f32.isa().name()),
        threads: Some(backends.f32.threads()),
        ..measured.report(request, backends.f32.name(), yardstick.name())
    })
}

/// Rates seen, by limit, and the ops.
struct Measured {
    ceilings: [Vec<f64>; 3],
    rows: Vec<Row>,
}

impl Measured {
    fn report(self, request: &Request, device: String, ceilings: &'static str) -> Report {
        let [f32_gflops, bf16_gflops, memory_gbytes] = self.ceilings.map(|rates| median(rates) / 1e9);
        Report {
            device,
            shape: request.shape,
            ceilings,
            f32_gflops,
            bf16_gflops,
            memory_gbytes,
            isa: None,
            threads: None,
            #[cfg(feature = "cuda")]
            gpu: None,
            rows: self.rows,
        }
    }

    /// Work a second that the machine can do, now.
    fn ceiling(&mut self, yardstick: &mut dyn Yardstick, limit: Limit) -> Result<f64> {
        let index = match limit {
            Limit::F32Flops => 0,
            Limit::Bf16Flops => 1,
            Limit::MemoryBytes => 2,
        };
        let rate = yardstick.rate(limit)?;
        self.ceilings[index].push(rate);
        Ok(rate)
    }
}

fn measure_all<B: Device>(
    request: &Request,
    makes: Vec<Make<B>>,
    backends: &Backends<B>,
    yardstick: &mut dyn Yardstick,
    progress: &dyn Progress,
) -> Result<Measured> {
    let mut measured = Measured { ceilings: Default::default(), rows: Vec::new() };
    for limit in [Limit::F32Flops, Limit::Bf16Flops, Limit::MemoryBytes] {
        for _ in 0..request.repeats {
            measured.ceiling(yardstick, limit)?;
        }
    }
    progress.begin("bench", makes.len() as u64);
    for make in makes {
        progress.check("nothing is written by a bench")?;
        let row = measure(make(backends)?, request.repeats, yardstick, &mut measured)?;
        measured.rows.push(row);
        progress.advance(1);
    }
    progress.end();
    Ok(measured)
}

fn measure(mut case: Case, repeats: usize, yardstick: &mut dyn Yardstick, measured: &mut Measured) -> Result<Row> {
    // The first call packs weights and touches memory.
    (case.call)()?;
    let once = yardstick.seconds(case.dtype, 1, &mut case.call)?;
    let calls = Duration::from_secs_f64((0.015 / once.max(1e-7)).clamp(1.0, 10_000.0)).as_secs();
    let mut times = Vec::new();
    let mut shares = vec![Vec::new(); case.work.len()];
    for _ in 0..repeats {
        let mut rates = Vec::with_capacity(case.work.len());
        for &(limit, _) in &case.work {
            rates.push(measured.ceiling(yardstick, limit)?);
        }
        let seconds = yardstick.seconds(case.dtype, calls, &mut case.call)?;
        times.push(seconds);
        for ((shares, rate), (_, work)) in shares.iter_mut().zip(rates).zip(&case.work) {
            shares.push(work / seconds / rate);
        }
    }
    let seconds = median(times);
    let Case { op, case, dtype, work, .. } = case;
    let shares = shares.into_iter().map(median);
    let closest = work.into_iter().zip(shares).max_by(|a, b| a.1.total_cmp(&b.1));
    let ((limit, work), share) = closest.unwrap_or(((Limit::MemoryBytes, 0.0), f64::NAN));
    Ok(Row {
        op,
        case,
        dtype: dtype.to_string(),
        microseconds: seconds * 1e6,
        limit,
        work,
        giga_per_second: work / seconds / 1e9,
        share,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
