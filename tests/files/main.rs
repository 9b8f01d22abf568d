//! File formats: safetensors, config.json, shard indices, GGUF, JSONL; valid, broken and hostile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod adapter;
mod chat_template;
mod config;
mod folder;
mod gguf;
mod gguf_hostile;
mod nf4;
mod records;
mod safetensors;
mod shard_index;
mod support;
mod tokens;
