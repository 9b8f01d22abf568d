//! `prunectl train-qlora` and `teach`: what they write, that interruption changes nothing, and what they refuse.

use crate::util::{Dir, Ran, Run, fixture};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Records of token ids that can be learnt: each counts up from its own start by its own step.
pub(crate) fn records(dir: &Dir, name: &str, records: usize, tokens: usize) -> PathBuf {
    let lines: Vec<String> = (0..records)
        .map(|r| {
            let ids: Vec<usize> = (0..tokens - r % 3).map(|t| 3 + (r * 31 + t * (1 + r % 5)) % 250).collect();
            json!({ "input_ids": ids }).to_string() + "\n"
        })
        .collect();
    dir.write(name, lines.concat())
}

fn command(dir: &Dir, model: &str, out: &str, args: &[&str]) -> Run {
    dir.prunectl()
        .arg("train-qlora")
        .arg(fixture(model))
        .args(["--data", "data.jsonl", "--dtype", "f32", "--out", out, "--lr", "1e-2", "--r", "4", "--alpha", "8"])
        .args(args)
        // What is tested here does not depend on the base's bits, and comparisons are with a dense one.
        .args(if args.contains(&"--full") || args.contains(&"--train-layers") { &[][..] } else { &["--quant", "none"] })
}

pub(crate) fn train(dir: &Dir, model: &str, out: &str, args: &[&str]) -> Ran {
    command(dir, model, out, args).run()
}

/// metrics.ndjson without what differs from run to run.
pub(crate) fn metrics(dir: &Dir, out: &str) -> Vec<Value> {
    let text = dir.read(&format!("{out}/metrics.ndjson"));
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().shift_remove("seconds");
        value
    };
    text.lines().map(line).collect()
}

pub(crate) fn losses(dir: &Dir, out: &str) -> Vec<f64> {
    metrics(dir, out).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

pub(crate) fn bytes(dir: &Dir, file: &str) -> Vec<u8> {
    std::fs::read(dir.path().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

pub(crate) const ADAPTER: &str = "adapter_model.safetensors";

#[test]
fn it_writes_what_scripts_rely_on() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 10, 24);
    records(&dir, "dev.jsonl", 5, 20);
    let args = ["--epochs", "4", "--batch", "4", "--eval", "dev.jsonl", "--json", "-q"];
    let report = train(&dir, "llama", "out", &args).code(0).no_err().json();
    // 10 records in updates of 4: 3 an epoch; evaluations before and after each epoch.
    let lines = metrics(&dir, "out");
    let updates: Vec<&Value> = lines.iter().filter(|line| line["loss"].is_f64()).collect();
    assert_eq!(updates.len(), 12);
    assert_eq!(lines.iter().filter(|line| line["eval_nll"].is_f64()).count(), 5);
    for (number, line) in (1..).zip(&updates) {
        assert_eq!(line["step"], number);
        for key in ["loss", "lr", "grad_norm"] {
            assert!(line[key].as_f64().unwrap() >= 0.0, "{key} of {line}");
        }
        assert!(line["tokens"].as_u64().unwrap() > line["targets"].as_u64().unwrap());
    }
    assert_eq!(updates[0]["lr"], 1e-2);
    let report = &report["report"];
    assert_eq!(report["steps"], 12);
    let [before, after] = ["eval_before", "eval_after"].map(|name| report[name]["nll"].as_f64().unwrap());
    assert!(after < before - 0.3, "{before} -> {after}");
    // What was measured at the end is what the adapter gives.
    let eval = dir.prunectl().arg("eval").arg(fixture("llama"));
    let eval = eval.args(["--adapter", "out", "--data", "dev.jsonl", "--dtype", "f32", "--json", "-q"]).run().code(0).json();
    let best = report["eval_best"]["nll"].as_f64().unwrap();
    assert!((eval["nll"].as_f64().unwrap() - best).abs() < 1e-6, "{eval} and {best}");
    let page = dir.read("out/report.html");
    assert!(page.contains("Course of the training") && !page.contains("<script"));
    let config: Value = serde_json::from_str(&dir.read("out/adapter_config.json")).unwrap();
    assert_eq!((&config["r"], &config["use_rslora"], &config["lora_alpha"]), (&json!(4), &json!(true), &json!(8)));
}

#[test]
fn only_the_product_of_batch_and_accumulation_counts() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 9, 24);
    for (out, batch, accumulation) in [("a", "4", "1"), ("b", "2", "2"), ("c", "1", "4")] {
        train(&dir, "qwen2", out, &["--steps", "6", "--batch", batch, "--grad-accum", accumulation, "-q"]).code(0).no_err();
    }
    let whole = bytes(&dir, &format!("a/{ADAPTER}"));
    assert!(whole == bytes(&dir, &format!("b/{ADAPTER}")) && whole == bytes(&dir, &format!("c/{ADAPTER}")));
    assert_eq!(metrics(&dir, "a"), metrics(&dir, "b"));
    // Memory for one record at a time: the gradient is the same sum in another order.
    let tight = ["--steps", "6", "--batch", "4", "--mem-budget", "1", "--json", "-q"];
    let report = train(&dir, "qwen2", "d", &tight).code(0).json();
    assert_eq!(report["report"]["micro_batch_tokens"], 24);
    for (found, expected) in losses(&dir, "d").iter().zip(losses(&dir, "a")) {
        assert!((found - expected).abs() < 1e-5 * expected, "{found} and {expected}");
    }
}

