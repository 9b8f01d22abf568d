//! `prunectl prune`.

use super::compute::{ComputeArgs, DtypeChoice, GemmChoice, OpenedTwice};
use super::layers::{LayerList, parse_layers};
use super::ui::Ui;
use crate::error::Result;
use crate::model::{Decoder, LayerPlan, ModelFolder, Residency};
use crate::ops::Backend;
use crate::tasks::prune::probe::{PROBE_TOKENS, same_logits};
use crate::tasks::prune::{Choice, Report, Request, prune};
use clap::{ArgGroup, Args};
use std::fmt::Write;
use std::path::PathBuf;

/// Write the shallower model
///
/// Every tensor keeps its bytes; layers are renumbered, config.json and the shard index rebuilt, tokenizer files carried
/// over. OUT appears only when it is complete and has been checked.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("layers").required(true).args(["remove", "keep", "scan"]))]
pub(crate) struct Prune {
    /// Folder of the model
    model: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Layers to remove, as 13,12
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    remove: Option<LayerList>,
    /// Layers to keep, as 0-11,14-31
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    keep: Option<LayerList>,
    /// Remove what the scan in this folder removed
    #[arg(long, value_name = "DIR")]
    scan: Option<PathBuf>,
    /// Follow only the first K rounds of the scan
    #[arg(long, value_name = "K", requires = "scan", conflicts_with_all = ["remove", "keep"], value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Replace OUT if it exists, and follow a scan even if it was made of another model
    #[arg(long)]
    force: bool,
}

impl Prune {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let choice = match (self.remove, self.keep, self.scan) {
            (Some(layers), ..) => Choice::Remove(layers),
            (_, Some(layers), _) => Choice::Keep(layers),
            (.., scan) => Choice::Scan {
                folder: scan.unwrap_or_default(),
                // More than fits is more than any scan has, and is refused as such.
                rounds: self.rounds.map(|k| usize::try_from(k).unwrap_or(usize::MAX)),
            },
        };
        let request = Request { model: self.model, out: self.out, choice, force: self.force };
        let compute = ComputeArgs { dtype: DtypeChoice::Auto, mem_budget: None, gemm: GemmChoice::Auto };
        let verify = |original: &ModelFolder, plan: &LayerPlan, pruned: &ModelFolder| -> Result<()> {
            // Opened again by path: a decoder owns its folder.
            let [a, b] = [ModelFolder::open(&original.path)?, ModelFolder::open(&pruned.path)?];
            match compute.open_two(ui, [&a, &b])? {
                OpenedTwice::Cpu([on, other]) => probe(on, a, plan, other, b),
                #[cfg(feature = "cuda")]
                OpenedTwice::Cuda([on, other]) => probe(*on, a, plan, *other, b),
            }
        };
        let report = prune(&request, &verify, ui.progress())?;
        ui.print(&report, &text(&report))
    }
}

fn probe<B: Backend>(a: B, original: ModelFolder, plan: &LayerPlan, b: B, pruned: ModelFolder) -> Result<()> {
    let decoder = |backend, folder| Decoder::new(backend, folder, Residency::Streamed, PROBE_TOKENS);
    same_logits(&decoder(a, original)?, plan, &decoder(b, pruned)?)
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let (before, after) = (&report.before, &report.after);
    let list = |layers: &[usize]| layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let percent = |a: u64, b: u64| 100.0 * (a as f64 / b.max(1) as f64 - 1.0);
    let _ = writeln!(out, "{}", report.out.display());
    let _ = writeln!(
        out,
        "  layers      {} -> {} (without {})",
        before.num_hidden_layers,
        after.num_hidden_layers,
        list(&report.removed)
    );
    let _ = writeln!(
        out,
        "  parameters  {} -> {} ({:+.1} %)",
        before.parameters,
        after.parameters,
        percent(after.parameters, before.parameters)
    );
    let _ = writeln!(out, "  bytes       {} -> {} ({:+.1} %)", before.bytes, after.bytes, percent(after.bytes, before.bytes));
    let _ = writeln!(out, "  weights     {}", report.weight_files.join(", "));
    if !report.carried.is_empty() {
        let _ = writeln!(out, "  carried     {}", report.carried.join(", "));
    }
    for left in &report.left_behind {
        let _ = writeln!(out, "  left behind {}: {}", left.name, left.reason);
    }
    out
}
