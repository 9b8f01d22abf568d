//! GGUF files that are cut, changed or lie: each ends in an error that names the place, soon, and without a panic.

use crate::support::{Random, fixture};
use prunectl::Error;
use prunectl::gguf::Gguf;
use prunectl::progress::Silent;
use prunectl::tasks::import::{Request, run};
use prunectl::tensor::{Dtype, SharedBytes};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn parse(bytes: Vec<u8>) -> Result<Gguf, Error> {
    let length = bytes.len();
    Gguf::parse(Path::new("x.gguf"), SharedBytes::new(Arc::new(bytes), 0..length).unwrap())
}

#[track_caller]
fn refused(bytes: Vec<u8>, message: &str) {
    let error = parse(bytes).expect_err("a hostile file was accepted").to_string();
    assert!(error.contains(message), "expected {message:?} in {error:?}");
    assert!(error.starts_with("x.gguf: "), "{error:?} does not name the file");
}

/// Writes what it is told, true or not.
struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        Self { bytes }
    }

    fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend(bytes.as_ref());
        self
    }

    fn u32(self, n: u32) -> Self {
        self.raw(n.to_le_bytes())
    }

    fn u64(self, n: u64) -> Self {
        self.raw(n.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text)
    }

    fn key(self, name: &str, kind: u32) -> Self {
        self.text(name).u32(kind)
    }

    /// A tensor record with extents innermost first.
    fn tensor(self, name: &str, extents: &[u64], kind: u32, offset: u64) -> Self {
        let dimensions = u32::try_from(extents.len()).unwrap();
        extents.iter().fold(self.text(name).u32(dimensions), |b, n| b.u64(*n)).u32(kind).u64(offset)
    }

    /// Pads to the data section and adds `length` bytes of it.
    fn data(mut self, length: usize) -> Vec<u8> {
        self.bytes.resize(self.bytes.len().next_multiple_of(32) + length, 0);
        self.bytes
    }
}

#[test]
fn the_header_is_checked() {
    refused(b"GGU".to_vec(), "the header");
    refused(b"GGML....".to_vec(), "not a GGUF file");
    refused(b"GGUF\x01\0\0\0".to_vec(), "GGUF version 1");
    refused(b"GGUF\0\0\0\x03".to_vec(), "big-endian");
    refused(b"GGUF\x03\0\0\0".to_vec(), "the number of tensors");
    refused(Builder::new(u64::MAX, 0).data(0), "the number of tensors");
    refused(Builder::new(1 << 40, 0).data(0), "the number of tensors");
    refused(Builder::new(0, u64::MAX).data(0), "the number of keys");
    refused(Builder::new(0, 1 << 61).data(64), "the number of keys");
}

#[test]
fn keys_are_checked() {
    let one = || Builder::new(0, 1);
    refused(one().u64(u64::MAX).data(32), "key number 0");
    refused(one().u64(1 << 33).data(32), "key number 0");
    refused(one().key("", 4).u32(1).data(0), "key number 0: its name is empty");
    refused(one().key("a\nb", 4).u32(1).data(0), "control characters");
    refused(one().u64(2).raw([0xff, 0xfe]).u32(4).u32(1).data(0), "not valid UTF-8");
    refused(one().key("k", 13).data(32), "key k: unknown value type 13");
    refused(one().key("k", 7).raw([2]).data(32), "key k: a boolean is 0 or 1, found 2");
    refused(one().key("k", 8).u64(1 << 50).data(32), "key k");
    refused(one().key("k", 8).u64(1).raw([0xc0]).data(32), "key k: not valid UTF-8");
    refused(one().key("k", 9).u32(4).u64(u64::MAX).data(32), "key k");
    refused(one().key("k", 9).u32(10).u64(1 << 62).data(32), "key k");
    refused(one().key("k", 9).u32(8).u64(1 << 60).data(32), "key k");
    refused(one().key("k", 9).u32(8).u64(2).text("a").u64(1 << 20).data(32), "key k");
    refused(one().key("k", 9).u32(9).u64(1).data(32), "an array of value type 9 is not supported");
    refused(Builder::new(0, 2).key("k", 0).raw([1]).key("k", 0).raw([1]).data(32), "key k: appears twice");
    for wrong in [0, 3, 48, 1 << 30] {
        refused(one().key("general.alignment", 4).u32(wrong).data(32), "key general.alignment: must be a power of two");
    }
    refused(one().key("general.alignment", 8).text("x").data(32), "key general.alignment");
}

