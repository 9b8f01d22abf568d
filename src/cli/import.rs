//! `prunectl import`.

use super::ui::Ui;
use crate::error::Result;
use crate::tasks::import::{Report, Request, run};
use crate::tensor::Dtype;
use clap::{Args, ValueEnum};
use std::fmt::Write;
use std::path::PathBuf;

/// Turn a GGUF file into a Hugging Face folder, tokenizer included
///
/// Reads the architectures llama, qwen2 and command-r, and tensors of the types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0,
/// Q5_1, Q4_K, Q5_K and Q6_K. Anything else is refused by name.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The GGUF file
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The folder to make
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Element type of the weights that are written
    #[arg(long, value_name = "DTYPE", default_value = "bf16")]
    dtype: Stored,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stored {
    Bf16,
    F16,
    F32,
}

impl Import {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let dtype = match self.dtype {
            Stored::Bf16 => Dtype::Bf16,
            Stored::F16 => Dtype::F16,
            Stored::F32 => Dtype::F32,
        };
        let report = run(&Request { file: self.file, out: self.out, force: self.force, dtype }, ui.progress())?;
        ui.print(&report, &text(&report))
    }
}

fn text(report: &Report) -> String {
    let mut types: Vec<_> = report.source_types.iter().collect();
    types.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let types: Vec<_> = types.into_iter().map(|(kind, count)| format!("{kind} x {count}")).collect();
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}: {}, {} layers", report.out.display(), report.architecture, report.num_hidden_layers);
    let _ = writeln!(
        out,
        "  weights    {} tensors, {} parameters, {} bytes of {}",
        report.tensors, report.parameters, report.bytes, report.dtype
    );
    let _ = writeln!(out, "  from       {}", types.join(", "));
    let _ = writeln!(
        out,
        "  tokenizer  {}, {} tokens{}",
        report.tokenizer,
        report.vocab_size,
        if report.chat_template { ", with a chat template" } else { "" }
    );
    let _ = writeln!(out, "  took       {:.1} s", report.seconds);
    out
}
