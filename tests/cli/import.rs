//! `prunectl import`.

use crate::util::{Dir, fixture};

fn gguf(name: &str) -> std::path::PathBuf {
    fixture("gguf").join(format!("{name}.gguf"))
}

fn names(dir: &Dir, folder: &str) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path().join(folder)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn makes_a_folder_and_says_what_is_in_it() {
    let dir = Dir::new();
    dir.prunectl()
        .args(["import".as_ref(), gguf("qwen2").as_os_str(), "models/qwen".as_ref()])
        .run()
        .code(0)
        .out("models/qwen: Qwen2ForCausalLM, 2 layers")
        .out("byte-level BPE (qwen2), 333 tokens")
        .out("F32 x 11");
    let expected = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&dir, "models/qwen"), expected);
    assert_eq!(names(&dir, "models"), ["qwen"], "no temporary folder is left");
    let config: serde_json::Value = serde_json::from_str(&dir.read("models/qwen/tokenizer_config.json")).unwrap();
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&"<|bos|>".into(), &"<|end|>".into()));
}

#[test]
fn json_is_one_document() {
    let dir = Dir::new();
    let ran = dir.prunectl().arg("import").arg(gguf("llama3")).args(["out", "--json", "--dtype", "f16"]).run().code(0).no_err();
    let report = ran.json();
    assert_eq!(report["architecture"], "LlamaForCausalLM");
    assert_eq!(report["num_hidden_layers"], 2);
    assert_eq!(report["tensors"], 21);
    assert_eq!(report["dtype"], "f16");
    assert_eq!(report["source_types"]["Q8_0"], 4);
    assert_eq!(report["bytes"].as_u64().unwrap(), report["parameters"].as_u64().unwrap() * 2);
    assert!(report["seconds"].is_f64());
    assert!(dir.read("out/config.json").contains(r#""torch_dtype": "float16""#));
}

#[test]
fn an_output_that_exists_is_kept_without_force() {
    let dir = Dir::new();
    dir.write("out/precious", "kept");
    let import = || dir.prunectl().arg("import").arg(gguf("command-r")).arg("out");
    import().run().code(2).no_out().err("error: out exists").err("--force");
    assert_eq!(names(&dir, "out"), ["precious"]);
    import().arg("--force").run().code(0);
    assert!(!dir.exists("out/precious") && dir.exists("out/model.safetensors"));
    assert_eq!(names(&dir, ""), ["out"]);
}

#[test]
fn a_failure_leaves_nothing_behind_and_keeps_what_was_there() {
    let dir = Dir::new();
    let mut bytes = std::fs::read(gguf("command-r")).unwrap();
    bytes.truncate(bytes.len() - 100);
    dir.write("cut.gguf", &bytes);
    dir.write("text.gguf", "not a model");
    dir.write("out/precious", "kept");
    for (file, message) in [
        ("cut.gguf", "reaches beyond the end of the file"),
        ("text.gguf", "not a GGUF file"),
        ("absent.gguf", "cannot open absent.gguf: No such file"),
        (".", "cannot"),
    ] {
        dir.prunectl().args(["import", file, "out", "--force"]).run().code(1).no_out().err("error: ").err(message);
        dir.prunectl().args(["import", file, "new"]).run().code(1).no_out().err(message);
    }
    assert_eq!(names(&dir, ""), ["cut.gguf", "out", "text.gguf"]);
    assert_eq!(dir.read("out/precious"), "kept");
}

#[test]
fn an_output_that_is_a_file_is_refused() {
    let dir = Dir::new();
    dir.write("out", "a file");
    dir.prunectl().arg("import").arg(gguf("command-r")).args(["out", "--force"]).run().code(2).no_out().err("not a folder");
    assert_eq!(dir.read("out"), "a file");
    dir.prunectl().arg("import").arg(gguf("command-r")).arg("out/below").run().code(1).no_out().err("error: cannot");
}

/// Lengths and counts of exabytes, in a process that may have a third of a gigabyte: an allocation for one would fail.
#[cfg(target_os = "linux")]
#[test]
fn lying_counts_cost_no_memory() {
    let dir = Dir::new();
    let original = std::fs::read(gguf("llama-k-quants")).unwrap();
    let script = r#"ulimit -v 350000; exec "$0" import lie.gguf out --threads 1"#;
    let place = |part: &str| original.windows(part.len()).position(|w| w == part.as_bytes()).unwrap();
    let tokens = place("tokenizer.ggml.tokens") + "tokenizer.ggml.tokens".len();
    let name = place("general.name") + "general.name".len();
    let tensor = place("token_embd.weight");
    // Number of tensors and of keys; length of a string; elements of an array; length of a name; an extent.
    for at in [8, 16, name + 4, tokens + 8, tensor - 8, tensor + "token_embd.weight".len() + 4] {
        for lie in [1_u64 << 31, 1 << 36, 1 << 48, u64::MAX / 8, u64::MAX] {
            let mut bytes = original.clone();
            bytes[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            dir.write("lie.gguf", &bytes);
            let ran = dir.program("sh").args(["-c", script, env!("CARGO_BIN_EXE_prunectl")]).run().code(1).no_out();
            ran.err("error: lie.gguf: ");
        }
    }
    dir.write("lie.gguf", &original);
    dir.program("sh").args(["-c", script, env!("CARGO_BIN_EXE_prunectl")]).run().code(0);
}