#[test]
fn tensors_are_checked() {
    let one = || Builder::new(1, 0);
    let tensor = |extents: &[u64], kind, offset| one().tensor("t", extents, kind, offset).data(4096);
    assert!(parse(tensor(&[32, 2], 2, 64)).is_ok(), "the well-formed one");
    refused(one().u64(1 << 40).data(64), "tensor number 0");
    refused(one().tensor("", &[32], 0, 0).data(4096), "tensor number 0");
    refused(one().text("t").u32(0).u64(1).u64(1).u64(1).data(64), "tensor t: 0 dimensions");
    refused(one().text("t").u32(u32::MAX).data(64), "dimensions; 1 to 4 are possible");
    refused(tensor(&[1, 1, 1, 1, 1], 0, 0), "5 dimensions");
    refused(tensor(&[0, 4], 0, 0), "tensor t: shape [4, 0] has no elements");
    refused(tensor(&[1 << 33, 1 << 33], 0, 0), "is larger than memory can be");
    refused(tensor(&[u64::MAX], 0, 0), "reaches beyond the end of the file");
    refused(tensor(&[u64::MAX - 31], 8, 0), "reaches beyond the end of the file");
    refused(tensor(&[2048], 0, 0), "tensor t: F32 [2048] at offset 0 reaches beyond the end of the file");
    refused(tensor(&[32], 0, 4096), "reaches beyond the end of the file");
    refused(tensor(&[32], 0, u64::MAX - 31), "reaches beyond the end of the file");
    refused(tensor(&[32], 0, 8), "offset 8 is not a multiple of the alignment 32");
    refused(tensor(&[33], 2, 0), "rows of 33 elements are not whole blocks of 32 (Q4_0)");
    refused(tensor(&[128, 2], 14, 0), "rows of 128 elements are not whole blocks of 256 (Q6_K)");
    refused(tensor(&[32], 17, 0), "tensor t: type IQ2_XS is not supported; these are: F32, F16, BF16");
    refused(tensor(&[32], 4, 0), "tensor t: type number 4 is not supported");
    let two = |name: &str, offset| Builder::new(2, 0).tensor("a", &[32], 0, 0).tensor(name, &[32], 0, offset).data(4096);
    refused(two("a", 128), "tensor a: appears twice");
    refused(two("b", 96), "tensor b: overlaps tensor a");
    assert!(parse(two("b", 128)).is_ok());
}

/// A fixture with the bytes of a key's value replaced.
fn edited(name: &str, key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(fixture("gguf").join(format!("{name}.gguf"))).unwrap();
    let mut record = (key.len() as u64).to_le_bytes().to_vec();
    record.extend(key.as_bytes());
    let at = bytes.windows(record.len()).position(|w| w == record).unwrap_or_else(|| panic!("{name} has no {key}"));
    // After the key comes the type of the value.
    let at = at + record.len() + 4;
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

/// Imports `bytes`; the message of the error, with nothing left where the folder would have been.
fn import(bytes: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.gguf");
    std::fs::write(&file, bytes).unwrap();
    let request = Request { file, out: folder.path().join("out"), force: false, dtype: Dtype::Bf16 };
    let result = run(&request, &Silent).map(drop).map_err(|e| e.to_string());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1 + usize::from(result.is_ok()), "{result:?} left {left:?}");
    result
}

