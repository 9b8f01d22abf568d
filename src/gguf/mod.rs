//! GGUF files (what llama.cpp ships) to Hugging Face folders.
//!
//! [`reader`] parses the file over a memory map and checks every count, length and offset against its size before
//! anything is allocated; [`dequantise`] turns blocks into f32; [`decoder`] names the tensors and writes config.json;
//! [`tokenizer`] writes a tokenizer.json that encodes as llama.cpp does; [`shards`] streams the weights. What the
//! command does with them is the business of [`crate::tasks::import`].

pub mod decoder;
pub mod dequantise;
pub mod metadata;
pub mod reader;
pub mod rope_factors;
pub mod sentencepiece;
pub mod shards;
pub mod tensor_type;
pub mod tokenizer;

pub use reader::{Gguf, TensorInfo};
pub use tensor_type::TensorType;
