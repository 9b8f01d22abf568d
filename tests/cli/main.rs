//! The program as its users meet it: output, exit codes, interruption, bad input. One file a command; what is common to
//! all commands is in `general`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod bench;
#[cfg(feature = "cuda")]
mod cuda;
mod doctor;
mod eval;
mod general;
mod import;
mod inspect;
mod merge;
#[path = "../files/support.rs"]
#[allow(dead_code, reason = "shared with the tests of files, which use the rest")]
mod models;
mod prune;
mod quantize;
mod scan;
mod score;
mod shell;
mod signals;
mod train;
#[cfg(feature = "cuda")]
mod train_cuda;
mod translate;
mod util;
