//! `prunectl prune`: what is written, read back with the reference library; what is refused; and that OUT is whole or
//! absent whatever happens.

use crate::models::{Folder, Tensor, tiny_config};
use crate::util::{Dir, Ran, fixture};
use prunectl::model::ModelFolder;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path.as_ref()).unwrap()).unwrap()
}

/// Name -> (dtype, shape, bytes) of a file, by the reference library.
fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, t)| (name.to_owned(), (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// `all` without the layers not in `kept`, renumbered: the definition of pruning, written down a second time.
fn pruned<T: Clone>(all: &BTreeMap<String, T>, kept: &[usize]) -> BTreeMap<String, T> {
    all.iter()
        .filter_map(|(name, tensor)| {
            let mut parts: Vec<String> = name.split('.').map(str::to_owned).collect();
            if parts[1] == "layers" {
                let old: usize = parts[2].parse().unwrap();
                parts[2] = kept.iter().position(|&l| l == old)?.to_string();
            }
            Some((parts.join("."), tensor.clone()))
        })
        .collect()
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn prune(dir: &Dir, model: &Path, args: &[&str]) -> Ran {
    dir.prunectl().arg("prune").arg(model).args(args).run()
}

#[test]
fn every_family_keeps_its_bytes_and_gets_new_numbers() {
    for name in ["llama", "llama-tied-llama3rope", "qwen2", "cohere", "cohere-qknorm"] {
        let dir = Dir::new();
        let report = {
            let ran = prune(&dir, &fixture(name), &["--remove", "2,1", "--out", "out", "--json"]).code(0).no_err();
            ran.json()
        };
        assert_eq!(report["removed"], json!([1, 2]));
        let out = dir.path().join("out");
        assert_eq!(names(&out), ["config.json", "generation_config.json", "model.safetensors", "prunectl.json"]);
        let expected = pruned(&tensors(&fixture(name).join("model.safetensors")), &[0, 3]);
        assert_eq!(tensors(&out.join("model.safetensors")), expected, "{name}");

        let mut config = read_json(fixture(name).join("config.json"));
        config["num_hidden_layers"] = json!(2);
        if name == "qwen2" {
            config["layer_types"] = json!(["full_attention", "full_attention"]);
            config["max_window_layers"] = json!(2);
        }
        assert_eq!(read_json(out.join("config.json")), config, "{name}");

        let provenance = read_json(out.join("prunectl.json"));
        assert_eq!(provenance["removed"], json!([1, 2]));
        assert_eq!(provenance["keep"], json!([0, 3]));
        assert_eq!(provenance["source"]["num_hidden_layers"], json!(4));
        assert_eq!(names(dir.path()), ["out"], "something was left beside it");

        prune(&dir, &fixture(name), &["--keep", "0,3", "--out", "kept"]).code(0);
        for file in ["config.json", "model.safetensors", "prunectl.json"] {
            assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(dir.path().join("kept").join(file)).unwrap(), "{file}");
        }
    }
}

#[test]
fn a_pruned_model_can_be_pruned_again_and_remembers() {
    let dir = Dir::new();
    prune(&dir, &fixture("llama"), &["--remove", "1", "--out", "first"]).code(0);
    prune(&dir, &dir.path().join("first"), &["--remove", "2", "--out", "second"]).code(0);
    let provenance = read_json(dir.path().join("second/prunectl.json"));
    assert_eq!(provenance["before"]["removed"], json!([1]));
    let expected = pruned(&tensors(&fixture("llama").join("model.safetensors")), &[0, 2]);
    assert_eq!(tensors(&dir.path().join("second/model.safetensors")), expected);
}

#[test]
fn lists_with_one_entry_a_layer_are_sliced_and_unknown_ones_refused() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(4));
    folder.edit_config(|config| {
        config.insert("no_rope_layers".into(), json!([10, 11, 12, 13]));
        config.insert("layer_types".into(), json!(["full_attention", "full_attention", "full_attention", "full_attention"]));
        config.insert("nested".into(), json!({"mlp_layer_types": ["a", "b", "c", "d"], "num_hidden_layers": 4}));
        config.insert("vision_config".into(), json!({"num_hidden_layers": 24, "layer_types": ["x"]}));
        config.insert("eos_token_id".into(), json!([1, 2, 3, 4]));
        config.insert("some_numbers".into(), json!([1, 2, 3]));
        config.insert("max_window_layers".into(), json!(28));
    });
    prune(&dir, folder.path(), &["--remove", "1,3", "--out", "out"]).code(0);
    let config = read_json(dir.path().join("out/config.json"));
    assert_eq!(config["no_rope_layers"], json!([10, 12]));
    assert_eq!(config["layer_types"], json!(["full_attention", "full_attention"]));
    assert_eq!(config["nested"], json!({"mlp_layer_types": ["a", "c"], "num_hidden_layers": 2}));
    assert_eq!(config["vision_config"], json!({"num_hidden_layers": 24, "layer_types": ["x"]}));
    assert_eq!(config["eos_token_id"], json!([1, 2, 3, 4]));
    assert_eq!(config["some_numbers"], json!([1, 2, 3]));
    assert_eq!(config["max_window_layers"], json!(2));

    for (key, value, named) in [
        ("layer_scales", json!([0.1, 0.2, 0.3, 0.4]), "key layer_scales"),
        ("inner", json!({"deep": {"gates": [1, 2, 3, 4]}}), "key inner.deep.gates"),
        ("by_layer", json!({"0": 1, "1": 1, "2": 1, "3": 1}), "key by_layer"),
        ("mlp_only_layers", json!([0]), "key mlp_only_layers"),
    ] {
        let folder = Folder::tiny_llama(4);
        folder.edit_config(|config| {
            config.insert(key.into(), value);
        });
        prune(&dir, folder.path(), &["--remove", "1", "--out", "refused"]).code(1).no_out().err("config.json").err(named);
        assert!(!dir.exists("refused"));
    }
    let folder = Folder::tiny_llama(4);
    folder.edit_config(|config| {
        config.insert("no_rope_layers".into(), json!([1, 1]));
    });
    prune(&dir, folder.path(), &["--remove", "1", "--out", "refused"]).code(1).err("no_rope_layers: found 2 entries, expected 4");
}

