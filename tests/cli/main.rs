//! The program as its users meet it: output, exit codes, interruption, bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
