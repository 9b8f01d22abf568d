//! Sequences packed one behind the other, without padding.

/// Token sequences as the rows of one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token id of each row.
    pub ids: Vec<u32>,
    /// Position of each row within its sequence.
    pub positions: Vec<u32>,
    /// First row of each sequence, then the number of rows.
    pub starts: Vec<u32>,
}

impl Batch {
    /// Packs sequences of token ids, each from position 0.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self { ids: Vec::new(), positions: Vec::new(), starts: vec![0] };
        let mut rows = 0_u32;
        for ids in sequences {
            for (&id, position) in ids.iter().zip(0_u32..) {
                batch.ids.push(id);
                batch.positions.push(position);
                rows += 1;
            }
            batch.starts.push(rows);
        }
        batch
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Batch;

    #[test]
    fn sequences_stand_behind_each_other_with_their_own_positions() {
        let batch = Batch::pack([&[7_u32, 8, 9][..], &[5][..]]);
        assert_eq!(batch, Batch { ids: vec![7, 8, 9, 5], positions: vec![0, 1, 2, 0], starts: vec![0, 3, 4] });
    }
}
