//! `prunectl inspect`: figures of folders whose content is known, and folders that are not computed or damaged.

use crate::models::Folder;
use crate::util::{Dir, fixture};
use serde_json::json;

#[test]
fn figures_of_a_fixture() {
    let dir = Dir::new();
    let report = dir.prunectl().arg("inspect").arg(fixture("qwen2")).arg("--json").run().code(0).no_err().json();
    // Counted from the header of the file: 825,088 bytes of f32; a layer is 173,056 bytes.
    assert_eq!(report["parameters"], json!(825_088 / 4));
    assert_eq!(report["parameters_per_layer"], json!([43_264, 43_264, 43_264, 43_264]));
    assert_eq!(report["bytes"], json!(825_088));
    assert_eq!(report["architecture"], json!("Qwen2ForCausalLM"));
    assert_eq!(report["num_hidden_layers"], json!(4));
    assert_eq!(report["dtypes"], json!([{"dtype": "F32", "tensors": 51, "bytes": 825_088}]));
    assert_eq!(report["supported"], json!(true));
    assert_eq!(report["tokenizer"]["present"], json!(false));
    assert_eq!(report["problems"], json!([]));
    let text = dir.prunectl().arg("inspect").arg(fixture("qwen2")).run().code(0).no_err();
    text.out("206,272").out("4, 43,264 parameters each").out("none (no tokenizer.json)").out("scan, prune, eval");
}

#[test]
fn shards_count_as_one_model() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(3));
    let single = dir.prunectl().arg("inspect").arg(folder.path()).arg("--json").run().code(0).json();
    folder.shard(2);
    let sharded = dir.prunectl().arg("inspect").arg(folder.path()).arg("--json").run().code(0).json();
    assert_eq!(sharded["weight_files"].as_array().unwrap().len(), 2);
    for key in ["parameters", "bytes", "dtypes", "parameters_per_layer", "parameters_outside_layers"] {
        assert_eq!(single[key], sharded[key], "{key}");
    }
}

#[test]
fn a_model_that_is_not_computed_is_still_shown() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(3));
    folder.edit_config(|config| {
        config["model_type"] = json!("mixtral");
        config.insert("num_local_experts".into(), json!(8));
    });
    let ran = dir.prunectl().arg("inspect").arg(folder.path()).run().code(0);
    ran.out("not computed").out("key model_type: \"mixtral\" is not computed").out("3, ").out("nothing but show it");
    let report = dir.prunectl().arg("inspect").arg(folder.path()).arg("--json").run().code(0).json();
    assert_eq!(report["supported"], json!(false));
    assert_eq!(report["problems"][0]["unsupported"], json!(true));
    assert_eq!(report["parameters_per_layer"].as_array().unwrap().len(), 3);
}

#[test]
fn a_damaged_folder_is_shown_and_ends_with_code_1() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(2));
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 5]).unwrap();
    let ran = dir.prunectl().arg("inspect").arg(folder.path()).run().code(1);
    ran.out("damaged").out("model.safetensors: tensor").err("error: ").err("damaged").err("help: ");
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    dir.prunectl().arg("inspect").arg(folder.path()).run().code(1).no_out().err("config.json: not valid JSON");
    dir.prunectl().args(["inspect", "nowhere"]).run().code(1).no_out().err("nowhere/config.json");
}

#[test]
fn a_broken_tokenizer_is_named() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(2));
    std::fs::write(folder.path().join("tokenizer.json"), "{\"version\":").unwrap();
    dir.prunectl().arg("inspect").arg(folder.path()).run().code(1).out("tokenizer.json").out("not usable");
}

#[test]
fn check_names_a_weight_that_is_not_a_number() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(2));
    dir.prunectl().arg("inspect").arg(folder.path()).arg("--check").run().code(0).out("all finite");
    folder.edit_tensors(|tensors| {
        let t = tensors.iter_mut().find(|t| t.name == "model.layers.1.mlp.down_proj.weight").unwrap();
        t.bytes[4 * 14..4 * 15].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    dir.prunectl().arg("inspect").arg(folder.path()).run().code(0);
    let ran = dir.prunectl().arg("inspect").arg(folder.path()).arg("--check").run().code(1);
    ran.out("tensor model.layers.1.mlp.down_proj.weight: element [1, 2] is NaN");
}