/// Kills a training after longer and longer times until it ends by itself; each run resumes the one before.
pub(crate) fn killed_again_and_again(dir: &Dir, out: &str, args: &[&str]) -> usize {
    let mut kills = 0;
    loop {
        let resume: &[&str] = if dir.exists(&format!("{out}/metrics.ndjson")) { &["--resume"] } else { &[] };
        let mut running = command(dir, "llama", out, &[args, resume].concat()).start();
        // Spread over start, steps, saves and the end; odd milliseconds, so that no period is hit again and again.
        std::thread::sleep(Duration::from_millis(61 + 37 * kills as u64));
        running.child.kill().unwrap();
        let ran = running.wait();
        if ran.status.success() {
            return kills;
        }
        ran.expect(ran.status.code().is_none(), "a kill, or success");
        kills += 1;
        assert!(kills < 200, "it never ends");
    }
}

#[test]
fn killed_at_any_instant_it_ends_with_the_same_bits() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 40, 100);
    records(&dir, "dev.jsonl", 3, 20);
    for (args, file) in [
        (
            &["--steps", "40", "--save-every", "3", "--dropout", "0.1", "--eval", "dev.jsonl", "--eval-every", "7", "-q"][..],
            ADAPTER,
        ),
        (&["--steps", "12", "--save-every", "2", "--full", "-q"][..], "model.safetensors"),
    ] {
        let name = file.split('.').next().unwrap();
        let (whole, cut) = (format!("whole-{name}"), format!("cut-{name}"));
        train(&dir, "llama", &whole, args).code(0);
        let kills = killed_again_and_again(&dir, &cut, args);
        assert!(kills > 0, "no run was killed");
        assert!(
            bytes(&dir, &format!("{whole}/{file}")) == bytes(&dir, &format!("{cut}/{file}")),
            "{file} differs after {kills} kills"
        );
        assert_eq!(metrics(&dir, &whole), metrics(&dir, &cut));
    }
}

#[test]
fn ctrl_c_saves_and_resume_goes_on() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 40, 120);
    let args = ["--steps", "30", "--batch", "8"];
    train(&dir, "llama", "whole", &args).code(0);
    let running = command(&dir, "llama", "cut", &args).start();
    let lines = || std::fs::read_to_string(dir.path().join("cut/metrics.ndjson")).map_or(0, |text| text.lines().count());
    while lines() < 3 {
        std::thread::sleep(Duration::from_millis(2));
    }
    running.signal("INT");
    running.wait().code(130).err("go on with --resume");
    assert!(lines() < 30, "it was not interrupted");
    let again = train(&dir, "llama", "cut", &args).code(2).err("already holds a training");
    again.expect(!again.stderr.contains("panicked"), "no panic");
    train(&dir, "llama", "cut", &[&args[..], &["--resume"]].concat()).code(0).err("going on after step");
    assert!(bytes(&dir, &format!("whole/{ADAPTER}")) == bytes(&dir, &format!("cut/{ADAPTER}")));
    // Resumed once more it has nothing to do, and says the same.
    train(&dir, "llama", "cut", &[&args[..], &["--resume"]].concat()).code(0).err("going on after step 30 of 30");
}

