//! Whole models against what transformers computed (tests/fixtures).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(clippy::cast_precision_loss, reason = "counts in tests are small")]

#[cfg(feature = "cuda")]
mod cuda;
mod fixture;
mod gradients;
#[cfg(feature = "cuda")]
mod gradients_cuda;
mod invariance;
mod lora;
mod nf4;
mod transformers;
