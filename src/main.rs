//! Parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    prunectl::cli::main(std::env::args_os())
}