#[test]
fn resume_with_other_data_or_options_is_refused_by_name() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    train(&dir, "llama", "out", &["--steps", "4", "-q"]).code(0);
    let resume = |args: &[&str]| train(&dir, "llama", "out", &[args, &["--steps", "4", "--resume", "-q"]].concat());
    resume(&["--weight-decay", "0.5"]).code(2).err("cannot resume: weight_decay was 0.01, now 0.5");
    resume(&["--batch", "8"]).code(2).err("cannot resume: batch_times_accumulation was 4, now 8");
    resume(&["--seed", "1"]).code(2).err("cannot resume: seed was 0, now 1");
    resume(&["--targets", "q_proj"]).code(2).err("cannot resume: targets was");
    train(&dir, "qwen2", "out", &["--steps", "4", "--resume", "-q"]).code(2).err("cannot resume: model was");
    records(&dir, "data.jsonl", 9, 24);
    resume(&[]).code(2).err("cannot resume: data was");
    train(&dir, "llama", "out", &["--steps", "2", "--force", "-q"]).code(0);
    assert_eq!(losses(&dir, "out").len(), 2);
}

#[test]
fn of_a_damaged_state_the_one_before_is_used() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    let args = ["--steps", "6", "--save-every", "2"];
    train(&dir, "llama", "whole", &args).code(0);
    train(&dir, "llama", "out", &args).code(0);
    let newest = "out/state/step-00000006.safetensors";
    let mut state = bytes(&dir, newest);
    let middle = state.len() / 2;
    state[middle] ^= 1;
    dir.write(newest, &state);
    let resumed = train(&dir, "llama", "out", &[&args[..], &["--resume"]].concat()).code(0);
    resumed
        .err("step-00000006.safetensors: damaged: its checksum does not match; the state before it is used")
        .err("going on after step 4 of 6");
    assert!(bytes(&dir, &format!("whole/{ADAPTER}")) == bytes(&dir, &format!("out/{ADAPTER}")));
    for step in ["4", "6"] {
        dir.write(&format!("out/state/step-0000000{step}.safetensors"), "no state");
    }
    train(&dir, "llama", "out", &[&args[..], &["--resume"]].concat()).code(1).err("damaged");
}

#[test]
fn a_loss_that_is_no_number_stops_with_step_and_records() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 6, 24);
    let args = ["--steps", "6", "--batch", "2", "--no-shuffle", "--lr", "1e30", "--full"];
    let command = |args: &[&str]| {
        dir.prunectl()
            .arg("train-qlora")
            .arg(fixture("llama"))
            .args(["--data", "data.jsonl", "--dtype", "f32", "--out", "out"])
            .args(args)
            .run()
    };
    let ran = command(&args).code(1);
    ran.err("data.jsonl: lines 3, 4: step 2: the ").err("the state before it is kept").err("help: lower --lr");
    assert!(dir.exists("out/state/step-00000001.safetensors"));
    assert_eq!(losses(&dir, "out").len(), 1);
}

#[cfg(unix)]
#[test]
fn a_save_that_fails_leaves_what_was_there() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    let args = ["--steps", "6", "--save-every", "2", "-q"];
    train(&dir, "llama", "whole", &args).code(0);
    train(&dir, "llama", "out", &["--steps", "2", "-q"]).code(0);
    let program = env!("CARGO_BIN_EXE_prunectl");
    // As on a full disk, no file can grow beyond 40 KiB; a state is larger.
    let line = format!(
        "trap '' XFSZ; ulimit -f 80; exec {program} train-qlora {} --data data.jsonl --dtype f32 --out cut --lr 1e-2 --r 4 --alpha 8 --quant none {}",
        fixture("llama").display(),
        args.join(" ")
    );
    let ran = dir.program("sh").args(["-c", &line]).run().code(1).err("error: cannot write cut/state/step-00000002.safetensors");
    ran.expect(ran.stderr.lines().count() <= 2, "one error");
    // The folder can be gone on with once there is space.
    train(&dir, "llama", "cut", &[&args[..], &["--resume"]].concat()).code(0);
    assert!(bytes(&dir, &format!("whole/{ADAPTER}")) == bytes(&dir, &format!("cut/{ADAPTER}")));
}

