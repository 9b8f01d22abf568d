//! chrF, chrF++ and BLEU against sacreBLEU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod golden;
mod live;

use prunectl::metrics::{BleuTokenizer, Metric, Scorer, Stats};
use serde::Deserialize;
use std::collections::BTreeMap;

/// How far a score (0 to 100) may be from sacreBLEU's. Statistics are integers and must be equal; the formulas on them
/// differ by roundings of f64, some 1e-14.
const TOLERANCE: f64 = 1e-9;

/// What `reference.py` gives for one metric.
#[derive(Debug, Deserialize)]
struct Expected {
    signature: String,
    stats: Vec<Vec<u64>>,
    scores: Vec<f64>,
}

/// The metrics by the names of `reference.py`.
fn metrics() -> BTreeMap<String, Metric> {
    let bleu = BleuTokenizer::ALL.map(|tokenizer| (format!("bleu {tokenizer}"), Metric::Bleu(tokenizer)));
    [("chrf".to_owned(), Metric::Chrf), ("chrf++".to_owned(), Metric::ChrfPp)].into_iter().chain(bleu).collect()
}

/// Holds our statistics and scores against sacreBLEU's; `version` is the one that made `expected`.
fn compare(pairs: &[(String, String)], subsets: &[Vec<usize>], expected: &BTreeMap<String, Expected>, version: &str) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), metrics().keys().collect::<Vec<_>>());
    for (name, metric) in metrics() {
        let scorer = Scorer::new(metric);
        let expected = &expected[&name];
        let ours = prunectl::metrics::SACREBLEU_VERSION;
        let signature = scorer.signature().replace(&format!("version:{ours}"), &format!("version:{version}"));
        assert_eq!(signature, expected.signature);

        assert_eq!(expected.stats.len(), pairs.len());
        let stats: Vec<Stats> = pairs.iter().map(|(hypothesis, reference)| scorer.segment(hypothesis, reference)).collect();
        for ((pair, stats), expected) in pairs.iter().zip(&stats).zip(&expected.stats) {
            assert_eq!(&stats.0, expected, "{name}: statistics of {pair:?}");
        }

        assert_eq!(expected.scores.len(), subsets.len());
        for (subset, &expected) in subsets.iter().zip(&expected.scores) {
            let score = scorer.corpus(&subset.iter().map(|&i| &stats[i]).sum());
            let error = (score - expected).abs();
            // Written so that NaN fails.
            assert!(error <= TOLERANCE, "{name}: {score} against {expected} on pairs {subset:?}");
        }
    }
}
