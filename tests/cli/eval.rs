//! `prunectl eval`: figures held against transformers, and what is refused, data files first of all.

use crate::util::{Dir, Ran, fixture};
use serde_json::json;
use std::path::Path;

fn eval(dir: &Dir, model: impl AsRef<Path>, args: &[&str]) -> Ran {
    dir.prunectl().arg("eval").arg(model.as_ref()).args(args).run()
}

fn with_tokenizer(dir: &Dir) -> std::path::PathBuf {
    for file in ["config.json", "model.safetensors"] {
        dir.write(&format!("model/{file}"), std::fs::read(fixture("llama").join(file)).unwrap());
    }
    dir.write("model/tokenizer.json", std::fs::read(fixture("byte-tokenizer").join("tokenizer.json")).unwrap());
    dir.path().join("model")
}

/// The fixtures' own sequences, as data: the loss must be the one transformers computed, whole and without each layer.
pub(crate) fn losses_equal_those_of_transformers(device: &str) {
    for name in ["llama", "llama-tied-llama3rope", "qwen2", "cohere", "cohere-qknorm"] {
        let dir = Dir::new();
        let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let rows = |tensor: &str| -> Vec<Vec<i64>> {
            let view = file.tensor(tensor).unwrap();
            let all: Vec<i64> = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            all.chunks(view.shape()[1]).map(<[i64]>::to_vec).collect()
        };
        let (ids, mask, labels) = (rows("input_ids"), rows("attention_mask"), rows("labels"));
        let lines: Vec<String> = (0..ids.len())
            .map(|s| {
                let real =
                    |row: &[i64]| -> Vec<i64> { row.iter().zip(&mask[s]).filter(|&(_, &m)| m == 1).map(|(&v, _)| v).collect() };
                json!({ "input_ids": real(&ids[s]), "labels": real(&labels[s]) }).to_string() + "\n"
            })
            .collect();
        dir.write("data.jsonl", lines.concat());
        let loss = |tensor: &str| f64::from(f32::from_le_bytes(file.tensor(tensor).unwrap().data().try_into().unwrap()));
        let report = |args: &[&str]| {
            let args = [&["--data", "data.jsonl", "--json", "--device", device], args].concat();
            let report = eval(&dir, fixture(name), &args).code(0).json();
            assert!(report["device"].as_str().unwrap().starts_with(device), "{report}");
            report
        };
        let check = |args: &[&str], expected: f64| {
            let report = report(&[&["--dtype", "f32"], args].concat());
            let nll = report["nll"].as_f64().unwrap();
            assert!((nll - expected).abs() <= 1e-5 * expected, "{name} {args:?}: {nll} instead of {expected}");
            assert!((report["ppl"].as_f64().unwrap() - nll.exp()).abs() < 1e-9 * nll.exp());
        };
        check(&[], loss("loss"));
        for layer in ["0", "1", "2", "3"] {
            check(&["--skip", layer], loss(&format!("skip.{layer}.loss")));
        }
        // bf16 rounds operands to 8 bits: the loss moves in the third digit at most.
        let bf16 = report(&["--dtype", "bf16"]);
        assert!((bf16["nll"].as_f64().unwrap() - loss("loss")).abs() < 0.02 * loss("loss"), "{name}: {bf16}");
    }
}

#[test]
fn the_loss_equals_that_of_transformers() {
    losses_equal_those_of_transformers("cpu");
}

#[test]
fn bad_data_is_named_by_file_and_line_and_loses_nothing() {
    let dir = Dir::new();
    let model = with_tokenizer(&dir);
    let failed = |content: &[u8], parts: &[&str]| {
        dir.write("bad.jsonl", content);
        let mut ran = eval(&dir, &model, &["--data", "bad.jsonl"]).code(1).no_out().err("bad.jsonl");
        for part in parts {
            ran = ran.err(part);
        }
    };
    failed(b"", &["empty"]);
    failed(b"{\"text\": \"fine\"}\n{\"text\": broken\n", &["line 2"]);
    failed(b"{\"text\": \"fine\"}\n\"no object\"\n", &["line 2"]);
    failed(b"{\"text\": \"\xff\xfe\"}\n", &["UTF-8"]);
    failed(b"{\"source\": \"no target\"}\n", &["line 1", "target"]);
    failed(b"{\"words\": 3}\n", &["line 1"]);
    failed(b"{\"text\": 3}\n", &["line 1"]);
    failed(b"{\"text\": \"fine\"}\n{\"text\": \"\"}\n", &["line 2", "target"]);
    failed(b"{\"input_ids\": [1, 2, 9999]}\n", &["line 1", "9999"]);
    failed(b"{\"input_ids\": [1, 2, 3], \"labels\": [1, 2]}\n", &["line 1", "labels"]);
    failed(b"{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, -100]}\n", &["line 1", "target"]);
    failed(b"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n", &["line 1"]);
}

#[test]
fn what_cannot_be_opened_is_named() {
    let dir = Dir::new();
    let model = with_tokenizer(&dir);
    dir.write("text.txt", "Some words that are scored.\n");
    eval(&dir, "nowhere", &["--data", "text.txt"]).code(1).err("nowhere");
    eval(&dir, &model, &["--data", "nothing.txt"]).code(1).err("nothing.txt");
    eval(&dir, &model, &["--data", "text.txt", "--skip", "7"]).code(2).err("layer 7 does not exist");
    eval(&dir, &model, &["--data", "text.txt", "--skip", "0-3"]).code(2).err("nothing left to keep");
    eval(&dir, &model, &["--data", "text.txt", "--metrics", "rouge"]).code(2).err("unknown metric rouge");
    eval(&dir, &model, &["--data", "text.txt", "--device", "cuda:99"]).code(1).err("cuda:99").err("help:");
    std::fs::write(model.join("tokenizer.json"), "{\"broken\"").unwrap();
    eval(&dir, &model, &["--data", "text.txt"]).code(1).err("tokenizer.json");
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    eval(&dir, &model, &["--data", "text.txt"]).code(1).err("tokenizer.json");
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let dir = Dir::new();
    let model = with_tokenizer(&dir);
    dir.write("text.txt", "Some words that are scored.\n");
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let last = file.iter().max_by_key(|(_, view)| view.data().as_ptr()).unwrap().0.to_owned();
    std::fs::write(&path, &bytes).unwrap();
    eval(&dir, &model, &["--data", "text.txt"]).code(1).no_out().err(&last).err("model.safetensors");
}