#[test]
fn shards_are_mirrored_and_empty_ones_dropped() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(4));
    let all = tensors(&folder.path().join("model.safetensors"));
    // Layer 1 alone in the second of three files.
    folder.shard_by(3, |number, name| if name.starts_with("model.layers.1.") { 1 } else { number % 2 * 2 });
    for (removed, kept, files) in [("1", vec![0, 2, 3], 2), ("3", vec![0, 1, 2], 3)] {
        let out = dir.path().join(format!("without-{removed}"));
        prune(&dir, folder.path(), &["--remove", removed, "--out", out.to_str().unwrap()]).code(0);
        let index = read_json(out.join("model.safetensors.index.json"));
        let mut found = BTreeMap::new();
        let mut bytes = 0;
        for number in 1..=files {
            let name = format!("model-{number:05}-of-{files:05}.safetensors");
            for (tensor, content) in tensors(&out.join(&name)) {
                assert_eq!(index["weight_map"][&tensor], json!(name));
                bytes += content.2.len();
                assert!(found.insert(tensor, content).is_none());
            }
        }
        assert_eq!(found, pruned(&all, &kept));
        assert_eq!(index["weight_map"].as_object().unwrap().len(), found.len());
        assert_eq!(index["metadata"]["total_size"], json!(bytes));
        assert_eq!(names(&out).len(), files + 3, "{:?}", names(&out));
    }
}

