//! Data sets: records of a file, templates, the tokenizer, and the token sequences that tasks work on.
//!
//! [`Dataset::open`] reads and checks the file; [`Dataset::examples`] and [`Dataset::prompts`] turn it into tokens.

pub mod chat_template;
pub mod dataset;
pub mod encode;
pub mod prompt_template;
pub mod python_json;
pub mod records;
pub mod sequence;
pub mod tokenizer;

pub use chat_template::ChatTemplate;
pub use dataset::{DataOptions, Dataset};
pub use encode::{Examples, Prompts};
pub use records::{Record, RecordKind};
pub use sequence::{Example, Prompt, Target};
pub use tokenizer::{Tokenizer, eos_ids};
