//! File formats: safetensors, config.json, shard indices, GGUF, JSONL; valid, broken and hostile.

mod folder;
mod support;
