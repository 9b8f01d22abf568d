//! Every op against independent references.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[cfg(feature = "cuda")]
mod cuda_rms_norm;
