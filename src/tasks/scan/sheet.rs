//! The score sheet of a round: what every record adds to the score of every candidate, and how scores follow from it.

use super::entry::Share;
use crate::metrics::{Scorer, Stats};
use std::collections::BTreeMap;

/// Seed of the bootstrap: fixed, so that a scan repeated gives the same interval.
const BOOTSTRAP_SEED: u64 = 0x5ca1_ab1e;
/// Resamples of the bootstrap (Koehn 2004 uses 1000).
const RESAMPLES: usize = 1000;

/// How shares make a score.
pub enum Rule {
    /// Sum of the sums over the sum of these counts (target tokens, or positions); lower is better.
    Mean(Vec<u64>),
    /// Corpus score of the summed statistics; higher is better.
    Corpus(Scorer),
}

impl Rule {
    /// The word for scan.json.
    #[must_use]
    pub fn better(&self) -> &'static str {
        match self {
            Self::Mean(_) => "lower",
            Self::Corpus(_) => "higher",
        }
    }

    /// True if score `a` is better than `b`.
    #[must_use]
    pub fn beats(&self, a: f64, b: f64) -> bool {
        match self {
            Self::Mean(_) => a < b,
            Self::Corpus(_) => a > b,
        }
    }

    /// Score of the records named (with repetition), whose shares `share` gives.
    fn score<'a>(&self, records: impl Iterator<Item = usize>, share: impl Fn(usize) -> &'a Share) -> f64 {
        match self {
            Self::Mean(counts) => {
                let (mut sum, mut count) = (0.0, 0_u64);
                for record in records {
                    if let Share::Sum(value) = share(record) {
                        sum += value;
                        count += counts[record];
                    }
                }
                #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
                let count = count as f64;
                sum / count
            }
            Self::Corpus(scorer) => {
                let mut total: Option<Stats> = None;
                for record in records {
                    if let Share::Counts(counts) = share(record) {
                        match &mut total {
                            Some(total) => *total += &Stats(counts.clone()),
                            None => total = Some(Stats(counts.clone())),
                        }
                    }
                }
                total.map_or(0.0, |total| scorer.corpus(&total))
            }
        }
    }
}

/// Shares of every candidate (by its removed layer; `None` is the model the round starts from) on every record.
#[derive(Debug, Default)]
pub struct Sheet {
    records: usize,
    shares: BTreeMap<Option<usize>, Vec<Option<Share>>>,
}

impl Sheet {
    /// An empty sheet for `records` records.
    #[must_use]
    pub fn new(records: usize) -> Self {
        Self { records, shares: BTreeMap::new() }
    }

    /// Enters one share; a record out of range (a damaged journal) is ignored.
    pub fn enter(&mut self, layer: Option<usize>, record: usize, share: Share) {
        let row = self.shares.entry(layer).or_insert_with(|| vec![None; self.records]);
        if let Some(slot) = row.get_mut(record) {
            *slot = Some(share);
        }
    }

    /// True if the share is there.
    #[must_use]
    pub fn has(&self, layer: Option<usize>, record: usize) -> bool {
        self.share(layer, record).is_some()
    }

    /// One share.
    #[must_use]
    pub fn share(&self, layer: Option<usize>, record: usize) -> Option<&Share> {
        self.shares.get(&layer)?.get(record)?.as_ref()
    }

    /// Records that have a share, ascending.
    #[must_use]
    pub fn scored(&self, layer: Option<usize>) -> Vec<usize> {
        (0..self.records).filter(|&r| self.has(layer, r)).collect()
    }

    /// True if every record has a share.
    #[must_use]
    pub fn complete(&self, layer: Option<usize>) -> bool {
        (0..self.records).all(|r| self.has(layer, r))
    }

    /// Score over the records that have a share; `None` without any.
    #[must_use]
    pub fn score(&self, rule: &Rule, layer: Option<usize>) -> Option<f64> {
        let row = self.shares.get(&layer)?;
        let nothing = Share::Sum(0.0);
        let scored = self.scored(layer);
        (!scored.is_empty()).then(|| rule.score(scored.into_iter(), |r| row[r].as_ref().unwrap_or(&nothing)))
    }

    /// How much better `winner` scores than `other` on the records both have, in the metric's units (positive: better),
    /// with its 95 % paired-bootstrap interval.
    #[must_use]
    pub fn margin(&self, rule: &Rule, winner: usize, other: usize) -> Option<(f64, [f64; 2])> {
        let (a, b) = (self.shares.get(&Some(winner))?, self.shares.get(&Some(other))?);
        let both: Vec<usize> = (0..self.records).filter(|&r| a[r].is_some() && b[r].is_some()).collect();
        if both.is_empty() {
            return None;
        }
        let nothing = Share::Sum(0.0);
        let sign = if rule.beats(0.0, 1.0) { -1.0 } else { 1.0 };
        let difference = |picks: &mut dyn Iterator<Item = usize>| {
            let picks: Vec<usize> = picks.map(|i| both[i]).collect();
            let of = |row: &[Option<Share>]| rule.score(picks.iter().copied(), |r| row[r].as_ref().unwrap_or(&nothing));
            sign * (of(a) - of(b))
        };
        let interval = crate::metrics::paired_interval(BOOTSTRAP_SEED, RESAMPLES, both.len(), |picks| {
            difference(&mut picks.iter().map(|&i| i as usize))
        });
        Some((difference(&mut (0..both.len())), interval))
    }
}
