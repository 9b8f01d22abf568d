//! What holds for every command: help, usage errors, colour, streams, panics.

use crate::util::Dir;

const COMMANDS: [&str; 11] =
    ["import", "inspect", "scan", "prune", "eval", "translate", "score", "bench", "doctor", "completions", "man"];

#[test]
fn version_is_one_line() {
    let ran = Dir::new().prunectl().arg("--version").run().code(0).no_err();
    assert_eq!(ran.stdout, concat!("prunectl ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn help_of_every_command_ends_with_examples_that_use_it() {
    let dir = Dir::new();
    for command in COMMANDS {
        let ran = dir.prunectl().args([command, "--help"]).run().code(0).no_err().out("Usage: prunectl").out("--device");
        let (_, examples) = ran.stdout.split_once("\nExamples:\n").unwrap_or_else(|| panic!("no examples:\n{}", ran.stdout));
        for line in examples.lines() {
            assert!(line.starts_with(&format!("  prunectl {command}")), "{command}: last comes something else: {line:?}");
        }
    }
}

#[test]
fn help_lists_every_command() {
    let ran = Dir::new().prunectl().arg("--help").run().code(0).no_err().out("Examples:");
    for command in COMMANDS {
        assert!(ran.stdout.contains(&format!("\n  {command} ")), "{command} is missing:\n{}", ran.stdout);
    }
}

#[test]
fn wrong_usage_is_told_on_standard_error_with_code_2() {
    let dir = Dir::new();
    dir.prunectl().run().code(2).no_out().err("Usage: prunectl");
    dir.prunectl().arg("scna").run().code(2).no_out().err("error: unrecognized subcommand 'scna'").err("scan");
    dir.prunectl().args(["doctor", "--bogus"]).run().code(2).no_out().err("error: unexpected argument '--bogus'");
    dir.prunectl().args(["doctor", "--threads", "0"]).run().code(2).no_out().err("'--threads <N>'").err("at least 1");
    dir.prunectl().args(["doctor", "--threads", "two"]).run().code(2).no_out().err("expected a whole number");
    dir.prunectl().args(["doctor", "--device", "tpu"]).run().code(2).no_out().err("expected auto, cpu, cuda or cuda:N");
    dir.prunectl().args(["doctor", "--color", "blue"]).run().code(2).no_out().err("always");
}

#[test]
fn wrong_usage_leaves_standard_output_empty_with_json_too() {
    Dir::new().prunectl().args(["--json", "doctor", "--bogus"]).run().code(2).no_out();
}

#[test]
fn colour_is_off_in_a_pipe_and_on_when_asked_for() {
    let dir = Dir::new();
    let ran = dir.prunectl().args(["doctor", "--bogus"]).run().code(2);
    assert!(!ran.stderr.contains('\x1b'), "{:?}", ran.stderr);
    let ran = dir.prunectl().args(["--color=always", "doctor", "--bogus"]).run().code(2);
    assert!(ran.stderr.contains('\x1b'), "{:?}", ran.stderr);
    let ran = dir.prunectl().args(["doctor", "--help", "--color", "always"]).run().code(0);
    assert!(ran.stdout.contains("\x1b[1m\x1b[4mExamples:\x1b[0m"), "{:?}", ran.stdout);
    // --color is the more particular wish.
    let ran = dir.prunectl().env("NO_COLOR", "1").args(["--color=always", "doctor", "--bogus"]).run().code(2);
    assert!(ran.stderr.contains('\x1b'), "{:?}", ran.stderr);
}

/// `script` gives the program a terminal.
#[cfg(target_os = "linux")]
#[test]
fn colour_is_on_at_a_terminal_unless_refused() {
    let dir = Dir::new();
    let on_terminal = |line: &str| {
        let command = format!("{} {line}", env!("CARGO_BIN_EXE_prunectl"));
        dir.program("script").args(["-qec", &command, "/dev/null"])
    };
    assert!(on_terminal("doctor --bogus").run().code(2).stdout.contains("\x1b["));
    assert!(!on_terminal("doctor --bogus").env("NO_COLOR", "1").run().code(2).stdout.contains("\x1b["));
    assert!(!on_terminal("--color never doctor --bogus").run().code(2).stdout.contains("\x1b["));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let dir = Dir::new();
    for args in [["completions", "zsh"], ["scan", "--help"]] {
        let mut running = dir.prunectl().args(args).start();
        drop(running.child.stdout.take());
        running.wait().code(0).no_err();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_a_failure() {
    let dir = Dir::new();
    let line = format!("{} completions bash > /dev/full", env!("CARGO_BIN_EXE_prunectl"));
    dir.program("sh")
        .args(["-c", &line])
        .run()
        .code(1)
        .err("error: cannot write standard output: No space left on device")
        .err("help:");
}
