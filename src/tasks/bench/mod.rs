//! Ops at the sizes of real models, against what the machine can do at most. Ceiling and op are measured in turn, some
//! hundredths of a second each, so that a machine whose speed changes changes both; the share is the median of the ratios.

mod cases;
mod nf4;
mod rows;

use crate::backend::cpu::peak::ReadBuffer;
use crate::backend::cpu::{CpuBackend, Isa};
use crate::error::Result;
use crate::ops::Device;
use crate::progress::Progress;
use crate::tensor::Dtype;
use serde::Serialize;
use std::time::{Duration, Instant};

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
}

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Which ops.
    pub what: What,
    /// Threads; none: all.
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
    /// Bytes read from memory.
    ReadBytes,
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
    /// What limits it.
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
    /// Instruction set.
    pub isa: &'static str,
    /// Threads.
    pub threads: usize,
    /// f32 FLOP/s of all threads, median, in 10^9.
    pub f32_gflops: f64,
    /// bf16 FLOP/s of all threads, median, in 10^9.
    pub bf16_gflops: f64,
    /// Bytes a second read by all threads, median, in 10^9.
    pub read_gbytes: f64,
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
    /// What limits it.
    pub limit: Limit,
    /// Work of a call: FLOPs or bytes.
    pub work: f64,
    /// The call. The first one packs weights and touches memory.
    pub call: Box<dyn FnMut() -> Result<()>>,
}

/// The ops of `what` at their sizes, each made when it is asked for.
pub fn cases(what: What, threads: Option<usize>) -> impl ExactSizeIterator<Item = Result<Case>> {
    cases::all(what).into_iter().map(move |make| make(threads))
}

struct Ceilings<'a> {
    backend: &'a CpuBackend,
    memory: ReadBuffer,
    seen: [Vec<f64>; 3],
}

impl Ceilings<'_> {
    /// Work a second, now.
    fn measure(&mut self, limit: Limit) -> f64 {
        let (index, rate) = match limit {
            Limit::F32Flops => (0, self.backend.peak_f32()),
            Limit::Bf16Flops => (1, self.backend.peak_bf16()),
            Limit::ReadBytes => (2, self.backend.peak_read(&self.memory)),
        };
        self.seen[index].push(rate);
        rate
    }
}

/// Measures.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) without threads or memory; [`Error::Interrupted`](crate::Error::Interrupted).
pub fn run(request: &Request, progress: &dyn Progress) -> Result<Report> {
    let isa = Isa::detect();
    let backend = CpuBackend::new(Dtype::F32, request.threads)?;
    let mut ceilings = Ceilings { backend: &backend, memory: ReadBuffer::new(192 << 20), seen: Default::default() };
    for limit in [Limit::F32Flops, Limit::Bf16Flops, Limit::ReadBytes] {
        for _ in 0..request.repeats {
            ceilings.measure(limit);
        }
    }
    let cases = cases(request.what, request.threads);
    progress.begin("bench", cases.len() as u64);
    let mut rows = Vec::new();
    for case in cases {
        progress.check("nothing is written by a bench")?;
        rows.push(measure(case?, request.repeats, &mut ceilings)?);
        progress.advance(1);
    }
    progress.end();
    let [f32_gflops, bf16_gflops, read_gbytes] = ceilings.seen.map(|rates| median(rates) / 1e9);
    Ok(Report { device: backend.name(), isa: isa.name(), threads: backend.threads(), f32_gflops, bf16_gflops, read_gbytes, rows })
}

fn measure(mut case: Case, repeats: usize, ceilings: &mut Ceilings<'_>) -> Result<Row> {
    // The first call packs weights and touches memory.
    (case.call)()?;
    let start = Instant::now();
    (case.call)()?;
    let calls = (0.015 / start.elapsed().as_secs_f64().max(1e-7)).clamp(1.0, 10_000.0);
    let calls = Duration::from_secs_f64(calls).as_secs();
    let (mut times, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        let ceiling = ceilings.measure(case.limit);
        let start = Instant::now();
        for _ in 0..calls {
            (case.call)()?;
        }
        let seconds = start.elapsed().as_secs_f64() / calls as f64;
        times.push(seconds);
        shares.push(case.work / seconds / ceiling);
    }
    let seconds = median(times);
    let Case { op, case, dtype, limit, work, .. } = case;
    Ok(Row {
        op,
        case,
        dtype: dtype.to_string(),
        microseconds: seconds * 1e6,
        limit,
        work,
        giga_per_second: work / seconds / 1e9,
        share: median(shares),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
