//! Memory of packed weights: mapped, in large pages where there are some, and used again. Fresh pages cost the system as much
//! as a product over a small matrix takes, and training maps some hundred matrices a step.

use super::simd::Line;
use crate::error::{Error, Result};
use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// A piece that is larger goes back to the system.
const MOST_BYTES: usize = 64 << 20;
/// Pieces that are kept at most.
const MOST_PIECES: usize = 16;

/// What was given back.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Vec<MmapMut>>);

/// Some lines; they go back to where they came from.
#[derive(Debug)]
pub(super) struct Mapped {
    /// None only while it is dropped.
    memory: Option<MmapMut>,
    spare: Arc<Spare>,
}

impl Spare {
    /// `lines` lines with anything in them.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    pub(super) fn lend(self: &Arc<Self>, lines: usize) -> Result<Mapped> {
        let bytes = lines.saturating_mul(size_of::<Line>());
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare.iter().position(|memory| memory.len() == bytes).map(|index| spare.swap_remove(index));
        drop(spare);
        let memory = found.map_or_else(|| map_lines(lines), Ok)?;
        Ok(Mapped { memory: Some(memory), spare: Arc::clone(self) })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Mapped {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take().filter(|memory| memory.len() <= MOST_BYTES) else { return };
        let mut spare = self.spare.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() == MOST_PIECES {
            spare.remove(0);
        }
        spare.push(memory);
    }
}

/// Zeroed memory of `lines` lines, in large pages where there are some.
///
/// # Errors
/// [`Error::Device`] when memory is short.
pub(super) fn map_lines(lines: usize) -> Result<MmapMut> {
    let bytes = lines.saturating_mul(size_of::<Line>());
    let memory = MmapMut::map_anon(bytes).map_err(|_| Error::Device {
        problem: format!("not enough memory for {bytes} bytes"),
        help: Some("use a smaller model or batch, or a machine with more memory".into()),
    })?;
    // Advice that is not taken costs speed and nothing else.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_the_same_size_comes_back() {
        let spare = Arc::new(Spare::default());
        let mut first = spare.lend(3).unwrap();
        let address = first.as_ptr();
        first[0] = 7;
        drop(first);
        let other = spare.lend(4).unwrap();
        assert_eq!(other.len(), 4 * size_of::<Line>());
        let again = spare.lend(3).unwrap();
        assert_eq!((again.as_ptr(), again[0]), (address, 7));
        let second = spare.lend(3).unwrap();
        assert_ne!(second.as_ptr(), address);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let spare = Arc::new(Spare::default());
        let pieces: Vec<Mapped> = (1..=2 * MOST_PIECES).map(|lines| spare.lend(lines).unwrap()).collect();
        drop(pieces);
        drop(spare.lend(MOST_BYTES / size_of::<Line>() + 1).unwrap());
        let kept: Vec<usize> = spare.0.lock().unwrap().iter().map(|memory| memory.len() / size_of::<Line>()).collect();
        assert_eq!(kept, Vec::from_iter(MOST_PIECES + 1..=2 * MOST_PIECES));
    }
}
