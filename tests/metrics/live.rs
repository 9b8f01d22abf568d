//! Against the installed sacreBLEU, on lines that no one has seen before.
//!
//! Runs where the Python that PRUNECTL_PYTHON names (else `python3`) can import sacrebleu; with CI=true it must. The seed
//! is new in every run and part of a failure's message; PRUNECTL_TEST_SEED repeats a run.

use super::{Expected, compare};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use unicode_general_category::{GeneralCategory, get_general_category};

#[derive(Debug, Deserialize)]
struct Answer {
    sacrebleu: String,
    metrics: BTreeMap<String, Expected>,
}

#[test]
fn random_lines_equal_the_installed_sacrebleu() {
    let python = std::env::var("PRUNECTL_PYTHON").unwrap_or_else(|_| "python3".into());
    let importable = Command::new(&python)
        .args(["-c", "import sacrebleu"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !importable {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{python} cannot import sacrebleu; set PRUNECTL_PYTHON");
        eprintln!("skipped: {python} cannot import sacrebleu (set PRUNECTL_PYTHON to one that can)");
        return;
    }
    let seed = std::env::var("PRUNECTL_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    eprintln!("PRUNECTL_TEST_SEED={seed}");
    let mut random = Random(seed);
    let pairs: Vec<(String, String)> = (0..300)
        .map(|_| {
            let reference = random.line();
            (random.damaged(&reference), reference)
        })
        .collect();
    let subsets: Vec<Vec<usize>> = (0..10).map(|i| (0..1 + i * i * 3).map(|_| random.below(pairs.len())).collect()).collect();

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/metrics/reference.py");
    let mut child = Command::new(&python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let request = serde_json::json!({ "pairs": pairs, "subsets": subsets }).to_string();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "seed {seed}: reference.py failed");
    let answer: Answer = serde_json::from_slice(&output.stdout).unwrap();
    compare(&pairs, &subsets, &answer.metrics, &answer.sacrebleu);
}

/// What lines are made of, besides single characters from anywhere in Unicode.
const PIECES: &[&str] = &[
    "the",
    "Haus",
    "žluť",
    "كتاب",
    "中文",
    "日本",
    "1,000.5",
    "3-4",
    "42",
    "é",
    "e\u{301}",
    "&quot;",
    "&amp;",
    "&lt;",
    "&gt;",
    "&amp;quot;",
    "<skipped>",
    "-\n",
    "\n",
    "\r\n",
    ".",
    ",",
    "...",
    "-",
    "'",
    "\"",
    "(",
    ")",
    "/",
    "\\",
    "%",
    "$",
    "€",
    "«",
    "»",
    "…",
    "–",
    "“",
    "。",
    "，",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{1f44d}\u{1f3fd}",
    " ",
    " ",
    " ",
    "  ",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{85}",
    "\u{1c}",
    "\u{1f}",
    "\u{2028}",
    "\u{200b}",
    "\u{feff}",
    "\0",
    "²",
    "½",
    "Ⅷ",
    "٣",
    "٫",
];

/// A generator of a few lines: the test must not depend on the one it tests beside.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        usize::try_from(x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }

    /// An assigned character: sacreBLEU's `regex` package may be of a newer Unicode than ours.
    fn character(&mut self) -> char {
        const RANGES: [(usize, usize); 6] =
            [(0, 0x80), (0x80, 0x700), (0x900, 0x2000), (0x2000, 0x3400), (0x3400, 0x1_0000), (0x1_0000, 0x3_0000)];
        loop {
            let (start, end) = RANGES[self.below(RANGES.len())];
            if let Some(c) = char::from_u32(u32::try_from(start + self.below(end - start)).unwrap())
                && get_general_category(c) != GeneralCategory::Unassigned
            {
                return c;
            }
        }
    }

    fn piece(&mut self) -> String {
        if self.below(5) == 0 { self.character().to_string() } else { PIECES[self.below(PIECES.len())].to_owned() }
    }

    fn line(&mut self) -> String {
        let longest = [3, 10, 40, 40, 200][self.below(5)];
        (0..self.below(longest)).map(|_| self.piece()).collect()
    }

    /// `text` with some characters dropped, doubled or replaced.
    fn damaged(&mut self, text: &str) -> String {
        let rarity = [4, 12, 40, 1000][self.below(4)];
        let mut out = String::new();
        for c in text.chars() {
            match self.below(3 * rarity) {
                0 => {}
                1 => out.extend([c, c]),
                2 => out.push_str(&self.piece()),
                _ => out.push(c),
            }
        }
        out
    }
}
