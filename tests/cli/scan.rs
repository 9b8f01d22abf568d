//! `prunectl scan`: what it writes, that races and budgets change nothing, and that it survives interruption bit for bit.

use crate::util::{Dir, Ran, fixture};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// `records` records of token ids for the fixtures' vocabulary of 259, different from each other.
fn token_records(dir: &Dir, records: usize, tokens: usize) -> PathBuf {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        3 + (state >> 33) % 250
    };
    let lines: Vec<String> = (0..records)
        .map(|_| json!({ "input_ids": (0..tokens).map(|_| next()).collect::<Vec<_>>() }).to_string() + "\n")
        .collect();
    dir.write("data.jsonl", lines.concat())
}

/// A fixture with the byte tokenizer beside it, so that texts can be used.
fn text_model(dir: &Dir, name: &str) -> PathBuf {
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        dir.write(&format!("model/{file}"), std::fs::read(fixture(name).join(file)).unwrap());
    }
    let tokenizer = fixture("byte-tokenizer").join("tokenizer.json");
    dir.write("model/tokenizer.json", std::fs::read(tokenizer).unwrap());
    dir.path().join("model")
}

fn scan(dir: &Dir, model: &str, args: &[&str]) -> Ran {
    dir.prunectl().arg("scan").arg(fixture(model)).args(["--data", "data.jsonl", "--dtype", "f32"]).args(args).run()
}

/// scan.json without what may differ from run to run: times, speeds, memory.
fn lasting(dir: &Dir, out: &str) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| {
                    !["seconds", "peak_memory_bytes", "tokens_per_second", "energy_joules"].contains(&key.as_str())
                });
                map.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(&dir.read(&format!("{out}/scan.json"))).unwrap();
    strip(&mut value);
    value
}