#[test]
fn all_weights_of_a_pruned_plan_become_a_folder_of_their_own() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    for model in ["llama-tied-llama3rope", "cohere"] {
        let out = format!("out-{model}");
        let args = ["--steps", "8", "--full", "--skip", "1", "--eval", "data.jsonl", "--lr", "3e-3", "--json", "-q"];
        let run =
            dir.prunectl().arg("train-qlora").arg(fixture(model)).args(["--data", "data.jsonl", "--dtype", "f32", "--out", &out]);
        let report = run.args(args).run().code(0).json();
        let best = report["report"]["eval_best"]["nll"].as_f64().unwrap();
        assert!(best < report["report"]["eval_before"]["nll"].as_f64().unwrap() - 0.2);
        let eval =
            dir.prunectl().args(["eval", &out, "--data", "data.jsonl", "--dtype", "f32", "--json", "-q"]).run().code(0).json();
        assert_eq!(eval["layers"], 3);
        assert!((eval["nll"].as_f64().unwrap() - best).abs() < 1e-5, "{model}: {eval} and {best}");
    }
}

#[test]
fn chosen_layers_change_and_the_rest_keeps_its_bytes() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    let out =
        ["--data", "data.jsonl", "--dtype", "f32", "--out", "out", "--steps", "2", "--train-layers", "last:1,lm_head", "-q"];
    dir.prunectl().arg("train-qlora").arg(fixture("llama")).args(out).run().code(0);
    let shown = dir.prunectl().args(["inspect", "out"]).run().code(0);
    assert!(!shown.stdout.contains("pruned"), "no layer was removed: {}", shown.stdout);
    let [before, after] =
        [fixture("llama").join("model.safetensors"), dir.path().join("out/model.safetensors")].map(|p| std::fs::read(p).unwrap());
    let [before, after] = [&before, &after].map(|b| safetensors::SafeTensors::deserialize(b).unwrap());
    let mut changed = Vec::new();
    for (name, tensor) in before.tensors() {
        if after.tensor(&name).unwrap().data() != tensor.data() {
            changed.push(name);
        }
    }
    changed.sort_unstable();
    assert_eq!(changed.len(), 10, "{changed:?}");
    assert!(changed.iter().all(|name| name == "lm_head.weight" || name.starts_with("model.layers.3.")), "{changed:?}");
}

#[test]
fn training_stops_early_and_keeps_the_best() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    // Other texts altogether: what is learnt from the data makes them less likely sooner or later.
    let other: Vec<String> = (0..4)
        .map(|r| json!({"input_ids": (0..20).map(|t| 3 + (t * t * 7 + r * 13 + t) % 250).collect::<Vec<_>>()}).to_string() + "\n")
        .collect();
    dir.write("dev.jsonl", other.concat());
    let args = ["--steps", "400", "--eval", "dev.jsonl", "--eval-every", "5", "--patience", "3", "--json"];
    let ran = train(&dir, "llama", "out", &args).code(0).err("stopped after step");
    let report = &ran.json()["report"];
    assert_eq!(report["stopped_early"], true);
    let (steps, best) = (report["steps"].as_u64().unwrap(), report["eval_best"]["step"].as_u64().unwrap());
    assert_eq!(steps, best + 15);
    let eval = dir.prunectl().arg("eval").arg(fixture("llama"));
    let eval = eval.args(["--adapter", "out", "--data", "dev.jsonl", "--dtype", "f32", "--json", "-q"]).run().code(0).json();
    assert!((eval["nll"].as_f64().unwrap() - report["eval_best"]["nll"].as_f64().unwrap()).abs() < 1e-6);
}

#[test]
fn a_teacher_in_a_file_teaches_as_the_model_does() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let teach =
        dir.prunectl().args(["teach", model, "--data", "data.jsonl", "--dtype", "f32", "--top-k", "259", "--out", "teacher"]);
    teach.run().code(0).out("100.00 % of the teacher's probability");
    let lesson = ["--steps", "5", "--skip", "1,2", "--temperature", "2", "--teacher-mix", "0.75", "-q"];
    train(&dir, "llama", "model", &[&lesson[..], &["--teacher", model]].concat()).code(0).no_err();
    train(&dir, "llama", "file", &[&lesson[..], &["--teacher", "teacher"]].concat()).code(0).no_err();
    let (model_lines, file_lines) = (metrics(&dir, "model"), metrics(&dir, "file"));
    assert_eq!(model_lines.len(), 5);
    for (a, b) in model_lines.iter().zip(&file_lines) {
        for key in ["loss", "nll", "kl"] {
            let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!((a - b).abs() < 1e-4 * a.abs().max(0.1), "{key}: {a} and {b}");
        }
    }
    let first = &model_lines[0];
    let [loss, nll, kl] = ["loss", "nll", "kl"].map(|key| first[key].as_f64().unwrap());
    assert!((loss - (0.25 * nll + 0.75 * 4.0 * kl)).abs() < 1e-6);
    assert!(kl > 0.0 && model_lines[4]["kl"].as_f64().unwrap() < kl, "the student comes closer");
    // Data that the file was not made for.
    records(&dir, "data.jsonl", 9, 24);
    train(&dir, "llama", "other", &[&lesson[..], &["--teacher", "teacher"]].concat()).code(1).err("it was made for other data");
    let exists = dir.prunectl().args(["teach", model, "--data", "data.jsonl", "--out", "teacher"]).run();
    exists.code(2).err("teacher exists");
}

