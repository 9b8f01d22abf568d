//! prunectl finds the layers of a language model that matter least, removes them, and measures what that cost.
//!
//! Data flows one way: `cli` -> [`tasks`] -> [`model`] -> [`ops`] -> [`backend`] -> kernels.

pub mod backend;
pub mod cli;
pub mod data;
pub mod error;
pub mod gguf;
pub mod io;
pub mod journal;
pub mod machine;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod progress;
pub mod quant;
pub mod random;
pub mod report;
pub mod tasks;
pub mod tensor;

pub use error::{Error, Result};

/// The README's example, compiled with the doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
