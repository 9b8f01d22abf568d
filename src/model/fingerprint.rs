//! A short identity of a model: do these scores, this scan, belong to those weights?

use super::folder::ModelFolder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Windows sampled from a tensor, evenly spread from its first byte to its last, and bytes of each.
const WINDOWS: usize = 16;
const WINDOW: usize = 256;

impl ModelFolder {
    /// SHA-256, in hexadecimal, over config.json (its values, not its white space), the header of each weight file and
    /// at most 4 KiB of each tensor. It costs milliseconds, and changes with any training or merging, which touches
    /// whole tensors; a single weight changed by hand between the sampled windows it does not see. File names do not count.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(Value::Object(self.raw_config.clone()).to_string().as_bytes());
        for shard in &self.files().shards {
            part(&shard.bytes()[shard.header.range.clone()]);
            for tensor in &shard.header.tensors {
                let bytes = shard.tensor_bytes(tensor);
                if bytes.len() <= WINDOWS * WINDOW {
                    part(bytes);
                } else {
                    let last = bytes.len() - WINDOW;
                    for window in 0..WINDOWS {
                        // Divided before multiplied: no overflow, whatever the tensor's size.
                        let from = last / (WINDOWS - 1) * window + (last % (WINDOWS - 1)) * window / (WINDOWS - 1);
                        part(&bytes[from..from + WINDOW]);
                    }
                }
            }
        }
        hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}
