//! `prunectl score`. Expected figures come from sacreBLEU 2.6.0's own command line and Python interface.

use std::path::Path;
use std::process::{Command, Output};

const CHRF: f64 = 67.13479658769373;
const CHRF_PP: f64 = 68.19065167689762;
const BLEU_13A: f64 = 44.95693723273522;
const BLEU_ZH: f64 = 47.23372604936903;
const BLEU_CHAR: f64 = 71.55887068878708;
const BLEU_INTL: f64 = 44.42210107719089;

fn score(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_prunectl")).arg("score").args(arguments).current_dir(folder).output().unwrap()
}

/// A folder with hypotheses and references as text and as JSONL.
fn texts() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let hypotheses = ["The cat sat on the mat.", "  Ein Haus, 1.000,5 Meter hoch!  ", "", "中文GPU测试。"];
    let references = ["The cat is on the mat.", "Ein Haus, 1.000,5 m hoch!", "empty", "中文的GPU测试。"];
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("hyp.txt", hypotheses.join("\n") + "\n");
    write("ref.txt", references.join("\r\n"));
    write("hyp.jsonl", hypotheses.iter().map(|h| format!("{}\n", serde_json::json!({"id": 1, "hypothesis": h}))).collect());
    write("target.jsonl", references.iter().map(|r| format!("{}\n", serde_json::json!({"source": "", "target": r}))).collect());
    write("reference.jsonl", references.iter().map(|r| format!("{}\n", serde_json::json!({"reference": r}))).collect());
    folder
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn scores_as_json_equal_sacrebleus() {
    let folder = texts();
    for reference in ["ref.txt", "target.jsonl", "reference.jsonl"] {
        for hypothesis in ["hyp.txt", "hyp.jsonl"] {
            for (tokenize, bleu) in [("13a", BLEU_13A), ("zh", BLEU_ZH), ("char", BLEU_CHAR), ("intl", BLEU_INTL)] {
                let output = score(folder.path(), &["--hyp", hypothesis, "--ref", reference, "--tokenize", tokenize, "--json"]);
                assert!(output.status.success(), "{}", stderr(&output));
                let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(report["segments"], 4);
                for (name, expected) in [("chrf", CHRF), ("chrf++", CHRF_PP), ("bleu", bleu)] {
                    let found = report[name].as_f64().unwrap();
                    assert!((found - expected).abs() <= 1e-9, "{name} {tokenize}: {found} against {expected}");
                }
                let signature = format!("nrefs:1|case:mixed|eff:no|tok:{tokenize}|smooth:exp|version:2.6.0");
                assert_eq!(report["signatures"]["bleu"], signature);
            }
        }
    }
}

#[test]
fn text_has_a_line_a_metric_in_the_order_asked() {
    let folder = texts();
    let output = score(folder.path(), &["--hyp", "hyp.txt", "--ref", "ref.txt", "--metrics", "bleu,chrf,bleu"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = format!(
        "4 segments\n\
         BLEU     {BLEU_13A:.2}  nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0\n\
         chrF2    {CHRF:.2}  nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn errors_name_file_and_line() {
    let folder = texts();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("short.txt", b"one\ntwo\n");
    write("empty.txt", b"");
    write("latin1.txt", b"one\ntwo\nthr\xe9e\nfour\n");
    write("broken.jsonl", b"{\"hypothesis\":\"a\"}\n{\"hypothesis\":\"b\"\n{}\n{}\n");
    write("lacking.jsonl", b"{\"hypothesis\":\"a\"}\n{\"text\":\"b\"}\n{}\n{}\n");
    write("number.jsonl", b"{\"target\":5}\n");
    for (hypothesis, reference, code, message) in [
        ("short.txt", "ref.txt", 1, "error: short.txt: line 2: the file ends after 2 segments, ref.txt has 4\n"),
        ("hyp.txt", "short.txt", 1, "error: short.txt: line 2: the file ends after 2 segments, hyp.txt has 4\n"),
        ("empty.txt", "ref.txt", 1, "error: empty.txt: the file is empty\n"),
        ("latin1.txt", "ref.txt", 1, "error: latin1.txt: line 3: not valid UTF-8\n"),
        ("broken.jsonl", "ref.txt", 1, "error: broken.jsonl: line 2: not a JSON object: column 17\n"),
        ("lacking.jsonl", "ref.txt", 1, "error: lacking.jsonl: line 2: no field `hypothesis`\n"),
        ("hyp.txt", "hyp.jsonl", 1, "error: hyp.jsonl: line 1: no field `target` or `reference`\n"),
        ("hyp.txt", "number.jsonl", 1, "error: number.jsonl: line 1: `target` or `reference` is not a string\n"),
        ("nowhere.txt", "ref.txt", 1, "error: cannot read nowhere.txt: "),
    ] {
        let output = score(folder.path(), &["--hyp", hypothesis, "--ref", reference]);
        assert!(stderr(&output).starts_with(message), "{hypothesis}: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stdout.is_empty());
    }
    for unknown in [["--metrics", "ter"], ["--tokenize", "moses"]] {
        let output =
            score(folder.path(), &[["--hyp", "hyp.txt", "--ref", "ref.txt"], [unknown[0], unknown[1], "--json", "-q"]].concat());
        assert_eq!(output.status.code(), Some(2), "{unknown:?}");
    }
}
