//! Weights in four bits: NF4 (QLoRA, arXiv 2305.14314) as bitsandbytes stores it, bit for bit.
//!
//! A matrix is read row after row as one long run of numbers and cut into blocks of 64; a block is its largest magnitude
//! and 64 codes, each the nearest of 16 values in [-1, 1] to the number divided by that magnitude. Double quantisation
//! stores the magnitudes in 8 bits. The reference is bitsandbytes on the CPU.

pub mod checkpoint;
pub mod double;
pub mod nf4;
mod tensor;

pub use double::Nested;
pub use nf4::{BLOCK, CODEBOOK, Quantised};
pub use tensor::Nf4Tensor;