/// A fixture with another size of vocabulary, all zeros: enough to be refused.
fn other_vocabulary(dir: &Dir) -> PathBuf {
    let mut config: Value = serde_json::from_slice(&std::fs::read(fixture("llama").join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(300);
    dir.write("other/config.json", config.to_string());
    let source = std::fs::read(fixture("llama").join("model.safetensors")).unwrap();
    let source = safetensors::SafeTensors::deserialize(&source).unwrap();
    let zeros = vec![0_u8; 300 * 64 * 4];
    let tensors: Vec<(String, safetensors::tensor::TensorView<'_>)> = source
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let vocabulary = name == "lm_head.weight" || name == "model.embed_tokens.weight";
            let other = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![300, 64], &zeros).unwrap();
            (name, if vocabulary { other } else { tensor })
        })
        .collect();
    let bytes = safetensors::serialize(tensors, None).unwrap();
    dir.write("other/model.safetensors", bytes);
    dir.path().join("other")
}

#[test]
fn what_cannot_be_trained_is_refused_with_its_reason() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 4, 24);
    let refused = |args: &[&str], code: i32, part: &str| {
        train(&dir, "llama", "out", &[args, &["-q"]].concat()).code(code).err(part).no_out();
    };
    refused(&["--targets", "q_proj,c_attn"], 2, "--targets: c_attn matches nothing in the model");
    refused(&["--train-layers", "9"], 2, "--train-layers: 9 matches nothing in the model");
    refused(&["--epochs", "0"], 2, "--epochs 0: must be above 0");
    refused(&["--steps", "0"], 2, "--steps");
    refused(&["--betas", "0.9,1.5"], 2, "--betas");
    refused(&["--clip=-1"], 2, "--clip");
    refused(&["--patience", "2"], 2, "--eval");
    refused(&["--dropout", "1"], 2, "dropout must be at least 0 and below 1");
    refused(&["--skip", "0,1,2,3"], 2, "nothing left to keep");
    dir.write("mine/adapter_config.json", "{}");
    train(&dir, "llama", "mine", &["--steps", "1"]).code(2).err("mine holds adapter_config.json, and no training");
    for file in ["config.json", "model.safetensors"] {
        dir.write(&format!("copy/{file}"), std::fs::read(fixture("llama").join(file)).unwrap());
    }
    let over = dir.prunectl().args(["train-qlora", "copy", "--data", "data.jsonl", "--out", "copy", "--full", "--force"]).run();
    over.code(2).err("would write over what is read");
    let other = other_vocabulary(&dir);
    refused(&["--teacher", other.to_str().unwrap()], 2, "its vocabulary has 300 tokens, the model's 259");
    refused(&["--teacher", "data.jsonl"], 1, "data.jsonl");
    dir.write("data.jsonl", json!({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, -100, 8]}).to_string());
    refused(&["--seq-len", "3"], 1, "no target token: all 1 lie behind the first 3 tokens");
    assert!(!dir.exists("out/state"), "nothing was begun");
}