#[test]
fn other_files_are_carried_and_other_weights_are_not() {
    let (dir, folder) = (Dir::new(), Folder::tiny_llama(2));
    let carried =
        ["LICENSE", "chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];
    let left =
        ["consolidated.pth", "model.gguf", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "x.safetensors"];
    for name in carried.iter().chain(&left) {
        fs::write(folder.path().join(name), format!("content of {name}")).unwrap();
    }
    fs::create_dir(folder.path().join("original")).unwrap();
    fs::write(folder.path().join(".gitattributes"), "x").unwrap();
    let secret = dir.write("secret", "secret");
    #[cfg(unix)]
    std::os::unix::fs::symlink(secret, folder.path().join("vocab.json")).unwrap();
    let report = prune(&dir, folder.path(), &["--remove", "0", "--out", "out", "--json"]).code(0).json();
    assert_eq!(report["carried"], json!(carried));
    let out = dir.path().join("out");
    for name in carried {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), format!("content of {name}"));
    }
    assert_eq!(names(&out).len(), carried.len() + 3);
    let named: Vec<&str> = report["left_behind"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["consolidated.pth", "model.gguf", "original", left[2], left[3], "vocab.json", "x.safetensors"]);
}

#[test]
fn layer_lists_that_are_wrong_end_with_code_2_and_write_nothing() {
    let dir = Dir::new();
    for (args, expected) in [
        (&["--remove", "4"][..], "layer 4 does not exist: the model has layers 0-3"),
        (&["--remove", "1,1"], "layer 1 is named twice"),
        (&["--remove", "0-2,2"], "layer 2 is named twice"),
        (&["--remove", "0-3"], "nothing left to keep"),
        (&["--keep", "0-3"], "no layer would be removed"),
        (&["--keep", "0,9"], "layer 9 does not exist"),
        (&["--keep", "0,0"], "layer 0 is named twice"),
        (&["--remove", ""], "not a layer"),
        (&["--remove", "1,"], "not a layer"),
        (&["--remove", "-1"], "-1"),
        (&["--remove", "2-1"], "runs backwards"),
        (&["--remove", "1.5"], "not a layer"),
        (&["--remove", "0-99999999999999"], "more than"),
        (&["--remove", "99999999999999999999999999"], "not a layer"),
        (&["--remove", "1", "--keep", "2"], "cannot be used with"),
        (&["--remove", "1", "--rounds", "1"], "cannot be used with"),
        (&["--scan", "s", "--rounds", "0"], "0"),
        (&[], "--remove"),
    ] {
        let ran = prune(&dir, &fixture("llama"), &[args, &["--out", "out"]].concat()).code(2).no_out().err(expected);
        ran.expect(!dir.exists("out"), "no OUT");
    }
}

#[test]
fn an_output_that_exists_is_replaced_only_with_force_and_never_the_model() {
    let dir = Dir::new();
    dir.write("out/precious", "precious");
    prune(&dir, &fixture("llama"), &["--remove", "1", "--out", "out"]).code(2).no_out().err("out exists").err("--force");
    assert_eq!(names(&dir.path().join("out")), ["precious"]);
    prune(&dir, &fixture("llama"), &["--remove", "9", "--out", "out", "--force"]).code(2);
    assert_eq!(names(&dir.path().join("out")), ["precious"]);
    prune(&dir, &fixture("llama"), &["--remove", "1", "--out", "out", "--force"]).code(0);
    assert!(dir.exists("out/model.safetensors") && !dir.exists("out/precious"));
    assert_eq!(names(dir.path()), ["out"]);

    dir.write("file", "a file");
    prune(&dir, &fixture("llama"), &["--remove", "1", "--out", "file", "--force"]).code(2).err("not a folder");
    assert_eq!(dir.read("file"), "a file");
    prune(&dir, &fixture("llama"), &["--remove", "1", "--out", "file/out"]).code(1).err("file");

    // Neither the model that is read nor a folder around it.
    let before = fs::read(dir.path().join("out/model.safetensors")).unwrap();
    for target in ["out", "./out/", "."] {
        let args = ["--remove", "1", "--force", "--out", target];
        prune(&dir, &dir.path().join("out"), &args).code(2).err("would replace the model");
    }
    assert_eq!(fs::read(dir.path().join("out/model.safetensors")).unwrap(), before);
}

