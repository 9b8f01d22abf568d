//! Ctrl-C and SIGTERM, tried on a command that waits for its input: `score` of a pipe that nobody has written to yet.
#![cfg(unix)]

use crate::util::{Dir, Run, Running};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};

/// Starts `run` in `dir` and returns once it is inside the work: it has opened the pipe to read from.
fn waiting_for_input(dir: &Dir, run: Run) -> (Running, File) {
    dir.write("ref.txt", "a line\n");
    dir.program("mkfifo").arg("hyp.txt").run().code(0);
    let running = run.start();
    let pipe = OpenOptions::new().write(true).open(dir.path().join("hyp.txt")).unwrap();
    (running, pipe)
}

fn score(dir: &Dir) -> Run {
    dir.prunectl().args(["score", "--hyp", "hyp.txt", "--ref", "ref.txt"])
}

/// The first line on standard error; the rest of the stream is dropped.
fn first_note(running: &mut Running) -> String {
    let mut line = String::new();
    BufReader::new(running.child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    line
}

#[test]
fn the_first_interruption_is_acknowledged_and_the_second_ends_at_once() {
    for signal in ["INT", "TERM"] {
        let dir = Dir::new();
        let (mut running, _pipe) = waiting_for_input(&dir, score(&dir));
        running.signal(signal);
        assert_eq!(first_note(&mut running), "note: stopping at the next safe point; Ctrl-C again ends at once\n");
        running.signal(signal);
        running.wait().code(130).no_out();
    }
}

#[test]
fn work_without_a_safe_point_is_finished_after_one_interruption() {
    let dir = Dir::new();
    let (mut running, mut pipe) = waiting_for_input(&dir, score(&dir));
    running.signal("INT");
    first_note(&mut running);
    pipe.write_all(b"a line\n").unwrap();
    drop(pipe);
    running.wait().code(0).out("100");
}

#[test]
fn a_signal_that_the_parent_ignores_stays_ignored() {
    let dir = Dir::new();
    let line = format!("trap '' INT; exec {} score --hyp hyp.txt --ref ref.txt", env!("CARGO_BIN_EXE_prunectl"));
    let (running, mut pipe) = waiting_for_input(&dir, dir.program("sh").args(["-c", &line]));
    running.signal("INT");
    running.signal("INT");
    pipe.write_all(b"a line\n").unwrap();
    drop(pipe);
    running.wait().code(0).out("100").no_err();
}
