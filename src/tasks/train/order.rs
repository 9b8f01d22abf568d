//! Which examples make which update: the order of each epoch, drawn from the seed alone, and its cut into updates.

use crate::random::{SplitMix64, shuffle};

/// How the examples of an epoch are put in order and cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A new order each epoch, from this seed; `None` keeps the data's.
    pub shuffle: Option<u64>,
    /// Put examples of like length into the same update.
    pub group_by_length: bool,
    /// Fill packs of at most this many tokens; an update then counts packs instead of examples.
    pub pack: Option<usize>,
    /// Examples (or packs) an update: batch times accumulation.
    pub per_update: usize,
}

/// Examples whose lengths are compared when they are grouped, in updates: as many as transformers' sampler takes.
const GROUPED_UPDATES: usize = 50;

impl Order {
    /// The updates of epoch `epoch`: indices into `lengths`, which are tokens an example. Every example occurs once; the
    /// last update may be smaller.
    #[must_use]
    pub fn epoch(&self, lengths: &[usize], epoch: u64) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        if let Some(seed) = self.shuffle {
            shuffle(&mut order, epoch_seed(seed, epoch));
        }
        if self.group_by_length {
            self.group(&mut order, lengths);
        }
        let per_update = self.per_update.max(1);
        match self.pack {
            None => order.chunks(per_update).map(<[usize]>::to_vec).collect(),
            Some(room) => packs(&order, lengths, room).chunks(per_update).map(<[Vec<usize>]>::concat).collect(),
        }
    }

    /// Stretches of the order are sorted by length, longest first, and the longest example of all comes first: if memory
    /// is short, that shows at once.
    fn group(&self, order: &mut [usize], lengths: &[usize]) {
        let per_update = self.per_update.max(1);
        let stretch = (order.len() / (4 * per_update)).clamp(1, GROUPED_UPDATES) * per_update;
        for part in order.chunks_mut(stretch) {
            part.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
        }
        // Each stretch begins with its longest.
        let longest = (0..order.len()).step_by(stretch).rev().max_by_key(|&at| lengths[order[at]]);
        if let Some(at) = longest {
            order.swap(0, at);
        }
    }
}

/// Neighbours in the order, as many as fit. Nothing is gained by a cleverer fit: no pack is padded.
fn packs(order: &[usize], lengths: &[usize], room: usize) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut filled = usize::MAX;
    for &index in order {
        if filled.saturating_add(lengths[index]) > room {
            packs.push(Vec::new());
            filled = 0;
        }
        filled += lengths[index];
        if let Some(pack) = packs.last_mut() {
            pack.push(index);
        }
    }
    packs
}

/// The seed of an epoch's shuffle: neighbouring seeds share no epoch.
fn epoch_seed(seed: u64, epoch: u64) -> u64 {
    SplitMix64::new(SplitMix64::new(seed).next_u64().wrapping_add(epoch)).next_u64()
}

/// Cuts an update into micro-batches, in order: consecutive examples with at most `rows` tokens together (one example may
/// have more).
#[must_use]
pub fn micro_batches<'a>(update: &'a [usize], lengths: &[usize], rows: usize) -> Vec<&'a [usize]> {
    let mut parts = Vec::new();
    let (mut first, mut filled) = (0, 0);
    for (at, &index) in update.iter().enumerate() {
        if at > first && filled + lengths[index] > rows {
            parts.push(&update[first..at]);
            (first, filled) = (at, 0);
        }
        filled += lengths[index];
    }
    if first < update.len() {
        parts.push(&update[first..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(shuffle: Option<u64>, group_by_length: bool, pack: Option<usize>) -> Order {
        Order { shuffle, group_by_length, pack, per_update: 4 }
    }

    const LENGTHS: [usize; 11] = [5, 3, 9, 1, 7, 7, 2, 8, 4, 6, 10];

    #[test]
    fn every_example_occurs_once_an_epoch_in_whatever_order() {
        for order in
            [order(None, false, None), order(Some(7), false, None), order(Some(7), true, None), order(Some(7), true, Some(12))]
        {
            for epoch in 0..3 {
                let mut all = order.epoch(&LENGTHS, epoch).concat();
                all.sort_unstable();
                assert_eq!(all, (0..11).collect::<Vec<_>>(), "{order:?}");
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let first = order(Some(7), false, None).epoch(&LENGTHS, 0);
        assert_eq!(first, order(Some(7), false, None).epoch(&LENGTHS, 0));
        assert_ne!(first, order(Some(7), false, None).epoch(&LENGTHS, 1));
        assert_ne!(first, order(Some(8), false, None).epoch(&LENGTHS, 0));
        assert_eq!(order(None, false, None).epoch(&LENGTHS, 5), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10]]);
    }

    #[test]
    fn grouping_puts_like_lengths_together_and_the_longest_first() {
        let lengths: Vec<usize> = (0..400).map(|i| 1 + i * 37 % 101).collect();
        let spread = |updates: &[Vec<usize>]| -> usize {
            updates
                .iter()
                .map(|u| u.iter().map(|&i| lengths[i]).max().unwrap() - u.iter().map(|&i| lengths[i]).min().unwrap())
                .sum()
        };
        let grouped = order(Some(1), true, None).epoch(&lengths, 0);
        assert!(spread(&grouped) * 4 < spread(&order(Some(1), false, None).epoch(&lengths, 0)));
        assert_eq!(lengths[grouped[0][0]], 101);
    }

    #[test]
    fn packs_hold_what_fits_and_an_update_counts_packs() {
        let order = Order { shuffle: None, group_by_length: false, pack: Some(12), per_update: 2 };
        // 5 + 3 | 9 + 1 | 7 | 7 + 2 | 8 + 4 | 6 | 10
        assert_eq!(order.epoch(&LENGTHS, 0), [vec![0, 1, 2, 3], vec![4, 5, 6], vec![7, 8, 9], vec![10]]);
    }

    #[test]
    fn micro_batches_keep_the_order_and_the_limit() {
        assert_eq!(micro_batches(&[0, 1, 2, 3, 4], &LENGTHS, 10), [&[0, 1][..], &[2, 3], &[4]]);
        assert_eq!(micro_batches(&[10, 0], &LENGTHS, 4), [&[10][..], &[0]]);
        assert!(micro_batches(&[], &LENGTHS, 4).is_empty());
    }
}
