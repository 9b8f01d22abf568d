//! chrF, chrF++ and BLEU as sacreBLEU computes them with its defaults, one reference a segment (more than one reference
//! is not supported).
//!
//! A segment gives [`Stats`]: counts that add up. The score of any set of segments (a corpus, a bootstrap sample, what a
//! race has seen so far) is [`Scorer::corpus`] of the sum of their statistics, and costs nothing.
//!
//! ```
//! use prunectl::metrics::{Metric, Scorer, Stats};
//!
//! let scorer = Scorer::new(Metric::Chrf);
//! let corpus: Stats = [("the cat", "the cat"), ("a dog", "one dog")].into_iter().map(|(h, r)| scorer.segment(h, r)).sum();
//! assert!((scorer.corpus(&corpus) - 63.832_194).abs() < 1e-6);
//! ```

mod bleu;
mod bootstrap;
mod chrf;
mod ngrams;
mod tokenize;
mod whitespace;

pub use bootstrap::paired_interval;
pub use tokenize::BleuTokenizer;
pub use whitespace::{is_space, split_words, strip};

use std::iter::Sum;
use std::ops::AddAssign;

/// The release of sacreBLEU whose results these are; part of [`Scorer::signature`].
pub const SACREBLEU_VERSION: &str = "2.6.0";

/// A metric of generated text. Scores lie in 0..=100, higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Character n-gram F-score: char_order 6, word_order 0, beta 2 (Popović 2015).
    Chrf,
    /// chrF with word unigrams and bigrams: char_order 6, word_order 2, beta 2 (Popović 2017).
    ChrfPp,
    /// Corpus BLEU of up to 4-grams, exponential smoothing, no effective order (Papineni et al. 2002).
    Bleu(BleuTokenizer),
}

impl Metric {
    /// The metric of a name as users write it: `chrf`, `chrf++` or `bleu`, the last with `tokenizer`.
    #[must_use]
    pub fn parse(name: &str, tokenizer: BleuTokenizer) -> Option<Self> {
        match name {
            "chrf" => Some(Self::Chrf),
            "chrf++" => Some(Self::ChrfPp),
            "bleu" => Some(Self::Bleu(tokenizer)),
            _ => None,
        }
    }

    /// The name that [`Metric::parse`] reads.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chrf => "chrf",
            Self::ChrfPp => "chrf++",
            Self::Bleu(_) => "bleu",
        }
    }

    /// The name as sacreBLEU prints it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Chrf => "chrF2",
            Self::ChrfPp => "chrF2++",
            Self::Bleu(_) => "BLEU",
        }
    }
}

/// Sufficient statistics of one segment, or of the sum of many.
///
/// chrF: `[hypothesis, reference, matching]` n-grams for each order, characters first, then words. BLEU: hypothesis
/// length, reference length, matching n-grams of order 1 to 4, hypothesis n-grams of order 1 to 4. The layout is
/// sacreBLEU's own. [`Stats::default`] is the sum of no segments, whatever the metric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats(pub Vec<u64>);

impl AddAssign<&Stats> for Stats {
    fn add_assign(&mut self, other: &Stats) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            *sum += count;
        }
    }
}

impl AddAssign for Stats {
    fn add_assign(&mut self, other: Stats) {
        *self += &other;
    }
}

impl Sum for Stats {
    fn sum<I: Iterator<Item = Stats>>(segments: I) -> Self {
        segments.fold(Self::default(), |mut sum, segment| {
            sum += &segment;
            sum
        })
    }
}

impl<'a> Sum<&'a Stats> for Stats {
    fn sum<I: Iterator<Item = &'a Stats>>(segments: I) -> Self {
        segments.fold(Self::default(), |mut sum, segment| {
            sum += segment;
            sum
        })
    }
}

/// Computes one metric.
#[derive(Debug, Clone, Copy)]
pub struct Scorer {
    metric: Metric,
}

impl Scorer {
    /// A scorer of `metric`.
    #[must_use]
    pub fn new(metric: Metric) -> Self {
        Self { metric }
    }

    /// The metric it computes.
    #[must_use]
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Statistics of one segment. Texts are taken as they are, as sacreBLEU's Python interface does; commands [`strip`]
    /// hypotheses first (it matters to the `intl` tokenizer alone).
    #[must_use]
    pub fn segment(&self, hypothesis: &str, reference: &str) -> Stats {
        match self.metric {
            Metric::Chrf => chrf::segment(hypothesis, reference, 0),
            Metric::ChrfPp => chrf::segment(hypothesis, reference, chrf::PLUS_PLUS_WORD_ORDER),
            Metric::Bleu(tokenizer) => bleu::segment(hypothesis, reference, tokenizer),
        }
    }

    /// The corpus score of summed statistics, 0..=100; 0 for [`Stats::default`].
    #[must_use]
    pub fn corpus(&self, stats: &Stats) -> f64 {
        match self.metric {
            Metric::Chrf | Metric::ChrfPp => chrf::score(stats),
            Metric::Bleu(_) => bleu::score(stats),
        }
    }

    /// The signature that sacreBLEU prints for the same computation.
    #[must_use]
    pub fn signature(&self) -> String {
        let settings = match self.metric {
            Metric::Chrf => "eff:yes|nc:6|nw:0|space:no".to_owned(),
            Metric::ChrfPp => "eff:yes|nc:6|nw:2|space:no".to_owned(),
            Metric::Bleu(tokenizer) => format!("eff:no|tok:{tokenizer}|smooth:exp"),
        };
        format!("nrefs:1|case:mixed|{settings}|version:{SACREBLEU_VERSION}")
    }
}
