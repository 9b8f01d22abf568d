//! A short identity of a model: do these scores, this scan, belong to those weights?

use super::folder::ModelFolder;
use super::safetensors::SafetensorsFile;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

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
            let mut windows = Windows { shard, file: File::open(&shard.path).ok(), buffer: Vec::new() };
            for tensor in &shard.header.tensors {
                let (start, length) = (tensor.range.start, tensor.range.len());
                if length <= WINDOWS * WINDOW {
                    part(windows.read(tensor.range.clone()));
                } else {
                    let last = length - WINDOW;
                    for window in 0..WINDOWS {
                        // Divided before multiplied: no overflow, whatever the tensor's size.
                        let from = last / (WINDOWS - 1) * window + (last % (WINDOWS - 1)) * window / (WINDOWS - 1);
                        part(windows.read(start + from..start + from + WINDOW));
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

/// Reads a few bytes here and there. Through the map each would make the system map its neighbourhood (64 KiB on Linux),
/// which adds up to the whole model in what counts as this process's memory.
struct Windows<'a> {
    shard: &'a SafetensorsFile,
    file: Option<File>,
    buffer: Vec<u8>,
}

impl Windows<'_> {
    fn read(&mut self, range: Range<usize>) -> &[u8] {
        self.buffer.resize(range.len(), 0);
        let read = self.file.as_mut().is_some_and(|file| {
            file.seek(SeekFrom::Start(range.start as u64)).is_ok() && file.read_exact(&mut self.buffer).is_ok()
        });
        // The map holds the same bytes, for a file that was renamed or removed since it was opened.
        if read { &self.buffer } else { &self.shard.bytes()[range] }
    }
}
