//! `prunectl merge` and `--adapter`: weights and losses held against PEFT's, and what is refused.

use crate::util::{Dir, Ran, fixture};
use prunectl::model::ModelFolder;
use prunectl::tensor::Dtype;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::Path;

fn merge(dir: &Dir, name: &str, args: &[&str]) -> Ran {
    dir.prunectl().arg("merge").arg(fixture(name)).arg(fixture("adapters").join(name)).args(args).run()
}

/// Name and values of the merged weight that PEFT recorded, and a record with the token ids of its logits.
fn expected(name: &str) -> (String, Vec<f32>, String) {
    let bytes = std::fs::read(fixture("adapters").join(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (key, view) = file.iter().find(|(key, _)| key.starts_with("merged.")).unwrap();
    let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let ids = file.tensor("input_ids").unwrap();
    let ids: Vec<i64> = ids.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    (format!("{}.weight", key.strip_prefix("merged.").unwrap()), values, json!({ "input_ids": ids }).to_string() + "\n")
}

/// Mean loss of PEFT's recorded logits.
fn nll(name: &str) -> f64 {
    let bytes = std::fs::read(fixture("adapters").join(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    let ids: Vec<usize> =
        ids.data().as_chunks::<8>().0.iter().map(|b| usize::try_from(i64::from_le_bytes(*b)).unwrap()).collect();
    let logits = file.tensor("logits").unwrap();
    let values: Vec<f64> = logits.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let losses = values.chunks(logits.shape()[1]).zip(&ids[1..]).map(|(row, &next)| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() - row[next]
    });
    losses.sum::<f64>() / (ids.len() - 1) as f64
}

#[test]
fn weights_and_losses_equal_those_of_peft() {
    for name in ["llama", "qwen2", "cohere"] {
        let dir = Dir::new();
        let (key, weight, record) = expected(name);
        dir.write("data.jsonl", &record);
        let report = merge(&dir, name, &["--out", "out", "--data", "data.jsonl", "--json"]).code(0).no_err().json();
        let merged = ModelFolder::open(&dir.path().join("out")).unwrap();
        let found = merged.tensor(&key).unwrap().to_f32();
        let largest = weight.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for (f, e) in found.iter().zip(&weight) {
            assert!((f - e).abs() <= 1e-6 * largest, "{name} {key}: {f} instead of {e}");
        }
        let comparison = &report["comparison"];
        let close = |value: &Value| (value.as_f64().unwrap() - nll(name)).abs() <= 1e-5 * nll(name);
        assert!(close(&comparison["nll_adapter"]) && close(&comparison["nll_merged"]), "{comparison} instead of {}", nll(name));
        assert!(comparison["kl"].as_f64().unwrap().abs() < 1e-8, "{comparison}");
        assert_eq!(comparison["target_tokens"], 22);
        let provenance: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/prunectl.json")).unwrap()).unwrap();
        assert_eq!((&provenance["command"], &provenance["base_dtype"]), (&json!("merge"), &json!("original")));

        // --adapter runs the same sum without writing it.
        let adapter = fixture("adapters").join(name).display().to_string();
        let of = |model: &Path, more: &[&str]| {
            let ran = dir.prunectl().arg("eval").arg(model).args(["--data", "data.jsonl", "--json", "--dtype", "f32"]).args(more);
            ran.run().code(0).json()["nll"].as_f64().unwrap()
        };
        let with_adapter = of(&fixture(name), &["--adapter", &adapter]);
        assert!((with_adapter - nll(name)).abs() <= 1e-5 * nll(name), "{with_adapter} instead of {}", nll(name));
        assert!((of(&dir.path().join("out"), &[]) - with_adapter).abs() <= 1e-5 * with_adapter);
        assert!((of(&fixture(name), &[]) - with_adapter).abs() > 0.01);
    }
}

#[test]
fn dtypes_of_the_result_and_of_the_base() {
    let dir = Dir::new();
    let report = merge(&dir, "llama", &["--out", "f16", "--dtype", "f16", "--json"]).code(0).json();
    assert!(report["comparison"]["kl"].as_f64().unwrap() < 1e-4, "{report}");
    let half = ModelFolder::open(&dir.path().join("f16")).unwrap();
    assert!(half.dtypes().iter().all(|(dtype, _)| *dtype == Dtype::F16));
    assert!(half.raw_config.values().any(|value| value == "float16"));

    merge(&dir, "llama", &["--out", "restored", "--base-dtype", "nf4", "--double-quant", "false"]).code(0).out("divergence");
    let restored = ModelFolder::open(&dir.path().join("restored")).unwrap();
    let plain = ModelFolder::open(&fixture("llama")).unwrap();
    let mut quantised = ModelFolder::open(&fixture("llama")).unwrap();
    quantised.quantise_nf4(false).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let [merged, base] = [&restored, &plain].map(|folder| folder.tensor(name).unwrap().to_f32());
    let nf4 = quantised.nf4().find(|t| t.name == name).unwrap().to_f32();
    // The same sum lies on top of other weights.
    let (_, peft, _) = expected("llama");
    for i in 0..base.len() {
        assert!(((merged[i] - nf4[i]) - (peft[i] - base[i])).abs() < 1e-6, "weight {i}");
    }
    assert_eq!(restored.nf4().len(), 0);
}

#[test]
fn a_folder_in_four_bits_becomes_whole() {
    let dir = Dir::new();
    dir.prunectl().arg("quantize").arg(fixture("llama")).args(["--out", "nf4"]).run().code(0);
    let adapter = fixture("adapters/llama");
    dir.prunectl().args(["merge", "nf4"]).arg(&adapter).args(["--out", "merged"]).run().code(0);
    merge(&dir, "llama", &["--out", "same", "--base-dtype", "nf4", "--double-quant", "false"]).code(0);
    let weights = |folder: &str| std::fs::read(dir.path().join(folder).join("model.safetensors")).unwrap();
    let (a, b) = (weights("merged"), weights("same"));
    let (a, b) = (SafeTensors::deserialize(&a).unwrap(), SafeTensors::deserialize(&b).unwrap());
    assert_eq!(a.len(), b.len());
    for (name, tensor) in a.iter() {
        assert_eq!(b.tensor(name).unwrap(), tensor, "{name}");
    }
    let config = std::fs::read_to_string(dir.path().join("merged/config.json")).unwrap();
    assert!(!config.contains("quantization_config"));
}

#[test]
fn what_cannot_be_merged_is_refused_and_leaves_nothing() {
    let dir = Dir::new();
    dir.prunectl()
        .arg("merge")
        .arg(fixture("nf4/base"))
        .arg(fixture("adapters/llama"))
        .args(["--out", "out"])
        .run()
        .code(1)
        .err("there is no layer 2")
        .err("the adapter was made for llama");
    merge(&dir, "llama", &["--out", "out", "--limit", "1"]).code(2).err("--data");
    assert!(!dir.path().join("out").exists());
    merge(&dir, "llama", &["--out", "out"]).code(0);
    merge(&dir, "llama", &["--out", "out"]).code(2).err("out exists");
    let ran = dir.prunectl().arg("eval").arg(fixture("llama")).args(["--data", "x.jsonl", "--adapter", "nowhere"]).run();
    ran.expect(ran.status.code() != Some(0), "refused");
}
