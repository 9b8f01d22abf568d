//! Whole models against what transformers computed (tests/fixtures).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
