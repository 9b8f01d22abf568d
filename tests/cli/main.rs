//! The program as its users meet it: output, exit codes, interruption, bad input. One file a command; what is common to
//! all commands is in `general`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod doctor;
mod general;
mod import;
mod score;
mod shell;
mod signals;
mod util;
