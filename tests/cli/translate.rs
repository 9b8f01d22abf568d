//! `prunectl translate`: a line a record, in order, whatever shares the batch.

use crate::util::{Dir, Ran, fixture};
use serde_json::{Value, json};

fn model(dir: &Dir) -> std::path::PathBuf {
    for file in ["config.json", "model.safetensors"] {
        dir.write(&format!("model/{file}"), std::fs::read(fixture("qwen2").join(file)).unwrap());
    }
    dir.write("model/tokenizer.json", std::fs::read(fixture("byte-tokenizer").join("tokenizer.json")).unwrap());
    dir.path().join("model")
}

fn translate(dir: &Dir, args: &[&str]) -> Ran {
    dir.prunectl().args(["translate", "model"]).args(args).run()
}

fn lines(dir: &Dir, name: &str) -> Vec<Value> {
    dir.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn records_come_back_in_order_with_their_texts() {
    let dir = Dir::new();
    model(&dir);
    let records: Vec<Value> = (0..7)
        .map(|i| json!({ "id": i, "source": "word ".repeat(1 + i * 3 % 5), "target": "Wort", "source_lang": "English", "target_lang": "German" }))
        .collect();
    dir.write("data.jsonl", records.iter().map(|r| r.to_string() + "\n").collect::<String>());
    translate(&dir, &["--data", "data.jsonl", "--out", "all.jsonl", "--max-new-tokens", "9"]).code(0);
    let all = lines(&dir, "all.jsonl");
    assert_eq!(all.len(), 7);
    for (line, record) in all.iter().zip(&records) {
        for (key, value) in record.as_object().unwrap() {
            assert_eq!(&line[key], value);
        }
        let hypothesis = line["hypothesis"].as_str().unwrap();
        assert_eq!(hypothesis.trim(), hypothesis);
        assert!(line["tokens"].as_u64().unwrap() <= 9);
    }
    // Alone, a record gets the same text.
    for (index, record) in records.iter().enumerate() {
        dir.write("one.jsonl", record.to_string());
        translate(&dir, &["--data", "one.jsonl", "--out", "alone.jsonl", "--force", "--max-new-tokens", "9", "--threads", "1"])
            .code(0);
        assert_eq!(lines(&dir, "alone.jsonl"), [all[index].clone()]);
    }
    // A text ends before a stop text.
    let Some(text) = all.iter().filter_map(|l| l["hypothesis"].as_str()).find(|t| t.chars().count() > 3) else {
        panic!("no text to cut");
    };
    let stop: String = text.chars().skip(1).take(1).collect();
    translate(&dir, &["--data", "data.jsonl", "--out", "cut.jsonl", "--max-new-tokens", "9", "--stop", &stop]).code(0);
    assert!(lines(&dir, "cut.jsonl").iter().all(|l| !l["hypothesis"].as_str().unwrap().contains(&stop)));
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let dir = Dir::new();
    model(&dir);
    let records: String = (0..1500).map(|i| json!({ "source": "word ".repeat(1 + i % 7) }).to_string() + "\n").collect();
    dir.write("data.jsonl", records);
    let args = ["--data", "data.jsonl", "--max-new-tokens", "40", "--mem-budget", "1", "--threads", "1"];
    translate(&dir, &[&args[..], &["--out", "whole.jsonl"]].concat()).code(0);
    assert!(!dir.exists("whole.jsonl.journal"));
    let parts = [&args[..], &["--out", "parts.jsonl"]].concat();
    for (signal, code) in [("INT", Some(130)), ("KILL", None)] {
        let lines = |dir: &Dir| std::fs::read_to_string(dir.path().join("parts.jsonl.journal")).map_or(0, |t| t.lines().count());
        let before = lines(&dir).max(1);
        let resume: &[&str] = if signal == "INT" { &[] } else { &["--resume"] };
        let running = dir.prunectl().args(["translate", "model"]).args([&parts[..], resume].concat()).start();
        while lines(&dir) <= before {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        running.signal(signal);
        let ran = running.wait();
        ran.expect(ran.status.code() == code, "an end by the signal");
        assert!(!dir.exists("parts.jsonl"));
    }
    translate(&dir, &parts).code(2).err("already holds a translation").err("--resume");
    translate(&dir, &[&parts[..], &["--resume", "--skip", "1"]].concat()).code(2).err("skip was [], now [1]");
    let finished = dir.read("parts.jsonl.journal").lines().count() - 1;
    assert!((1..1500).contains(&finished), "{finished} texts were finished");
    translate(&dir, &[&parts[..], &["--resume"]].concat()).code(0);
    assert_eq!(dir.read("parts.jsonl"), dir.read("whole.jsonl"));
    assert!(!dir.exists("parts.jsonl.journal"));
}

#[test]
fn what_is_there_is_not_overwritten_unasked() {
    let dir = Dir::new();
    model(&dir);
    dir.write("data.txt", "one line\n");
    dir.write("out.jsonl", "precious");
    translate(&dir, &["--data", "data.txt", "--out", "out.jsonl"]).code(2).err("out.jsonl exists").err("help:");
    assert_eq!(dir.read("out.jsonl"), "precious");
    translate(&dir, &["--data", "data.txt", "--out", "out.jsonl", "--force", "--max-new-tokens", "0"])
        .code(2)
        .err("--max-new-tokens");
    translate(&dir, &["--data", "data.txt", "--out", "out.jsonl", "--force", "--max-new-tokens", "500"]).code(2).err("128");
    assert_eq!(dir.read("out.jsonl"), "precious");
    translate(&dir, &["--data", "data.txt", "--out", "nowhere/out.jsonl", "--max-new-tokens", "2"]).code(1).err("nowhere");
}

#[test]
fn the_report_tells_loading_from_generating() {
    let dir = Dir::new();
    model(&dir);
    dir.write("data.txt", "one line\n");
    let report = translate(&dir, &["--data", "data.txt", "--out", "out.jsonl", "--max-new-tokens", "4", "--json"]).code(0).json();
    let figure = |name: &str| report[name].as_f64().unwrap();
    assert!(figure("load_seconds") > 0.0 && figure("seconds") > 0.0, "{report}");
    let rate = figure("generated_tokens") / figure("seconds");
    assert!((figure("tokens_per_second") - rate).abs() <= 1e-9 * rate, "{report}");
}
