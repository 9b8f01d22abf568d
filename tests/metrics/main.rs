//! chrF, chrF++ and BLEU against sacreBLEU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
