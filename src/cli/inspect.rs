//! `prunectl inspect`.

use super::ui::Ui;
use crate::error::{Error, Result};
use crate::tasks::inspect::{Report, inspect};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;

/// Show architecture, parameters, dtypes, tokenizer and what can be done with a model
///
/// A model that is not computed is shown as far as its files tell, with the reason. The exit code is 1 only for a folder
/// that is damaged.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Folder of the model
    model: PathBuf,
    /// Read every weight and name the first that is NaN or infinite
    #[arg(long)]
    check: bool,
}

impl Inspect {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let report = inspect(&self.model, self.check)?;
        ui.print(&report, &text(&report))?;
        match report.problems.iter().find(|problem| !problem.unsupported) {
            None => Ok(()),
            Some(problem) => {
                // The message names file and key already; its path alone would say them twice.
                let count = report.problems.iter().filter(|p| !p.unsupported).count();
                let error = Error::data(&self.model, "", format!("{count} of its files are damaged or do not fit together"));
                Err(match &problem.help {
                    Some(help) => error.with_help(help),
                    None => error,
                })
            }
        }
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(out, "{label:<14}{value}");
    };
    line("model", report.path.display().to_string());
    let unknown = || "unknown".to_owned();
    let class = report.architecture.clone().or_else(|| report.model_type.clone()).unwrap_or_else(unknown);
    line("architecture", if report.supported { class } else { format!("{class} (not usable, see below)") });
    if let Some(shape) = &report.shape {
        line(
            "shape",
            format!(
                "hidden {}, MLP {}, {} query and {} key-value heads of {}, vocabulary {}{}",
                shape.hidden_size,
                shape.intermediate_size,
                shape.num_attention_heads,
                shape.num_key_value_heads,
                shape.head_dim,
                grouped(shape.vocab_size as u64),
                if shape.tie_word_embeddings { ", head tied to the embedding" } else { "" }
            ),
        );
        line(
            "positions",
            format!("{}, rotary base {} ({})", grouped(shape.max_position_embeddings as u64), shape.rope_theta, shape.rope_type),
        );
    }
    if let Some(layers) = report.num_hidden_layers {
        line("layers", format!("{layers}{}", per_layer(&report.parameters_per_layer)));
    }
    if let Some(parameters) = report.parameters {
        let outside = report.parameters_outside_layers.unwrap_or_default();
        line("parameters", format!("{} ({} outside the layers)", grouped(parameters), grouped(outside)));
    }
    if let Some(bytes) = report.bytes {
        let dtypes: Vec<String> = report.dtypes.iter().map(|d| format!("{} in {} tensors", d.dtype, d.tensors)).collect();
        line("weights", format!("{} ({}): {}", size(bytes), grouped(bytes), dtypes.join(", ")));
        let files: Vec<&str> = report.weight_files.iter().map(|f| f.name.as_str()).collect();
        match files.as_slice() {
            [first, .., last] => line("files", format!("{} from {first} to {last}", files.len())),
            _ => line("files", files.join("")),
        }
    }
    let tokenizer = &report.tokenizer;
    line(
        "tokenizer",
        match (tokenizer.present, tokenizer.vocab_size) {
            (false, _) => "none (no tokenizer.json)".to_owned(),
            (true, None) => "not usable, see below".to_owned(),
            (true, Some(entries)) => {
                let ids: Vec<String> = tokenizer.eos_ids.iter().map(ToString::to_string).collect();
                format!(
                    "{} tokens, {} chat template, ends at {}",
                    grouped(entries as u64),
                    if tokenizer.chat_template { "a" } else { "no" },
                    if ids.is_empty() { "no known token".to_owned() } else { format!("token {}", ids.join(", ")) }
                )
            }
        },
    );
    if let Some(finite) = report.finite {
        line("values", if finite { "all finite" } else { "not all finite, see below" }.to_owned());
    }
    let removed = report.prunectl.as_ref().and_then(|p| p.get("removed")).and_then(|r| r.as_array());
    // Trained whole, a model says that nothing was removed.
    if let Some(removed) = removed.filter(|removed| !removed.is_empty()) {
        let removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
        let of = report.prunectl.as_ref().and_then(|p| p.pointer("/source/num_hidden_layers")).map(ToString::to_string);
        line("pruned", format!("without layers {} of {}", removed.join(", "), of.unwrap_or_else(unknown)));
    }
    if let Some(fingerprint) = &report.fingerprint {
        line("fingerprint", fingerprint.clone());
    }
    let able: Vec<&str> = report.commands.iter().filter(|c| c.possible).map(|c| c.command).collect();
    line("can", if able.is_empty() { "nothing but show it".to_owned() } else { able.join(", ") });
    for command in report.commands.iter().filter(|_| report.supported) {
        if let Some(note) = &command.note {
            line("", format!("{}: {note}", command.command));
        }
    }
    for problem in &report.problems {
        line(if problem.unsupported { "not computed" } else { "damaged" }, problem.message.clone());
    }
    out
}

/// ` of 3,540,096 parameters each`, or the range where they differ.
fn per_layer(parameters: &[u64]) -> String {
    match (parameters.iter().min(), parameters.iter().max()) {
        (Some(least), Some(most)) if least == most => format!(", {} parameters each", grouped(*most)),
        (Some(least), Some(most)) => format!(", {} to {} parameters each", grouped(*least), grouped(*most)),
        _ => String::new(),
    }
}

/// `3,540,096`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `256.6 MiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}
