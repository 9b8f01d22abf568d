//! GGUF files against independent readers: values by the Python package `gguf`, token ids by llama.cpp.
//! `scripts/make-gguf-fixtures` made the files under tests/fixtures/gguf.

use crate::support::fixture;
use prunectl::gguf::dequantise::dequantise;
use prunectl::gguf::rope_factors::Llama3;
use prunectl::gguf::{Gguf, TensorType, decoder, shards};
use prunectl::model::ModelFolder;
use prunectl::progress::Silent;
use prunectl::tasks::import::{Report, Request, run};
use prunectl::tensor::Dtype;
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    fixture("gguf").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn import(name: &str, out: &Path) -> Report {
    let request = Request { file: file(&format!("{name}.gguf")), out: out.into(), force: false, dtype: Dtype::Bf16 };
    run(&request, &Silent).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn blocks_of_every_type_have_the_values_of_the_reference() {
    let bytes = std::fs::read(file("blocks.safetensors")).unwrap();
    let blocks = SafeTensors::deserialize(&bytes).unwrap();
    let quantised: Vec<_> = TensorType::ALL.into_iter().filter(|kind| kind.block_elements() > 1).collect();
    assert_eq!(quantised.len() * 2, blocks.len(), "a type without reference, or the other way round");
    for kind in quantised {
        let stored = blocks.tensor(&format!("{kind}.blocks")).unwrap();
        let expected = blocks.tensor(&format!("{kind}.values")).unwrap();
        let expected: Vec<f32> = expected.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(stored.data().len() / kind.block_bytes() * kind.block_elements(), expected.len(), "{kind}");
        let mut found = vec![f32::NAN; expected.len()];
        dequantise(kind, stored.data(), &mut found);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{kind}, element {i}: {found} instead of {expected}");
        }
    }
}

#[test]
fn plain_types_are_copied() {
    let values = [0.0_f32, -0.0, 1.5, -2.25, 0.000_061_035_156, 1024.0];
    let mut out = [f32::NAN; 6];
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    dequantise(TensorType::F32, &bytes, &mut out);
    assert_eq!(out.map(f32::to_bits), values.map(f32::to_bits));
    let bytes: Vec<u8> = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    dequantise(TensorType::F16, &bytes, &mut out);
    assert_eq!(out.map(f32::to_bits), values.map(f32::to_bits));
    let bytes: Vec<u8> = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    dequantise(TensorType::Bf16, &bytes, &mut out);
    assert_eq!(out.map(f32::to_bits), values.map(f32::to_bits));
}

/// Imports a file and holds tensors, config.json and token ids against its record.
fn held_against_its_record(name: &str, lines: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let report = import(name, &out);
    let record = json(&file(&format!("{name}.json")));

    let config = json(&out.join("config.json"));
    for (key, expected) in record["config"].as_object().unwrap() {
        assert_eq!(&config[key], expected, "{name}: {key} of config.json");
    }

    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let expected = record["tensors"].as_object().unwrap();
    assert_eq!(tensors.len(), expected.len(), "{name}: number of tensors");
    assert_eq!(report.tensors, expected.len());
    for (tensor, expected) in expected {
        let found = tensors.tensor(tensor).unwrap_or_else(|e| panic!("{name}: {tensor}: {e}"));
        assert_eq!(Value::from(found.shape()), expected["shape"], "{name}: {tensor}");
        assert_eq!(found.dtype(), safetensors::Dtype::BF16);
        let digest: String = Sha256::digest(found.data()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(expected["sha256"], digest, "{name}: {tensor} has other values than the reference");
    }

    let ids = record["ids"].as_array().unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    assert!(ids.is_empty() || ids.len() == lines.len(), "{name}: {} records of {} lines", ids.len(), lines.len());
    for (line, ids) in lines.iter().zip(ids) {
        let found = tokenizer.encode_fast(line.as_str(), true).unwrap();
        assert_eq!(&Value::from(found.get_ids()), ids, "{name}: {line:?}");
    }

    let opened = ModelFolder::open(&out).unwrap_or_else(|e| panic!("{name}: what was imported does not open: {e}"));
    assert_eq!(opened.config.num_hidden_layers, report.num_hidden_layers);
}

fn lines() -> Vec<String> {
    serde_json::from_value(json(&file("lines.json"))).unwrap()
}

#[test]
fn llama_with_k_quants() {
    let lines = ["the cat", "a1b2 th t h", "ath", "tZh tQhth", "<|bos|>the<|end|>"].map(str::to_owned);
    held_against_its_record("llama-k-quants", &lines);
}

#[test]
fn llama3_with_rope_factors_and_a_head_of_its_own() {
    held_against_its_record("llama3", &lines());
}

#[test]
fn qwen2_with_biases() {
    held_against_its_record("qwen2", &lines());
}

#[test]
fn command_r() {
    held_against_its_record("command-r", &lines());
    held_against_its_record("command-r-qk-norm", &[]);
}

#[test]
fn llama_with_sentencepiece_biases_and_linear_rope_scaling() {
    held_against_its_record("llama-sentencepiece", &lines());
}

#[test]
fn decoding_gives_the_text_back() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama3", "command-r", "qwen2", "llama-sentencepiece"] {
        let out = folder.path().join(name);
        import(name, &out);
        let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
        for line in lines().iter().filter(|line| !line.contains("<|") && !line.contains("<tool")) {
            let ids = tokenizer.encode_fast(line.as_str(), true).unwrap().get_ids().to_vec();
            assert_eq!(&tokenizer.decode(&ids, true).unwrap(), line, "{name}");
        }
    }
}

