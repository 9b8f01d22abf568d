//! N-gram counts of two sequences of symbols, and how many n-grams they share, for all orders at once.
//!
//! A symbol is a code point or the number of a word. The n-gram of the highest order that starts at a position packs
//! exactly into a `u128`, first symbol highest, so shorter n-grams are prefixes of it: sorting once sorts every order,
//! and shared n-grams are found by merging two sorted lists. Nothing is hashed, nothing can collide.

/// Counts for one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// N-grams of the hypothesis.
    pub(super) hypothesis: u64,
    /// N-grams of the reference.
    pub(super) reference: u64,
    /// Size of the intersection of the two multisets.
    pub(super) matching: u64,
}

/// Counts for orders 1 to `ORDER`. Every symbol + 1 must fit in 128 / `ORDER` bits: 21 for order 6 (any code point),
/// 32 for order 4, 64 for order 2.
pub(super) fn count<const ORDER: usize>(hypothesis: &[u32], reference: &[u32]) -> [Counts; ORDER] {
    let bits = 128 / ORDER;
    let hypothesis = sorted_grams::<ORDER>(hypothesis);
    let reference = sorted_grams::<ORDER>(reference);
    std::array::from_fn(|index| {
        let order = index + 1;
        // Keeps the first `order` symbols; the last of them is 0 where the sequence ended before it.
        let dropped = bits * (ORDER - order) + 128 % ORDER;
        let mut left = prefixes(&hypothesis, dropped, bits).peekable();
        let mut right = prefixes(&reference, dropped, bits).peekable();
        let mut counts = Counts { hypothesis: 0, reference: 0, matching: 0 };
        loop {
            match (left.peek(), right.peek()) {
                (None, None) => return counts,
                (Some(a), Some(b)) if a == b => {
                    counts.matching += 1;
                    counts.hypothesis += 1;
                    counts.reference += 1;
                    left.next();
                    right.next();
                }
                (Some(a), Some(b)) if a > b => {
                    counts.reference += 1;
                    right.next();
                }
                (None, Some(_)) => {
                    counts.reference += 1;
                    right.next();
                }
                (Some(_), _) => {
                    counts.hypothesis += 1;
                    left.next();
                }
            }
        }
    })
}

/// The n-grams of order `ORDER` at every position, in ascending order; at the end of the sequence filled up with 0.
/// They stand left-aligned in the `u128`.
fn sorted_grams<const ORDER: usize>(symbols: &[u32]) -> Vec<u128> {
    let bits = 128 / ORDER;
    let top = 128 - bits;
    let mut grams = Vec::with_capacity(symbols.len());
    let mut gram = 0u128;
    for &symbol in symbols.iter().rev() {
        // Shift the followers down by one symbol and clear what fell below the last one.
        gram = (gram >> bits) >> (128 % ORDER) << (128 % ORDER);
        gram |= (u128::from(symbol) + 1) << top;
        grams.push(gram);
    }
    grams.sort_unstable();
    grams
}

/// Those of `grams` that have a symbol at the end of their prefix, cut to it: `dropped` low bits fall away, `bits` are a symbol.
fn prefixes(grams: &[u128], dropped: usize, bits: usize) -> impl Iterator<Item = u128> {
    let symbol = u128::MAX >> (128 - bits);
    grams.iter().map(move |gram| gram >> dropped).filter(move |prefix| prefix & symbol != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// The definition: multisets of slices.
    fn naive(hypothesis: &[u32], reference: &[u32], order: usize) -> Counts {
        let bag = |symbols: &[u32]| {
            let mut bag: HashMap<Vec<u32>, u64> = HashMap::new();
            for gram in symbols.windows(order) {
                *bag.entry(gram.to_vec()).or_default() += 1;
            }
            bag
        };
        let (left, right) = (bag(hypothesis), bag(reference));
        Counts {
            hypothesis: left.values().sum(),
            reference: right.values().sum(),
            matching: left.iter().map(|(gram, &n)| n.min(right.get(gram).copied().unwrap_or(0))).sum(),
        }
    }

    fn all_orders<const ORDER: usize>(hypothesis: &[u32], reference: &[u32]) {
        for (index, counts) in count::<ORDER>(hypothesis, reference).iter().enumerate() {
            assert_eq!(*counts, naive(hypothesis, reference, index + 1), "order {}", index + 1);
        }
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            hypothesis in prop::collection::vec(prop_oneof![0u32..4, Just(0x10_ffff)], 0..30),
            reference in prop::collection::vec(prop_oneof![0u32..4, Just(0x10_ffff)], 0..30),
        ) {
            all_orders::<6>(&hypothesis, &reference);
            all_orders::<4>(&hypothesis, &reference);
            all_orders::<2>(&hypothesis, &reference);
        }
    }
}
