//! Data sets: records of a file, templates, the tokenizer, and the token sequences that tasks work on.

pub mod sequence;

pub use sequence::{Example, Prompt, Target};