#[test]
fn options_that_do_not_fit_are_named() {
    let cases: [(&str, &str, &[u8], &str); 14] = [
        ("llama3", "llama.block_count", &u32::MAX.to_le_bytes(), "key llama.block_count: 4294967295 layers"),
        ("llama3", "llama.block_count", &3_u32.to_le_bytes(), "tensor blk.2.attn_norm.weight: missing"),
        ("llama3", "llama.block_count", &1_u32.to_le_bytes(), "tensor blk.1."),
        ("llama3", "llama.block_count", &0_u32.to_le_bytes(), "key llama.block_count: must not be 0"),
        ("llama-k-quants", "llama.embedding_length", &512_u32.to_le_bytes(), "tensor token_embd.weight: has shape"),
        ("llama3", "llama.attention.head_count", &3_u32.to_le_bytes(), "key llama.attention.head_count_kv: 3 heads"),
        ("llama3", "llama.attention.head_count", &0_u32.to_le_bytes(), "key llama.attention.head_count: must not be 0"),
        ("llama3", "llama.attention.head_count_kv", &0_u32.to_le_bytes(), "key llama.attention.head_count_kv"),
        ("llama3", "llama.rope.dimension_count", &4_u32.to_le_bytes(), "key llama.rope.dimension_count: is 4"),
        ("llama3", "llama.rope.freq_base", &1e4_f32.to_le_bytes(), "tensor rope_freqs.weight: no parameters"),
        ("llama3", "llama.rope.freq_base", &f32::NAN.to_le_bytes(), "key llama.rope.freq_base: NaN"),
        ("qwen2", "tokenizer.ggml.bos_token_id", &9999_u32.to_le_bytes(), "key tokenizer.ggml.bos_token_id: 9999 is beyond"),
        ("command-r", "command-r.attention.layer_norm_epsilon", &0.0_f32.to_le_bytes(), "0 is not positive"),
        ("llama-sentencepiece", "llama.rope.scaling.factor", &(-2.0_f32).to_le_bytes(), "-2 is not positive"),
    ];
    for (name, key, value, expected) in cases {
        let error = import(&edited(name, key, value)).expect_err(expected);
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
}

#[test]
fn names_that_are_not_known_are_refused() {
    // Same length, so that the file stays well-formed.
    let swap = |name: &str, from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = std::fs::read(fixture("gguf").join(format!("{name}.gguf"))).unwrap();
        let places: Vec<_> = (0..bytes.len() - from.len()).filter(|at| &bytes[*at..at + from.len()] == from.as_bytes()).collect();
        assert!(!places.is_empty(), "{name} has no {from}");
        for at in places {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
        import(&bytes).expect_err(to)
    };
    for (name, from, to, expected) in [
        ("llama3", "llama-bpe", "llama-xyz", "key tokenizer.ggml.pre: llama-xyz is not supported"),
        ("llama3", "gpt2", "bert", "key tokenizer.ggml.model: bert is not supported"),
        ("qwen2", "qwen2", "qwen9", "key general.architecture: qwen9 is not supported"),
        ("llama-sentencepiece", "linear", "dynami", "key llama.rope.scaling.type: dynami is not supported"),
        ("llama3", "llama.vocab_size", "llama.vocab_sise", "key llama.vocab_sise: this option is not supported"),
        ("llama3", "blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", "tensor blk.1.ffn_up.weight: missing"),
        ("qwen2", "tokenizer.ggml.merges", "tokenizer.ggml.merged", "key tokenizer.ggml.merges: missing"),
        ("qwen2", "<|bos|>", "<|end|>", "are the same text"),
    ] {
        let error = swap(name, from, to);
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let path = fixture("gguf").join("command-r.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = gguf.tensors()["output_norm.weight"].range.start + 4 * 5;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(import(&bytes).unwrap_err().contains("tensor output_norm.weight: row 0, column 5 is NaN"));
    bytes[at..at + 4].copy_from_slice(&3.3e38_f32.to_le_bytes());
    assert!(import(&bytes).is_ok(), "bf16 reaches as far as f32");
    bytes[at..at + 4].copy_from_slice(&f32::MAX.to_le_bytes());
    assert!(import(&bytes).unwrap_err().contains("is too large for bf16"), "the largest f32 rounds up to infinity");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = std::fs::read(fixture("gguf").join("llama-k-quants.gguf")).unwrap();
    assert!(import(&whole).is_ok());
    // Each place in the part with structure, then steps through the data.
    for length in (1..2500).chain((2500..whole.len()).step_by(997)) {
        assert!(parse(whole[..length].to_vec()).is_err(), "cut to {length} bytes it was accepted");
    }
}

/// Changes a few bytes, lengths or counts of a valid file, as `seed` says.
fn mutated(original: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = original.to_vec();
    // Half of the changes hit the first bytes, where counts and keys are.
    let place = |random: &mut Random, length: usize| {
        let end = if random.below(2) == 0 { length.min(1500) } else { length };
        random.below(end)
    };
    for _ in 0..=random.below(4) {
        let at = place(&mut random, bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at.max(1)),
            3 => {
                let lie = [0, 1, 255, 65536, u64::from(u32::MAX), 1 << 40, 1 << 62, u64::MAX][random.below(8)];
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&lie.to_le_bytes()[..end - at]);
            }
            4 => {
                let from = place(&mut random, bytes.len());
                let length = random.below(64).min(bytes.len() - at).min(bytes.len() - from);
                bytes.copy_within(from..from + length, at);
            }
            _ => {
                let length = random.below(16).min(bytes.len() - at);
                if bytes.len() > length {
                    bytes.drain(at..at + length);
                }
            }
        }
    }
    bytes
}

#[test]
fn changed_files_never_panic_and_end_soon() {
    let names = ["llama-k-quants", "llama3", "qwen2", "command-r-qk-norm", "llama-sentencepiece"];
    let originals = names.map(|name| std::fs::read(fixture("gguf").join(format!("{name}.gguf"))).unwrap());
    let rounds = std::env::var("PRUNECTL_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(400_u64);
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..rounds {
        let which = usize::try_from(seed).unwrap() % names.len();
        let bytes = mutated(&originals[which], seed);
        let started = Instant::now();
        let result = std::panic::catch_unwind(|| import(&bytes));
        let Ok(result) = result else { panic!("seed {seed} ({}) panicked", names[which]) };
        assert!(started.elapsed() < Duration::from_secs(20), "seed {seed} ({}) took {:?}", names[which], started.elapsed());
        match result {
            Ok(()) => accepted += 1,
            Err(message) => {
                refused += 1;
                assert!(message.contains("x.gguf"), "seed {seed}: {message:?} does not name the file");
            }
        }
    }
    // Some changes only touch weights; most do not. Both must occur, or the mutator has gone blind.
    assert!(accepted > rounds / 50 && refused > rounds / 4, "{accepted} accepted, {refused} refused");
}
