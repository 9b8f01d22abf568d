//! `prunectl score`.

use super::ui::Ui;
use crate::error::Result;
use crate::metrics::{BleuTokenizer, Metric};
use crate::tasks::score::{self, Report, Request};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;

/// chrF, chrF++ and BLEU of texts, without a model; equal to sacreBLEU's
#[derive(Debug, Args)]
pub(crate) struct Score {
    /// Hypotheses: .jsonl (field hypothesis), else a segment a line
    #[arg(long, value_name = "FILE")]
    hyp: PathBuf,
    /// References: .jsonl (field target or reference), else a segment a line
    #[arg(long = "ref", value_name = "FILE")]
    reference: PathBuf,
    /// What to compute
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "chrf,chrf++,bleu", value_parser = ["chrf", "chrf++", "bleu"])]
    metrics: Vec<String>,
    /// Tokenizer of BLEU
    #[arg(long, value_name = "NAME", default_value = "13a", value_parser = tokenizer())]
    tokenize: BleuTokenizer,
}

/// Parses the names of [`BleuTokenizer`], and lists them in --help.
fn tokenizer() -> impl clap::builder::TypedValueParser<Value = BleuTokenizer> {
    use clap::builder::TypedValueParser;
    clap::builder::PossibleValuesParser::new(BleuTokenizer::ALL.map(BleuTokenizer::name))
        .try_map(|name| name.parse::<BleuTokenizer>())
}

impl Score {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let mut metrics: Vec<Metric> = Vec::new();
        for metric in self.metrics.iter().filter_map(|name| Metric::parse(name, self.tokenize)) {
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
        let report = score::run(&Request { hypotheses: self.hyp, references: self.reference, metrics: metrics.clone() })?;
        ui.print(&report, &text(&report, &metrics))
    }
}

fn text(report: &Report, metrics: &[Metric]) -> String {
    let mut text = format!("{} segments\n", report.segments);
    for metric in metrics {
        let score = report.scores.get(metric.name()).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
        let signature = report.signatures.get(metric.name()).and_then(serde_json::Value::as_str).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<8}{score:>6.2}  {signature}", metric.title());
    }
    text
}
