//! Seeded random numbers, and a shuffle, that never change: the same seed gives the same on every machine and in every release.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) as a counter-based
/// generator: the n-th number depends on the seed and n alone.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The generator's sequence for `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next of 2^64 equally likely numbers.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (which is not 0), all equally likely: numbers of the incomplete last stretch are drawn again.
    pub fn below(&mut self, bound: u64) -> u64 {
        let excess = (u64::MAX % bound + 1) % bound;
        loop {
            let drawn = self.next_u64();
            if drawn <= u64::MAX - excess {
                return drawn % bound;
            }
        }
    }
}

/// Shuffles in place, Fisher and Yates's way: for i from the last index down to 1, swap i with a number in 0..=i.
pub fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut random = SplitMix64::new(seed);
    for i in (1..items.len()).rev() {
        let j = random.below(i as u64 + 1);
        items.swap(i, usize::try_from(j).unwrap_or(i));
    }
}

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): block n of a stream
/// depends on seed, stream and n alone, so that masks and initial values are the same in any order and on any device.
#[derive(Debug, Clone, Copy)]
pub struct Philox4x32 {
    key: [u32; 2],
    stream: [u32; 2],
}

impl Philox4x32 {
    /// Stream number `stream` of `seed`.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: words(seed), stream: words(stream) }
    }

    /// Block `index` of the stream: four of 2^32 equally likely numbers each. The counter is `index`, then the stream, both
    /// low word first.
    #[must_use]
    #[inline]
    pub fn block(&self, index: u64) -> [u32; 4] {
        let [low, high] = words(index);
        philox([low, high, self.stream[0], self.stream[1]], self.key)
    }
}

/// Low and high word.
#[inline]
pub(crate) fn words(x: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    let words = [x as u32, (x >> 32) as u32];
    words
}

/// Ten rounds.
#[inline]
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [low_0, high_0] = words(0xd251_1f53 * u64::from(counter[0]));
        let [low_1, high_1] = words(0xcd9e_8d57 * u64::from(counter[2]));
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::philox;

    /// The authors' known answers (Random123, kat_vectors: philox4x32 10).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }
}
