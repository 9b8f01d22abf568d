//! The command line: clap structs, their conversion to requests of `tasks`, and reports as text or JSON.
//! One file a command; `print` is the only place that writes to standard output.

mod bench;
mod doctor;
mod eval;
mod import;
mod inspect;
mod prune;
mod scan;
mod score;
mod shell;
mod translate;
pub(crate) mod ui;

use crate::error::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::process::ExitCode;

/// Make a language model shallower and keep it good.
#[derive(Debug, Parser)]
#[command(name = "prunectl", version, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// When to colour what is written to a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Where to compute: auto (a usable GPU, else the CPU), cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub(crate) device: String,
    /// Threads of the CPU backend (default: all)
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// One JSON document on standard output and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress and no notes
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// More detail on standard error
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colour: auto, always or never
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub(crate) color: Color,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::Import),
    Inspect(inspect::Inspect),
    Scan(scan::Scan),
    Prune(prune::Prune),
    Eval(eval::Eval),
    Translate(translate::Translate),
    Score(score::Score),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
    Completions(shell::Completions),
    Man(shell::Man),
}

impl Command {
    fn run(self, ui: &ui::Ui) -> Result<()> {
        match self {
            Self::Import(c) => c.run(ui),
            Self::Inspect(c) => c.run(ui),
            Self::Scan(c) => c.run(ui),
            Self::Prune(c) => c.run(ui),
            Self::Eval(c) => c.run(ui),
            Self::Translate(c) => c.run(ui),
            Self::Score(c) => c.run(ui),
            Self::Bench(c) => c.run(ui),
            Self::Doctor(c) => c.run(ui),
            Self::Completions(c) => c.run(ui),
            Self::Man(c) => c.run(ui),
        }
    }
}

/// Parses `args` (the program's name first), runs the command, reports an error, and gives the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with code 0, usage errors to standard error with code 2.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let ui = ui::Ui::new(&cli.global);
    match cli.command.run(&ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
