//! `prunectl bench`.

use super::ui::Ui;
use crate::error::Result;
use crate::tasks::bench::{self, Limit, Report, Request, What};
use clap::{Args, ValueEnum};
use std::fmt::Write;

/// Measure ops against the machine's own ceiling
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  prunectl bench gemm --threads 2")]
pub(crate) struct Bench {
    /// Which ops
    #[arg(value_enum, default_value = "ops")]
    what: Group,
    /// Pairs of measurements (ceiling, op) each; medians are shown
    #[arg(long, value_name = "N", default_value = "7", value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Group {
    /// All
    Ops,
    /// Linear layers and the head
    Gemm,
    /// Attention with and without a cache
    Attention,
    /// Linear layers with weights in four bits
    Nf4,
}

impl Bench {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        ui.device()?;
        let what = match self.what {
            Group::Ops => What::Ops,
            Group::Gemm => What::Gemm,
            Group::Attention => What::Attention,
            Group::Nf4 => What::Nf4,
        };
        let request = Request { what, threads: ui.global.threads, repeats: self.repeats.into() };
        let report = bench::run(&request, ui.progress())?;
        ui.print(&report, &text(&report))
    }
}

fn text(report: &Report) -> String {
    let Report { device, isa, threads, f32_gflops, bf16_gflops, read_gbytes, .. } = report;
    let mut text = format!(
        "{device}, {isa}, {threads} threads; ceilings: {f32_gflops:.1} GFLOP/s f32, {bf16_gflops:.1} GFLOP/s bf16, {read_gbytes:.1} GB/s read\n\n"
    );
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:<16} {:<36} {:>5} {:>12} {:>16} {:>7}", "op", "case", "dtype", "time", "rate", "share");
    for row in &report.rows {
        let unit = match row.limit {
            Limit::F32Flops | Limit::Bf16Flops => "GFLOP/s",
            Limit::ReadBytes => "GB/s",
        };
        let rate = format!("{:.1} {unit}", row.giga_per_second);
        let time = format!("{:.1} us", row.microseconds);
        let _ =
            writeln!(text, "{:<16} {:<36} {:>5} {time:>12} {rate:>16} {:>6.1}%", row.op, row.case, row.dtype, 100.0 * row.share);
    }
    text
}