#[test]
fn it_writes_what_scripts_rely_on() {
    let dir = Dir::new();
    token_records(&dir, 6, 20);
    let ran = scan(&dir, "llama", &["--out", "out", "--remove", "2", "--json", "-q"]).code(0).no_err();
    let printed = ran.json();
    let written: Value = serde_json::from_str(&dir.read("out/scan.json")).unwrap();
    assert_eq!(printed, written);
    assert_eq!(written["schema"], 1);
    assert_eq!(written["model"]["architecture"], "LlamaForCausalLM");
    assert_eq!(written["protected"], json!([0, 3]));
    assert_eq!(written["data"]["segments"], 6);
    assert_eq!(written["data"]["target_tokens"], 6 * 19);
    let rounds = written["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 2);
    let first: Vec<&String> = rounds[0]["scores"].as_object().unwrap().keys().collect();
    assert_eq!(first, ["1", "2"]);
    // The second round starts where the first ended, and has one candidate left.
    assert_eq!(rounds[1]["baseline"], rounds[0]["score"]);
    assert_eq!(written["keep"], json!([0, 3]));
    let removed: Vec<&Value> = rounds.iter().map(|r| &r["removed"]).collect();
    assert_eq!(json!(removed), written["order"]);
    assert!(rounds[0]["margin"]["interval"].as_array().unwrap().len() == 2);
    for file in ["out/report.html", "out/heatmap.svg", "out/journal.ndjson"] {
        assert!(dir.exists(file), "{file}");
    }
    // What scan found, prune follows, and eval measures the same score on the result.
    dir.prunectl().arg("prune").arg(fixture("llama")).args(["--scan", "out", "--out", "small"]).run().code(0);
    let eval = dir.prunectl().args(["eval", "small", "--data", "data.jsonl", "--json"]).run().code(0).json();
    assert_eq!(eval["nll"], rounds[1]["score"]);
    assert_eq!(eval["layers"], 2);
}

#[test]
fn eval_without_a_layer_gives_the_scans_score_to_the_last_bit() {
    let dir = Dir::new();
    token_records(&dir, 5, 24);
    scan(&dir, "qwen2", &["--out", "out", "--protect", "none"]).code(0);
    let scores = lasting(&dir, "out")["rounds"][0]["scores"].clone();
    for layer in ["0", "1", "2", "3"] {
        let eval = dir.prunectl().arg("eval").arg(fixture("qwen2"));
        let eval = eval.args(["--data", "data.jsonl", "--dtype", "f32", "--skip", layer, "--json"]).run().code(0).json();
        assert_eq!(eval["nll"], scores[layer], "layer {layer}");
    }
}

#[test]
fn budgets_threads_and_races_choose_the_same() {
    let dir = Dir::new();
    token_records(&dir, 64, 16);
    let common = ["--remove", "3", "--protect", "none"];
    for metric in ["nll", "kl"] {
        let plain = [&common[..], &["--metric", metric, "--out", "plain", "--force"]].concat();
        scan(&dir, "cohere", &plain).code(0);
        let expected = lasting(&dir, "plain");
        for (threads, budget) in [("1", "1K"), ("2", "40K"), ("3", "1G")] {
            let other =
                [&common[..], &["--metric", metric, "--out", "other", "--force", "--threads", threads, "--mem-budget", budget]]
                    .concat();
            scan(&dir, "cohere", &other).code(0);
            assert_eq!(lasting(&dir, "other"), expected, "{metric}, {threads} threads, {budget}");
        }
        let race = [&common[..], &["--metric", metric, "--out", "race", "--force", "--race"]].concat();
        scan(&dir, "cohere", &race).code(0);
        let raced = lasting(&dir, "race");
        assert_eq!(raced["order"], expected["order"], "{metric}");
        // Who survives has its exact score.
        for (round, exact) in raced["rounds"].as_array().unwrap().iter().zip(expected["rounds"].as_array().unwrap()) {
            for (layer, score) in round["scores"].as_object().unwrap() {
                let (a, b) = (score.as_f64().unwrap(), exact["scores"][layer].as_f64().unwrap());
                assert!((a - b).abs() < 1e-12, "{metric}: layer {layer}: {a} instead of {b}");
            }
        }
    }
}

#[test]
fn every_metric_runs_and_bi_and_tail_need_no_baseline() {
    let dir = Dir::new();
    token_records(&dir, 4, 12);
    for metric in ["bi", "tail"] {
        scan(&dir, "llama", &["--out", metric, "--metric", metric, "--remove", "2"]).code(0);
        assert_eq!(lasting(&dir, metric)["baseline"], Value::Null);
    }
    assert_eq!(lasting(&dir, "tail")["order"], json!([2, 1]));

    let model = text_model(&dir, "llama");
    let pairs =
        ["good morning", "thank you", "see you soon"].map(|s| json!({ "source": s, "target": "guten Tag" }).to_string() + "\n");
    dir.write("pairs.jsonl", pairs.concat());
    for (metric, references) in [("chrf", "data"), ("chrf++", "self"), ("bleu", "self")] {
        let run = || {
            dir.prunectl().arg("scan").arg(&model).args(["--data", "pairs.jsonl", "--max-new-tokens", "8", "--metric", metric])
        };
        run().args(["--references", references, "--out", "text", "--force"]).run().code(0);
        let scan = lasting(&dir, "text");
        assert_eq!(scan["better"], "higher");
        // Identical texts; BLEU of texts with fewer than four words is 0 even so.
        if metric == "chrf++" {
            assert_eq!(scan["baseline"], 100.0, "the unpruned model differs from itself");
        }
    }
}

#[test]
fn kill_9_at_any_time_and_resume_give_the_same_result() {
    let dir = Dir::new();
    token_records(&dir, 400, 24);
    let args = ["--remove", "3", "--protect", "none", "--mem-budget", "200K", "--threads", "1"];
    scan(&dir, "llama", &[&args[..], &["--out", "whole"]].concat()).code(0);
    let expected = lasting(&dir, "whole");
    let mut interrupted = 0;
    for round in 0..40 {
        let command =
            dir.prunectl().arg("scan").arg(fixture("llama")).args(["--data", "data.jsonl", "--dtype", "f32", "--out", "broken"]);
        let mut running = command.args(args).arg("--resume").start();
        std::thread::sleep(Duration::from_millis(40 + 25 * round));
        if running.child.try_wait().unwrap().is_none() {
            running.signal("KILL");
            running.wait();
            interrupted += 1;
        } else {
            running.wait().code(0);
            break;
        }
    }
    assert!(interrupted >= 2, "the scan is too short to be killed: {interrupted}");
    scan(&dir, "llama", &[&args[..], &["--out", "broken", "--resume"]].concat()).code(0);
    assert_eq!(lasting(&dir, "broken"), expected);
}

#[test]
fn ctrl_c_keeps_what_was_scored_and_says_how_to_go_on() {
    let dir = Dir::new();
    token_records(&dir, 400, 24);
    let args = ["--remove", "3", "--protect", "none", "--mem-budget", "200K", "--threads", "1", "--out", "out"];
    let command = dir.prunectl().arg("scan").arg(fixture("llama")).args(["--data", "data.jsonl", "--dtype", "f32"]).args(args);
    let running = command.start();
    // Stop once something is in the journal.
    while !std::fs::read_to_string(dir.path().join("out/journal.ndjson")).is_ok_and(|text| text.lines().count() > 2) {
        std::thread::sleep(Duration::from_millis(2));
    }
    running.signal("INT");
    running.wait().code(130).no_out().err("--resume");
    assert!(!dir.exists("out/scan.json"));
    scan(&dir, "llama", &[&args[..], &["--resume"]].concat()).code(0);
}

#[test]
fn wrong_requests_are_refused_by_name() {
    let dir = Dir::new();
    token_records(&dir, 3, 10);
    let refused = |args: &[&str], what: &str| {
        scan(&dir, "llama", &[args, &["--out", "refused"]].concat()).code(2).no_out().err(what);
    };
    refused(&["--remove", "3"], "cannot remove 3 layers: 2 of 4 are candidates");
    refused(&["--remove", "0"], "cannot remove 0 layers");
    refused(&["--protect", "9"], "layer 9 does not exist");
    refused(&["--already-removed", "1,1"], "layer 1 is named twice");
    refused(&["--already-removed", "0-3"], "nothing left to keep");
    refused(&["--metric", "rouge"], "unknown metric rouge");
    refused(&["--race", "--metric", "bi"], "--race");
    refused(&["--race", "--race-delta", "2"], "between 0 and 1");
    refused(&["--seq-len", "4096"], "max_position_embeddings");
    refused(&["--resume", "--force"], "cannot be used with");
    scan(&dir, "llama", &["--out", "out"]).code(0);
    scan(&dir, "llama", &["--out", "out"]).code(2).err("already holds a scan").err("help:");
    scan(&dir, "llama", &["--out", "out", "--resume", "--metric", "kl"]).code(2).err(r#"metric was "nll", now "kl""#);
    // The finished scan can be resumed: nothing is left to do, the same comes out.
    let before = lasting(&dir, "out");
    scan(&dir, "llama", &["--out", "out", "--resume"]).code(0);
    assert_eq!(lasting(&dir, "out"), before);
}

#[test]
fn a_damaged_journal_is_named_by_line() {
    let dir = Dir::new();
    token_records(&dir, 3, 10);
    scan(&dir, "llama", &["--out", "out"]).code(0);
    let journal = dir.read("out/journal.ndjson");
    let mut lines: Vec<&str> = journal.lines().collect();
    lines[1] = "{\"kind\":\"nonsense\"}";
    dir.write("out/journal.ndjson", lines.join("\n") + "\n");
    scan(&dir, "llama", &["--out", "out", "--resume"]).code(1).err("journal.ndjson").err("line 2");
}
