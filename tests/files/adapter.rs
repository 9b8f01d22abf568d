//! Adapter folders: what is wrong with one is said by file, key and tensor.

use crate::support::{Folder, fixture};
use prunectl::error::Error;
use prunectl::model::{Adapter, ModelFolder};
use serde_json::{Value, json};
use std::path::Path;

/// A copy of the Llama adapter, changed.
fn changed(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let original = fixture("adapters/llama");
    let text = std::fs::read_to_string(original.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    std::fs::copy(original.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors")).unwrap();
    folder
}

fn refused(adapter: &Path, base: &str) -> Error {
    Adapter::open(adapter, &ModelFolder::open(&fixture(base)).unwrap()).map(drop).unwrap_err()
}

fn refused_with(key: &str, value: Value) -> String {
    let folder = changed(|config| config[key] = value);
    let error = refused(folder.path(), "llama");
    assert_eq!(error.exit_code(), 1);
    error.to_string().replace(&folder.path().display().to_string(), "DIR")
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    for (key, value, problem) in [
        ("peft_type", json!("IA3"), "IA3 is not computed; LORA is"),
        ("use_dora", json!(true), "true is not computed"),
        ("bias", json!("all"), "trained biases (all) are not computed"),
        ("lora_bias", json!(true), "true is not computed"),
        ("modules_to_save", json!(["lm_head"]), "[\"lm_head\"] is not computed"),
        ("fan_in_fan_out", json!(true), "true is not computed"),
        ("layer_replication", json!([[0, 4], [2, 4]]), "[[0,4],[2,4]] is not computed"),
        ("init_lora_weights", json!("pissa"), "\"pissa\" changes the weights of the base"),
        ("an_option_of_tomorrow", json!({"x": 1}), "{\"x\":1} is not computed"),
    ] {
        assert_eq!(refused_with(key, value), format!("DIR/adapter_config.json: key {key}: {problem}"));
    }
    let modules = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    assert_eq!(
        refused_with("target_modules", json!(["q_proj", "lm_head"])),
        format!("DIR/adapter_config.json: key target_modules: lm_head: adapters of {modules} are computed")
    );
}

#[test]
fn what_is_no_configuration_is_named() {
    for (key, value, problem) in [
        ("r", json!(0), "expected a whole number above 0"),
        ("r", json!("8"), "expected a whole number above 0"),
        ("lora_alpha", json!(null), "expected a number"),
        ("use_rslora", json!(1), "expected true or false"),
        ("target_modules", json!(7), "expected a list of names"),
        ("target_modules", json!([7]), "expected names of modules"),
        ("rank_pattern", json!([1]), "expected an object of patterns and numbers"),
        ("alpha_pattern", json!({"q_proj": "x"}), "q_proj: expected a number"),
        ("layers_to_transform", json!(["1"]), "expected layer numbers"),
    ] {
        assert_eq!(refused_with(key, value), format!("DIR/adapter_config.json: key {key}: {problem}"));
    }
    assert_eq!(
        refused_with("alpha_pattern", json!({"(": 1})),
        "DIR/adapter_config.json: key alpha_pattern: ( is not a regular expression that is understood here"
    );
    assert_eq!(
        refused_with("layers_to_transform", json!([0, 9])),
        "DIR/adapter_config.json: key layers_to_transform: the base has 4 layers, so there is no layer 9"
    );
}

#[test]
fn a_config_that_does_not_belong_to_the_weights_is_told_by_a_tensor() {
    let at = |layer: usize, module: &str| {
        format!("DIR/adapter_model.safetensors: tensor base_model.model.model.layers.{layer}.{module}.lora_A.weight: ")
    };
    assert_eq!(
        refused_with("rank_pattern", json!({})),
        at(0, "self_attn.q_proj") + "found shape [2, 64], but adapter_config.json gives it the rank 4"
    );
    assert_eq!(
        refused_with("target_modules", json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"])),
        at(0, "mlp.down_proj") + "adapter_config.json has no such pair: PEFT would leave it out"
    );
    assert_eq!(
        refused_with("layers_to_transform", json!([0, 1, 3])),
        at(2, "self_attn.q_proj") + "adapter_config.json has no such pair: PEFT would leave it out"
    );
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let base = Folder::tiny_llama(4);
    let error = Adapter::open(&fixture("adapters/llama"), &ModelFolder::open(base.path()).unwrap()).map(drop).unwrap_err();
    let place = "adapter_model.safetensors: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    assert!(error.to_string().ends_with(&format!("{place}: found shape [2, 64], expected [2, 8] for this base")), "{error}");
    assert_eq!(error.help().as_deref(), Some("the adapter was made for llama"));
}

#[test]
fn a_folder_that_is_no_adapter_is_refused() {
    let error = refused(&fixture("llama"), "llama");
    assert!(error.to_string().ends_with("llama: adapter_config.json is missing"), "{error}");
    let folder = changed(|_| {});
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    assert!(refused(folder.path(), "llama").to_string().ends_with(": adapter_model.safetensors is missing"));
    std::fs::write(folder.path().join("adapter_config.json"), "[").unwrap();
    assert!(refused(folder.path(), "llama").to_string().contains("adapter_config.json: not valid JSON"));
}

/// The adapter's own tensors, edited.
fn with_tensors(edit: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) -> String {
    let folder = changed(|config| {
        config["rank_pattern"] = json!({});
        config["alpha_pattern"] = json!({});
        config["target_modules"] = json!(["q_proj"]);
        config["layers_to_transform"] = json!(0);
    });
    let name = |half: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight");
    let tensor = |half: &str, shape: &[usize]| (name(half), shape.to_vec(), vec![0_u8; 4 * shape.iter().product::<usize>()]);
    let mut tensors = vec![tensor("A", &[4, 64]), tensor("B", &[64, 4])];
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
    match Adapter::open(folder.path(), &ModelFolder::open(&fixture("llama")).unwrap()) {
        Ok(_) => String::new(),
        Err(error) => {
            let text = error.to_string();
            text.rsplit_once("adapter_model.safetensors: ").map(|(_, rest)| rest.to_owned()).unwrap_or(text)
        }
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let prefix = "base_model.model.model.layers.0.self_attn.q_proj";
    assert_eq!(with_tensors(|_| {}), "");
    assert_eq!(with_tensors(|t| drop(t.pop())), format!("tensor {prefix}.lora_B.weight: missing"));
    assert_eq!(with_tensors(|t| drop(t.remove(0))), format!("tensor {prefix}.lora_A.weight: missing"));
    assert_eq!(
        with_tensors(|t| {
            t[1].1 = vec![4, 64];
        }),
        format!("tensor {prefix}.lora_B.weight: found shape [4, 64], expected [64, 4] for this base")
    );
    assert_eq!(
        with_tensors(|t| {
            t[0].1 = vec![256];
        }),
        format!("tensor {prefix}.lora_A.weight: found shape [256], but adapter_config.json gives it the rank 4")
    );
    assert_eq!(
        with_tensors(|t| t[1].0 = t[1].0.replace("layers.0", "layers.4")),
        "tensor base_model.model.model.layers.4.self_attn.q_proj.lora_B.weight: the base has 4 layers, so there is no layer 4"
    );
    for name in ["lora_A.weight", "base_model.model.lm_head.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.x"]
    {
        let found = with_tensors(|t| t[0].0 = name.into());
        let all = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
        assert_eq!(found, format!("tensor {name}: is not part of a LoRA pair of a layer's linear ({all})"));
    }
    assert_eq!(with_tensors(Vec::clear), "holds no LoRA pairs");
}
