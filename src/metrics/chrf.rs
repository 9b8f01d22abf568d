//! chrF and chrF++ (Popović 2015, 2017) with sacreBLEU's defaults: white space removed, mixed case, no epsilon smoothing,
//! precision and recall averaged over the orders that exist in both texts.

use super::Stats;
use super::ngrams::{self, Counts};
use super::whitespace::{is_space, split_words};
use std::collections::HashMap;

/// Longest character n-gram.
const CHAR_ORDER: usize = 6;
/// Longest word n-gram of chrF++.
pub(super) const PLUS_PLUS_WORD_ORDER: usize = 2;
/// Recall weighs beta times as much as precision.
const BETA: f64 = 2.0;

/// Statistics of a segment; `word_order` is 0 (chrF) or [`PLUS_PLUS_WORD_ORDER`] (chrF++).
pub(super) fn segment(hypothesis: &str, reference: &str, word_order: usize) -> Stats {
    let mut stats = Vec::with_capacity(3 * (CHAR_ORDER + word_order));
    for counts in ngrams::count::<CHAR_ORDER>(&characters(hypothesis), &characters(reference)) {
        push(&mut stats, counts);
    }
    if word_order > 0 {
        let mut numbers = HashMap::new();
        let hypothesis = number_words(words(hypothesis), &mut numbers);
        let reference = number_words(words(reference), &mut numbers);
        for counts in ngrams::count::<PLUS_PLUS_WORD_ORDER>(&hypothesis, &reference) {
            push(&mut stats, counts);
        }
    }
    Stats(stats)
}

/// An order the reference lacks does not count against the hypothesis.
fn push(stats: &mut Vec<u64>, counts: Counts) {
    let hypothesis = if counts.reference > 0 { counts.hypothesis } else { 0 };
    stats.extend([hypothesis, counts.reference, counts.matching]);
}

fn characters(text: &str) -> Vec<u32> {
    text.chars().filter(|&c| !is_space(c)).map(u32::from).collect()
}

/// Words, with one ASCII punctuation mark split off: the last character if it is one, else the first.
fn words(text: &str) -> impl Iterator<Item = &str> {
    split_words(text).flat_map(|word| {
        let (first, last) = (char_len(word.chars().next()), char_len(word.chars().next_back()));
        let (head, tail) = if word.len() == first {
            (word, "")
        } else if word.ends_with(|c: char| c.is_ascii_punctuation()) {
            word.split_at(word.len() - last)
        } else if word.starts_with(|c: char| c.is_ascii_punctuation()) {
            word.split_at(first)
        } else {
            (word, "")
        };
        [head, tail].into_iter().filter(|part| !part.is_empty())
    })
}

fn char_len(c: Option<char>) -> usize {
    c.map_or(0, char::len_utf8)
}

/// Gives every distinct word a number, the same in all texts that share `numbers`.
pub(super) fn number_words<'a>(words: impl Iterator<Item = &'a str>, numbers: &mut HashMap<&'a str, u32>) -> Vec<u32> {
    words
        .map(|word| {
            // 2^32 words would be a segment of more than 8 GB.
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            *numbers.entry(word).or_insert(next)
        })
        .collect()
}

/// The F-score of summed statistics. Order of operations as in sacreBLEU.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn score(stats: &Stats) -> f64 {
    let (mut precision, mut recall, mut effective_order) = (0.0, 0.0, 0.0);
    for counts in stats.0.chunks_exact(3) {
        let &[hypothesis, reference, matching] = counts else { continue };
        if hypothesis > 0 && reference > 0 {
            precision += matching as f64 / hypothesis as f64;
            recall += matching as f64 / reference as f64;
            effective_order += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    precision /= effective_order;
    recall /= effective_order;
    let factor = BETA * BETA;
    100.0 * ((1.0 + factor) * precision * recall / (factor * precision + recall))
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn one_punctuation_mark_is_split_off() {
        let split = |text| words(text).collect::<Vec<_>>();
        assert_eq!(split("(hi) there"), ["(hi", ")", "there"]);
        assert_eq!(split("(hi ... . \"x"), ["(", "hi", "..", ".", ".", "\"", "x"]);
        assert_eq!(split("é. —x é"), ["é", ".", "—x", "é"]);
        assert!(split(" \u{3000}").is_empty());
    }
}