#[test]
fn shards_hold_every_tensor_once_and_the_index_says_where() {
    let gguf = Gguf::open(&file("llama3.gguf")).unwrap();
    let plan = decoder::plan(&gguf).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let split = folder.path().join("split");
    std::fs::create_dir(&whole).unwrap();
    std::fs::create_dir(&split).unwrap();
    let one = shards::write(&gguf, &plan.tensors, Dtype::F16, &whole, shards::SHARD_BYTES, &Silent).unwrap();
    // Smaller than the embedding, which must then have a shard to itself.
    let many = shards::write(&gguf, &plan.tensors, Dtype::F16, &split, 20_000, &Silent).unwrap();
    assert_eq!((one.shards, one.bytes, one.parameters), (1, many.bytes, many.parameters));
    assert!(many.shards > 2, "{}", many.shards);

    let index = json(&split.join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"], many.bytes);
    let bytes = std::fs::read(whole.join("model.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for number in 1..=many.shards {
        let name = format!("model-{number:05}-of-{:05}.safetensors", many.shards);
        let bytes = std::fs::read(split.join(&name)).unwrap();
        let shard = SafeTensors::deserialize(&bytes).unwrap();
        let size: usize = shard.iter().map(|(_, tensor)| tensor.data().len()).sum();
        assert!(shard.len() == 1 || size <= 20_000, "{name} has {size} bytes");
        for (tensor, view) in shard.iter() {
            assert_eq!(index["weight_map"][tensor], name);
            assert_eq!(view.data(), expected.tensor(tensor).unwrap().data(), "{tensor}");
            seen += 1;
        }
    }
    assert_eq!((seen, index["weight_map"].as_object().unwrap().len()), (expected.len(), expected.len()));
}

#[test]
fn f32_keeps_every_value() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let source = file("command-r.gguf");
    run(&Request { file: source.clone(), out: out.clone(), force: false, dtype: Dtype::F32 }, &Silent).unwrap();
    assert_eq!(json(&out.join("config.json"))["torch_dtype"], "float32");
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let written = SafeTensors::deserialize(&bytes).unwrap();
    // command-r has no rows to put back in order: values are those of the file's blocks.
    let gguf = Gguf::open(&source).unwrap();
    for tensor in &decoder::plan(&gguf).unwrap().tensors {
        let mut expected = vec![f32::NAN; tensor.info.shape.iter().product()];
        dequantise(tensor.info.kind, gguf.blocks(&tensor.info), &mut expected);
        let expected: Vec<u8> = expected.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(written.tensor(&tensor.name).unwrap().data(), expected, "{}", tensor.name);
    }
}

/// Factors as llama.cpp's converter computes them from config.json, in f64 and rounded once.
fn factors(theta: f64, dim: u32, factor: f64, low: f64, high: f64, original: f64) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * theta.powf(f64::from(2 * i) / f64::from(dim));
            let divisor = if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            #[allow(clippy::cast_possible_truncation, reason = "stored as f32")]
            let stored = divisor as f32;
            stored
        })
        .collect()
}

