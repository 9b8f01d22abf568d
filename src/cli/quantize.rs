//! `prunectl quantize`.

use super::examples;
use super::ui::Ui;
use crate::error::Result;
use crate::tasks::quantize::{Report, Request, quantize};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;

/// Write the model in four bits (NF4)
///
/// The linears of all layers become NF4 as bitsandbytes stores it, bit for bit; embeddings, norms and the head stay as they
/// are. OUT loads in transformers with bitsandbytes, and here.
#[derive(Debug, Args)]
#[command(after_help = examples::quantize())]
pub(crate) struct Quantize {
    /// Folder of the model
    model: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Store the magnitudes of the blocks in 8 bits (4.13 bits a weight instead of 4.5)
    #[arg(long)]
    double_quant: bool,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
}

impl Quantize {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let Self { model, out, double_quant, force } = self;
        let report = quantize(&Request { model, out, double_quant, force }, ui.progress())?;
        ui.print(&report, &text(&report))
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let Report { matrices, weights, bits_per_weight, relative_error, bytes_before, bytes, .. } = report;
    let kind = if report.double_quant { "NF4, double quantisation" } else { "NF4" };
    let _ = writeln!(out, "{}", report.out.display());
    let _ = writeln!(out, "  quantised   {matrices} matrices of {weights} weights: {kind}, {bits_per_weight:.2} bits a weight");
    let _ = writeln!(out, "  error       {:.2} % of the weights' root mean square", 100.0 * relative_error);
    let _ = writeln!(out, "  bytes       {bytes_before} -> {bytes}");
    let _ = writeln!(out, "  weights     {}", report.weight_files.join(", "));
    if !report.carried.is_empty() {
        let _ = writeln!(out, "  carried     {}", report.carried.join(", "));
    }
    for left in &report.left_behind {
        let _ = writeln!(out, "  left behind {}: {}", left.name, left.reason);
    }
    out
}
