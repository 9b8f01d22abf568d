//! `prunectl bench`.

use super::compute::{ComputeArgs, Opened};
use super::examples;
use super::ui::Ui;
use crate::error::{Error, Result};
use crate::model::{Decoder, ModelFolder, Residency};
use crate::ops::Backend;
use crate::tasks::bench::{self, Limit, Report, Request, Shape, What, scan};
use clap::{Args, ValueEnum};
use std::fmt::Write;

/// Measure ops, or a round of a scan, against what this machine can do at most
#[derive(Debug, Args)]
#[command(after_help = examples::bench())]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum, default_value = "ops")]
    what: Group,
    /// Sizes of which model (random weights; nothing is downloaded) [default: smollm2 on a CPU, aya-8b on a GPU]
    #[arg(long, value_enum, value_name = "MODEL")]
    shape: Option<ShapeChoice>,
    /// Pairs of measurements (ceiling, op) each; medians are shown
    #[arg(long, value_name = "N", default_value = "7", value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    /// scan: number of records [default: the shape's, 200 for aya-8b]
    #[arg(long, value_name = "N")]
    records: Option<usize>,
    /// scan: tokens a record [default: the shape's, 256 for aya-8b]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// scan: tokens that are scored, the last of each record [default: the shape's, 100 for aya-8b]
    #[arg(long, value_name = "N")]
    scored: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Group {
    /// All ops
    Ops,
    /// Linear layers and the head
    Gemm,
    /// Attention with and without a cache
    Attention,
    /// Linear layers with weights in four bits
    Nf4,
    /// Gradients and the optimiser
    Train,
    /// One exact round of a scan (--dtype and --mem-budget apply)
    Scan,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShapeChoice {
    /// Small enough for any machine and for the emulated device: a check, not a measurement
    Tiny,
    /// SmolLM2-135M
    Smollm2,
    /// Aya-Expanse-8B
    #[value(name = "aya-8b")]
    Aya8b,
}

impl Bench {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let gpu = ui.device()?.gpu;
        let shape = match self.shape {
            Some(ShapeChoice::Tiny) => Shape::Tiny,
            Some(ShapeChoice::Smollm2) => Shape::Smollm2,
            Some(ShapeChoice::Aya8b) => Shape::Aya8b,
            None if gpu.is_some() => Shape::Aya8b,
            None => Shape::Smollm2,
        };
        let what = match self.what {
            Group::Ops => What::Ops,
            Group::Gemm => What::Gemm,
            Group::Attention => What::Attention,
            Group::Nf4 => What::Nf4,
            Group::Train => What::Train,
            Group::Scan => return self.scan(ui, shape),
        };
        if self.records.or(self.tokens).or(self.scored).is_some() {
            return Err(Error::request("--records, --tokens and --scored go with `bench scan`"));
        }
        let request = Request { what, shape, gpu, threads: ui.global.threads, repeats: self.repeats.into() };
        let report = bench::run(&request, ui.progress())?;
        ui.print(&report, &text(&report))
    }

    fn scan(&self, ui: &Ui, shape: Shape) -> Result<()> {
        let folder = shape.folder()?;
        let report = match self.compute.open(ui, &folder)? {
            Opened::Cpu(backend) => self.scan_on(ui, backend, folder, shape)?,
            #[cfg(feature = "cuda")]
            Opened::Cuda(backend) => {
                let watch = bench::cuda::Watch::begin(backend.gpu().facts())?;
                let report = self.scan_on(ui, *backend, folder, shape)?;
                scan::Report { gpu: Some(watch.end()), ..report }
            }
        };
        ui.print(&report, &scan_text(&report))
    }

    fn scan_on<B: Backend>(&self, ui: &Ui, backend: B, folder: ModelFolder, shape: Shape) -> Result<scan::Report> {
        let memory = self.compute.memory(&backend, &folder, Residency::Streamed)?;
        let Self { records, tokens, scored, .. } = *self;
        let request = scan::Request { shape, records, tokens, scored, mem_budget: memory.budget };
        let decoder = Decoder::new(backend, folder, memory.residency, request.positions()?)?;
        scan::run(&decoder, &request, ui.progress())
    }
}

/// The device in a line, and a warning where it is none that anybody would measure.
fn device(device: &str, #[cfg(feature = "cuda")] gpu: Option<&bench::cuda::Gpu>) -> String {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = gpu {
        let driver = gpu.driver.as_deref().unwrap_or(&gpu.driver_cuda);
        let warning = if gpu.emulated { "emulated: these are the times of a test tool on a CPU, not of a GPU\n" } else { "" };
        return format!("{warning}{device}, {}, driver {driver}", gpu.name);
    }
    device.to_owned()
}

fn text(report: &Report) -> String {
    let Report { f32_gflops, bf16_gflops, memory_gbytes, .. } = report;
    let mut text = device(
        &report.device,
        #[cfg(feature = "cuda")]
        report.gpu.as_ref(),
    );
    // Writing to a String cannot fail.
    if let (Some(isa), Some(threads)) = (report.isa, report.threads) {
        let _ = write!(text, ", {isa}, {threads} threads");
    }
    let _ = writeln!(
        text,
        "; ceilings: {f32_gflops:.1} GFLOP/s f32, {bf16_gflops:.1} GFLOP/s bf16, {memory_gbytes:.1} GB/s\n({})\n",
        report.ceilings
    );
    let _ = writeln!(text, "{:<16} {:<36} {:>5} {:>12} {:>16} {:>7}", "op", "case", "dtype", "time", "rate", "share");
    for row in &report.rows {
        let unit = match row.limit {
            Limit::F32Flops | Limit::Bf16Flops => "GFLOP/s",
            Limit::MemoryBytes => "GB/s",
        };
        let rate = format!("{:.1} {unit}", row.giga_per_second);
        let time = format!("{:.1} us", row.microseconds);
        let _ =
            writeln!(text, "{:<16} {:<36} {:>5} {time:>12} {rate:>16} {:>6.1}%", row.op, row.case, row.dtype, 100.0 * row.share);
    }
    text
}

fn scan_text(report: &scan::Report) -> String {
    let mut text = device(
        &report.device,
        #[cfg(feature = "cuda")]
        report.gpu.as_ref(),
    );
    let scan::Report { dtype, parameters, records, tokens, scored, candidates, .. } = report;
    let _ = write!(
        text,
        ", {dtype}\n{parameters} random weights; {records} records of {tokens} tokens, {scored} of them scored; \
         {candidates} candidates and the whole model\n\
         weights ready after {:.2} s; the round: {:.2} s, {:.1} GFLOP/s in matrix products, {} bytes of memory",
        report.load_seconds, report.seconds, report.gflops, report.peak_memory_bytes
    );
    if let Some(joules) = report.energy_joules {
        let _ = write!(text, ", {joules:.0} J");
    }
    text.push('\n');
    text
}
