//! `prunectl completions` and `prunectl man`.

use crate::util::Dir;

#[test]
fn completions_of_every_shell_name_every_command() {
    let dir = Dir::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = dir.prunectl().args(["completions", shell]).run().code(0).no_err();
        for word in ["import", "scan", "translate", "doctor", "device"] {
            assert!(ran.stdout.contains(word), "{shell} lacks {word}");
        }
    }
    dir.prunectl().args(["completions", "tcsh"]).run().code(2).no_out().err("bash");
}

#[test]
fn bash_accepts_its_completions() {
    let dir = Dir::new();
    let line = format!("{} completions bash > c && bash -n c && . ./c && complete -p prunectl", env!("CARGO_BIN_EXE_prunectl"));
    dir.program("bash").args(["-c", &line]).run().code(0).no_err().out("prunectl");
}

#[test]
fn completions_with_json_are_one_document() {
    let ran = Dir::new().prunectl().args(["completions", "fish", "--json"]).run().code(0).no_err();
    assert_eq!(ran.json()["shell"], "fish");
    assert!(ran.json()["script"].as_str().unwrap().contains("complete -c prunectl"));
}

#[test]
fn man_writes_a_page_a_command() {
    let dir = Dir::new();
    let ran = dir.prunectl().args(["man", "share/man1"]).run().code(0).no_err();
    let mut pages: Vec<_> = std::fs::read_dir(dir.path().join("share/man1")).unwrap().map(|e| e.unwrap().file_name()).collect();
    pages.sort();
    let help = dir.prunectl().arg("--help").run().code(0).stdout;
    let commands = help.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1).take_while(|l| !l.is_empty());
    // Each command begins a line; what its text is wrapped to stands further in. `help` has no page, the program has one.
    let count = commands.filter(|l| l.starts_with("  ") && !l.starts_with("   ")).count();
    assert!(count > 12, "{help}");
    assert_eq!(pages.len(), count, "one for the program and one for each of its commands, nothing else: {pages:?}");
    assert_eq!(ran.stdout.lines().count(), count);
    let scan = dir.read("share/man1/prunectl-scan.1");
    for part in [".TH prunectl-scan 1", ".SH NAME", ".SH OPTIONS", "\\-\\-device", "Examples:"] {
        assert!(scan.contains(part), "{part} is missing:\n{scan}");
    }
    assert!(!scan.contains('\x1b'), "no escape sequences:\n{scan}");
}

#[test]
fn man_over_a_file_fails_and_keeps_it() {
    let dir = Dir::new();
    dir.write("taken", "mine");
    dir.prunectl().args(["man", "taken"]).run().code(1).no_out().err("error: cannot create taken:");
    assert_eq!(dir.read("taken"), "mine");
}
