//! The command line: clap structs, their conversion to requests of `tasks`, and reports as text or JSON.
//! One file a command; `print` is the only place that writes to standard output.

mod adapter_args;
mod bench;
mod compute;
pub mod data_args;
mod doctor;
mod eval;
mod examples;
mod generate_args;
mod import;
mod inspect;
pub mod layers;
mod merge;
mod meter;
mod prune;
mod quantize;
mod reporter;
mod scan;
mod score;
mod shell;
mod signals;
mod style;
mod teach;
mod train;
mod train_args;
mod translate;
pub(crate) mod ui;

use crate::backend::DeviceRequest;
use crate::error::Result;
use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::process::ExitCode;

/// Make a language model shallower and keep it good.
#[derive(Debug, Parser)]
#[command(name = "prunectl", version, arg_required_else_help = true, propagate_version = true, after_help = examples::all())]
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
    pub(crate) device: DeviceRequest,
    /// Threads of the CPU backend (default: all)
    #[arg(long, global = true, value_name = "N", value_parser = at_least_one)]
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
    #[command(after_help = examples::import())]
    Import(import::Import),
    #[command(after_help = examples::inspect())]
    Inspect(inspect::Inspect),
    #[command(after_help = examples::scan())]
    Scan(scan::Scan),
    #[command(after_help = examples::prune())]
    Prune(prune::Prune),
    #[command(after_help = examples::eval())]
    Eval(eval::Eval),
    #[command(after_help = examples::translate())]
    Translate(translate::Translate),
    #[command(after_help = examples::merge())]
    Merge(merge::Merge),
    #[command(after_help = examples::quantize())]
    Quantize(quantize::Quantize),
    #[command(after_help = examples::score())]
    Score(score::Score),
    #[command(name = "train-qlora", after_help = examples::train())]
    Train(Box<train::Train>),
    #[command(after_help = examples::teach())]
    Teach(teach::Teach),
    #[command(after_help = examples::bench())]
    Bench(bench::Bench),
    #[command(after_help = examples::doctor())]
    Doctor(doctor::Doctor),
    #[command(after_help = examples::completions())]
    Completions(shell::Completions),
    #[command(after_help = examples::man())]
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
            Self::Merge(c) => c.run(ui),
            Self::Quantize(c) => c.run(ui),
            Self::Score(c) => c.run(ui),
            Self::Train(c) => c.run(ui),
            Self::Teach(c) => c.run(ui),
            Self::Bench(c) => c.run(ui),
            Self::Doctor(c) => c.run(ui),
            Self::Completions(c) => c.run(ui),
            Self::Man(c) => c.run(ui),
        }
    }
}

/// `--threads`: 0 means nothing.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1 is needed".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("expected a whole number".into()),
    }
}

/// What `--color` asks for, before anything is parsed: usage errors and help obey it too.
fn color_of(args: &[OsString]) -> ColorChoice {
    let mut asked = ColorChoice::Auto;
    let mut args = args.iter().filter_map(|a| a.to_str()).take_while(|&a| a != "--");
    while let Some(arg) = args.next() {
        let value = if arg == "--color" { args.next() } else { arg.strip_prefix("--color=") };
        asked = match value {
            Some("always") => ColorChoice::Always,
            Some("never") => ColorChoice::Never,
            Some("auto") => ColorChoice::Auto,
            _ => asked,
        };
    }
    asked
}

/// Parses `args` (the program's name first), runs the command, reports an error, and gives the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    ui::report_panics();
    let args: Vec<OsString> = args.into_iter().collect();
    let parsed = Cli::command().color(color_of(&args)).try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with code 0, usage errors to standard error with code 2.
            // A reader that left before the end of the help is no failure.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    if let Some(threads) = cli.global.threads {
        // Fails only where a pool exists already, as in the caller of a second `main` in one process.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let ui = ui::Ui::new(&cli.global);
    match cli.command.run(&ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault_with_any_command() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_wish_for_colour_is_seen_before_anything_is_parsed() {
        let of = |args: &[&str]| color_of(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of(&["prunectl", "scan", "--color", "never", "--bogus"]), ColorChoice::Never);
        assert_eq!(of(&["prunectl", "--color=always"]), ColorChoice::Always);
        assert_eq!(of(&["prunectl", "--color"]), ColorChoice::Auto);
        assert_eq!(of(&["prunectl", "--color", "blue"]), ColorChoice::Auto);
        assert_eq!(of(&["prunectl", "--", "--color=always"]), ColorChoice::Auto);
    }
}