/// scan.json as the command line's description has it.
fn scan_json(model: &str, fingerprint: &str, order: &[usize], keep: &[usize]) -> Value {
    json!({
        "schema": 1, "prunectl": "0.1.0",
        "model": {"path": model, "architecture": "LlamaForCausalLM", "num_hidden_layers": 4, "fingerprint": fingerprint},
        "data": {"path": "dev.jsonl", "sha256": "00", "segments": 3, "target_tokens": 30, "truncated": 0},
        "metric": "nll", "better": "lower", "protected": [0, 3], "device": "cpu", "dtype": "f32", "baseline": 3.3,
        "rounds": order.iter().enumerate().map(|(i, layer)| json!({
            "round": i + 1, "baseline": 3.3, "scores": {layer.to_string(): 3.4}, "removed": layer, "score": 3.4, "seconds": 1.0
        })).collect::<Vec<_>>(),
        "order": order, "keep": keep, "seconds": 2.0, "peak_memory_bytes": 1000
    })
}

#[test]
fn a_scan_is_followed() {
    let dir = Dir::new();
    let model = fixture("llama");
    let report = dir.prunectl().arg("inspect").arg(&model).arg("--json").run().code(0).json();
    let fingerprint = report["fingerprint"].as_str().unwrap();
    let put = |scan: &Value| dir.write("scan/scan.json", scan.to_string());
    let removed = |out: &str| read_json(dir.path().join(out).join("prunectl.json"))["removed"].clone();

    put(&scan_json("llama", fingerprint, &[2, 1], &[0, 3]));
    prune(&dir, &model, &["--scan", "scan", "--out", "all"]).code(0);
    assert_eq!(removed("all"), json!([1, 2]));
    prune(&dir, &model, &["--scan", "scan", "--rounds", "1", "--out", "one"]).code(0);
    assert_eq!(removed("one"), json!([2]));
    assert_eq!(read_json(dir.path().join("one/prunectl.json"))["scan"]["order"], json!([2]));
    prune(&dir, &model, &["--scan", "scan", "--rounds", "3", "--out", "x"]).code(2).err("has 2 rounds");

    let mut with_earlier = scan_json("llama", fingerprint, &[1], &[0, 3]);
    with_earlier["already_removed"] = json!([2]);
    put(&with_earlier);
    prune(&dir, &model, &["--scan", "scan", "--out", "earlier"]).code(0);
    assert_eq!(removed("earlier"), json!([1, 2]));

    put(&scan_json("other", "not this one", &[2], &[0, 1, 3]));
    prune(&dir, &model, &["--scan", "scan", "--out", "x"]).code(2).no_out().err("another model").err("--force");
    prune(&dir, &model, &["--scan", "scan", "--out", "forced", "--force"]).code(0).err("another model");
    assert_eq!(removed("forced"), json!([2]));

    for (scan, expected) in [
        (scan_json("llama", fingerprint, &[7], &[0]), "layer 7 does not exist"),
        (scan_json("llama", fingerprint, &[2, 2], &[0]), "named twice"),
        (scan_json("llama", fingerprint, &[2], &[0, 1]), "key keep"),
    ] {
        put(&scan);
        prune(&dir, &model, &["--scan", "scan", "--out", "x"]).code(1).err("scan.json").err(expected);
    }
    dir.write("scan/scan.json", "{\"schema\":1,");
    prune(&dir, &model, &["--scan", "scan", "--out", "x"]).code(1).err("scan.json");
    prune(&dir, &model, &["--scan", "nowhere", "--out", "x"]).code(1).err("nowhere/scan.json");
    assert!(!dir.exists("x"));
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_what_was_there() {
    // A limit on the size of files fails a write in its middle as a full disk does, and needs no privilege.
    let dir = Dir::new();
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$@\"";
    let limited = |args: &[&str]| {
        let command = ["-c", script, "sh", env!("CARGO_BIN_EXE_prunectl"), "prune"];
        dir.program("sh").args(command).arg(fixture("llama")).args(args).run()
    };
    let ran = limited(&["--remove", "1", "--out", "out"]).code(1).no_out();
    ran.err("error: cannot write out/model.safetensors");
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    dir.write("out/precious", "precious");
    limited(&["--remove", "1", "--out", "out", "--force"]).code(1);
    assert_eq!((names(dir.path()), dir.read("out/precious")), (vec!["out".to_owned()], "precious".to_owned()));
}

/// About 100 MB, so that a run takes long enough to be stopped in its middle.
fn large() -> Folder {
    let (hidden, mlp) = (512, 4096);
    let zeros = |name: String, shape: &[usize]| Tensor {
        name,
        dtype: "F32".into(),
        shape: shape.to_vec(),
        bytes: vec![0; shape.iter().product::<usize>() * 4],
    };
    let mut tensors = vec![
        zeros("model.embed_tokens.weight".into(), &[11, hidden]),
        zeros("model.norm.weight".into(), &[hidden]),
        zeros("lm_head.weight".into(), &[11, hidden]),
    ];
    for layer in 0..4 {
        for (name, shape) in [
            ("input_layernorm", &[hidden][..]),
            ("post_attention_layernorm", &[hidden]),
            ("self_attn.q_proj", &[hidden, hidden]),
            ("self_attn.k_proj", &[hidden / 2, hidden]),
            ("self_attn.v_proj", &[hidden / 2, hidden]),
            ("self_attn.o_proj", &[hidden, hidden]),
            ("mlp.gate_proj", &[mlp, hidden]),
            ("mlp.up_proj", &[mlp, hidden]),
            ("mlp.down_proj", &[hidden, mlp]),
        ] {
            tensors.push(zeros(format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut config = tiny_config(4);
    config["hidden_size"] = json!(hidden);
    config["intermediate_size"] = json!(mlp);
    Folder::new(config, tensors)
}

/// OUT, if it is there, is a whole model without exactly the layers it says; gives these.
fn whole(out: &Path) -> Option<Value> {
    if !out.exists() {
        return None;
    }
    let removed = read_json(out.join("prunectl.json"))["removed"].clone();
    let model = ModelFolder::open(out).unwrap();
    assert_eq!(model.config.num_hidden_layers, 4 - removed.as_array().unwrap().len());
    Some(removed)
}

#[cfg(unix)]
#[test]
fn kill_9_and_ctrl_c_leave_out_absent_or_whole_and_the_next_run_cleans_up() {
    let (dir, folder) = (Dir::new(), large());
    let out = dir.path().join("out");
    let start = |layers: &str| {
        let args = ["--remove", layers, "--out", "out", "--force"];
        dir.prunectl().arg("prune").arg(folder.path()).args(args).start()
    };
    let begun = Instant::now();
    start("1").wait().code(0);
    let duration = begun.elapsed();
    fs::remove_dir_all(&out).unwrap();

    let (mut absent, mut leftovers, mut old) = (0, 0, 0);
    for eighth in 1..8 {
        let run = start("1");
        std::thread::sleep(duration * eighth / 8);
        run.signal("KILL");
        run.wait();
        absent += usize::from(whole(&out).is_none());
        leftovers += names(dir.path()).iter().filter(|name| name.starts_with(".prunectl-")).count();
        let _ = fs::remove_dir_all(&out);
    }
    assert!(absent > 0 && leftovers > 0, "every kill came too late or too early: {absent} absent, {leftovers} left over");

    start("1").wait().code(0);
    assert_eq!(names(dir.path()), ["out"], "what the killed runs left is not cleaned up");
    for eighth in 1..8 {
        let run = start("0,2");
        std::thread::sleep(duration * eighth / 8);
        run.signal("KILL");
        run.wait();
        let removed = whole(&out).expect("OUT was there before, so it is there after");
        assert!([json!([1]), json!([0, 2])].contains(&removed), "{removed}");
        old += usize::from(removed == json!([1]));
    }
    assert!(old > 0, "every kill came too late");

    // Ctrl-C cleans up by itself.
    fs::remove_dir_all(&out).unwrap();
    let run = start("3");
    let asked = Instant::now();
    while !names(dir.path()).iter().any(|name| name.starts_with(".prunectl-")) && asked.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    run.signal("INT");
    let ran = run.wait();
    match ran.status.code() {
        Some(130) => {
            ran.err("nothing was written").no_out();
            assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
        }
        _ => assert_eq!(whole(&out), Some(json!([3])), "neither stopped nor done"),
    }
}