#[test]
fn llama3_scaling_is_recovered_from_its_factors() {
    // Llama 3.1, Llama 3.2, and others that nobody uses, to show that the fit is not a table.
    for (theta, dim, factor, low, high, original) in [
        (500_000.0, 128, 8.0, 1.0, 4.0, 8192.0),
        (500_000.0, 64, 32.0, 1.0, 4.0, 8192.0),
        (10_000.0, 128, 3.0, 1.0, 5.0, 1000.0),
        (1_000_000.0, 256, 16.0, 1.0, 2.0, 12345.0),
    ] {
        let found = Llama3::from_factors(theta, &factors(theta, dim, factor, low, high, original)).unwrap();
        assert_eq!(
            (found.factor, found.low_freq_factor, found.high_freq_factor, found.original_max_position_embeddings),
            (factor, low, high, original)
        );
    }
    // Only ratios to low_freq_factor matter: 2, 8 and 16384 scale as 1, 4 and 8192 do.
    let found = Llama3::from_factors(500_000.0, &factors(500_000.0, 128, 8.0, 2.0, 8.0, 16384.0)).unwrap();
    assert_eq!((found.low_freq_factor, found.high_freq_factor, found.original_max_position_embeddings), (1.0, 4.0, 8192.0));
}

#[test]
fn factors_of_another_scheme_are_refused() {
    let mut other = factors(500_000.0, 128, 8.0, 1.0, 4.0, 8192.0);
    assert!(Llama3::from_factors(10_000.0, &other).is_none(), "with another theta");
    other[40] *= 1.001;
    assert!(Llama3::from_factors(500_000.0, &other).is_none(), "one factor changed by a thousandth");
    let growing: Vec<f32> = (1..=32_u8).map(f32::from).collect();
    assert!(Llama3::from_factors(10_000.0, &growing).is_none());
    for odd in [&[][..], &[f32::NAN; 8], &[0.0; 8], &[-1.0; 8], &[f32::INFINITY; 8], &[0.5; 8]] {
        assert!(Llama3::from_factors(10_000.0, odd).is_none(), "{odd:?}");
    }
}

/// The imported real model: `PRUNECTL_SMOLLM2`, else what scripts/quickstart leaves under target/. Where neither is there,
/// tests that need it are skipped, unless the run must not skip (`CI`, `PRUNECTL_REQUIRE_MODEL`).
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn smollm2() -> Option<PathBuf> {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/quickstart/SmolLM2-135M-Instruct");
    let folder = std::env::var_os("PRUNECTL_SMOLLM2").map_or(quickstart, PathBuf::from);
    if folder.join("tokenizer.json").exists() {
        return Some(folder);
    }
    let required = ["CI", "PRUNECTL_REQUIRE_MODEL"].iter().any(|name| std::env::var(name).is_ok_and(|v| v == "true" || v == "1"));
    assert!(!required, "{} is not there: run scripts/quickstart, or set PRUNECTL_SMOLLM2", folder.display());
    eprintln!("skipped: {} is not there; scripts/quickstart makes it", folder.display());
    None
}

#[test]
fn smollm2_encodes_as_llama_cpp_does() {
    let Some(folder) = smollm2() else { return };
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let records: Vec<(String, Vec<u32>)> = serde_json::from_value(json(&file("smollm2.json"))).unwrap();
    assert!(records.len() >= 500);
    let wrong: BTreeMap<_, _> = records
        .iter()
        .filter_map(|(text, expected)| {
            let found = tokenizer.encode_fast(text.as_str(), true).unwrap().get_ids().to_vec();
            (&found != expected).then_some((text, (found, expected)))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} lines differ: {wrong:?}", wrong.len(), records.len());
}
