//! Corpus BLEU (Papineni et al. 2002) with sacreBLEU's defaults: 4-grams, exponential smoothing (Chen and Cherry 2014,
//! method 3), mixed case, no effective order.

use super::chrf::number_words;
use super::whitespace::split_words;
use super::{BleuTokenizer, Stats, ngrams};
use std::collections::HashMap;

/// Longest n-gram.
const ORDER: usize = 4;
/// sacreBLEU's stand-in for ln 0.
const LOG_OF_ZERO: f64 = -9_999_999_999.0;

/// Statistics of a segment.
pub(super) fn segment(hypothesis: &str, reference: &str, tokenizer: BleuTokenizer) -> Stats {
    let (hypothesis, reference) = (tokenizer.tokenize(hypothesis), tokenizer.tokenize(reference));
    let mut numbers = HashMap::new();
    let hypothesis = number_words(split_words(&hypothesis), &mut numbers);
    let reference = number_words(split_words(&reference), &mut numbers);
    let counts = ngrams::count::<ORDER>(&hypothesis, &reference);
    let mut stats = Vec::with_capacity(2 + 2 * ORDER);
    stats.extend([counts[0].hypothesis, counts[0].reference]);
    stats.extend(counts.iter().map(|order| order.matching));
    stats.extend(counts.iter().map(|order| order.hypothesis));
    Stats(stats)
}

/// BLEU of summed statistics.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn score(stats: &Stats) -> f64 {
    let Some((&[hypothesis_length, reference_length], counts)) = stats.0.split_first_chunk() else { return 0.0 };
    let (matching, total) = counts.split_at(ORDER.min(counts.len()));
    if matching.iter().all(|&n| n == 0) {
        return 0.0;
    }
    let brevity_penalty = if hypothesis_length >= reference_length {
        1.0
    } else if hypothesis_length > 0 {
        (1.0 - reference_length as f64 / hypothesis_length as f64).exp()
    } else {
        0.0
    };
    let mut log_precisions = 0.0;
    let mut smoothing = 1.0;
    let mut ended = false;
    for (&matching, &total) in matching.iter().zip(total) {
        // Orders longer than every hypothesis have precision 0, and so has any order after them.
        ended |= total == 0;
        log_precisions += if ended {
            LOG_OF_ZERO
        } else if matching == 0 {
            smoothing *= 2.0;
            (100.0 / (smoothing * total as f64)).ln()
        } else {
            (100.0 * matching as f64 / total as f64).ln()
        };
    }
    brevity_penalty * (log_precisions / ORDER as f64).exp()
}
