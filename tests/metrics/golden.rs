//! Against what `scripts/make-metric-fixtures` recorded: over 600 line pairs, among them everything awkward we know of.

use super::{Expected, compare, metrics};
use prunectl::metrics::{Metric, Scorer, Stats};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Deserialize)]
struct Golden {
    sacrebleu: String,
    pairs: Vec<(String, String)>,
    subsets: Vec<Vec<usize>>,
    metrics: BTreeMap<String, Expected>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../fixtures/metrics/sacrebleu.json")).unwrap()
}

#[test]
fn statistics_and_scores_equal_sacrebleus() {
    let golden = golden();
    assert!(golden.pairs.len() >= 600);
    assert_eq!(golden.sacrebleu, prunectl::metrics::SACREBLEU_VERSION);
    compare(&golden.pairs, &golden.subsets, &golden.metrics, &golden.sacrebleu);
}

/// The fixture would prove little if its scores were all 0 or 100.
#[test]
fn fixture_has_scores_of_all_sizes() {
    for (name, expected) in golden().metrics {
        let distinct: std::collections::BTreeSet<u64> = expected.scores.iter().map(|score| score.to_bits()).collect();
        assert!(distinct.len() > 50, "{name}: {} distinct scores", distinct.len());
        assert!(expected.scores.contains(&0.0), "{name}");
        assert!(expected.scores.iter().any(|&score| score > 40.0 && score < 99.0), "{name}");
    }
}

#[test]
fn nothing_scores_nothing() {
    for metric in metrics().into_values() {
        assert_eq!(Scorer::new(metric).corpus(&Stats::default()), 0.0, "{metric:?}");
    }
}

#[test]
fn statistics_add_up_whatever_the_order() {
    let scorer = Scorer::new(Metric::ChrfPp);
    let [a, b] = [scorer.segment("one two", "one three"), scorer.segment("x", "")];
    let mut left = a.clone();
    left += b.clone();
    let mut right = Stats::default();
    right += &b;
    right += &a;
    assert_eq!(left, right);
}