#[test]
fn filters_duplicates_and_more_data_are_counted() {
    let dir = Dir::new();
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        dir.write(&format!("model/{file}"), std::fs::read(fixture("llama").join(file)).unwrap());
    }
    dir.write("model/tokenizer.json", std::fs::read(fixture("byte-tokenizer").join("tokenizer.json")).unwrap());
    let pair = |source: &str, target: &str| json!({"source": source, "target": target}).to_string() + "\n";
    dir.write(
        "data.jsonl",
        [pair("one two", "eins zwei"), pair("a <b>x</b>", "ein x y"), pair("one", "eins zwei drei vier")].concat(),
    );
    dir.write("more.jsonl", [pair("one two", "eins zwei"), pair("three four", "drei vier")].concat());
    let run = |args: &[&str]| {
        dir.prunectl()
            .args(["train-qlora", "model", "--data", "data.jsonl", "--out", "out", "--steps", "1", "--r", "2", "--force"])
            .args(args)
            .run()
    };
    let ran = run(&["--add-data", "more.jsonl", "--filter-markup", "--filter-ratio", "3", "--json"]).code(0);
    let data = &ran.json()["data"];
    assert_eq!(data[0]["dropped"], json!({"ratio": 1, "too_short": 0, "too_long": 0, "markup": 1, "copies": 0}));
    assert_eq!((&data[0]["examples"], &data[1]["examples"], &data[1]["duplicates"]), (&json!(1), &json!(1), &json!(1)));
    ran.err("2 records were filtered out: 1 by their lengths' ratio, 1 with markup").err("more.jsonl: 1 duplicates were dropped");
    // What a teacher wrote beside a reference is what is learnt: no duplicate of the first pair, and one of the second.
    let written = |source: &str, hypothesis: &str| {
        json!({"source": source, "target": "eins zwei", "hypothesis": hypothesis, "tokens": 2}).to_string() + "\n"
    };
    dir.write("taught.jsonl", [written("one two", "zwei eins"), written("one", "eins zwei drei vier")].concat());
    let data = &run(&["--add-data", "taught.jsonl", "--json"]).code(0).json()["data"];
    assert_eq!((&data[1]["examples"], &data[1]["duplicates"]), (&json!(1), &json!(1)));
    dir.write("taught.jsonl", "{\"source\": \"one\", \"hypothesis\": 3}\n");
    run(&["--add-data", "taught.jsonl"]).code(1).err("taught.jsonl: line 1: field hypothesis: expected a string, found a number");
    run(&["--filter-min-words", "9"]).code(2).err("nothing is left to train on: the filters dropped all 3 records");
    dir.write("text.txt", "some text");
    run(&["--data", "text.txt"]).code(2);
}

#[test]
fn an_adapter_is_begun_with() {
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    let plain = |out: &str, args: &[&str]| {
        let run = dir.prunectl().arg("train-qlora").arg(fixture("llama")).args([
            "--data",
            "data.jsonl",
            "--dtype",
            "f32",
            "--out",
            out,
        ]);
        run.args(args).arg("-q").run().code(0)
    };
    plain(
        "first",
        &["--steps", "5", "--r", "4", "--alpha", "8", "--targets", "q_proj,down_proj", "--lr", "1e-2", "--eval", "data.jsonl"],
    );
    plain("second", &["--steps", "1", "--init-adapter", "first", "--lr", "0", "--eval", "data.jsonl"]);
    let evaluations = |out: &str| -> Vec<f64> { metrics(&dir, out).iter().filter_map(|l| l["eval_nll"].as_f64()).collect() };
    let (first, second) = (evaluations("first"), evaluations("second"));
    assert!((second[0] - first.iter().copied().fold(f64::INFINITY, f64::min)).abs() < 1e-6, "{first:?}, {second:?}");
    assert!(Path::new(&dir.path().join("second").join(ADAPTER)).exists());
    let weights = [format!("first/{ADAPTER}"), format!("second/{ADAPTER}")].map(|file| bytes(&dir, &file));
    assert!(weights[0] == weights[1], "a rate of 0 changes nothing");
}

#[test]
fn fifty_updates_have_the_losses_of_peft_and_torch() {
    let dir = Dir::new();
    let recorded = fixture("training");
    let losses_of: Value = serde_json::from_slice(&std::fs::read(recorded.join("losses.json")).unwrap()).unwrap();
    let options: Vec<String> = serde_json::from_value(losses_of["options"].clone()).unwrap();
    let (data, adapter) = (recorded.join("data.jsonl"), recorded.join("adapter"));
    for (kind, more) in [("lora", &["--init-adapter", adapter.to_str().unwrap(), "--quant", "none"][..]), ("full", &["--full"])] {
        let run = dir
            .prunectl()
            .arg("train-qlora")
            .arg(fixture("llama"))
            .arg("--data")
            .arg(&data)
            .args(["--out", kind, "--dtype", "f32"]);
        let rate = losses_of[kind]["lr"].to_string();
        run.args(&options).args(["--lr", &rate, "-q"]).args(more).run().code(0);
        let expected = losses_of[kind]["losses"].as_array().unwrap();
        let found = losses(&dir, kind);
        assert_eq!((found.len(), expected.len()), (50, 50));
        for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-4 * expected, "{kind}, update {}: {found} and {expected}", step + 1);
        }
    }
}
