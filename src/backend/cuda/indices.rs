//! Small arrays of integers on the GPU (positions, token ids, page tables), kept for the next op that brings the same: each
//! layer of a model needs the same positions.

use super::driver::{Argument, Buffer, Element, Gpu};
use crate::error::Result;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Arrays that are kept: more than one layer uses.
const KEPT: usize = 8;

/// An array that is on the GPU.
#[derive(Debug, Clone)]
pub(super) struct Index(Arc<Buffer>);

impl Index {
    pub(super) fn read(&self) -> Argument<'_> {
        Argument::read(&self.0, Element::U32)
    }
}

#[derive(Debug, Default)]
pub(super) struct Indices {
    /// Newest first.
    kept: Mutex<VecDeque<(Vec<u32>, Index)>>,
}

impl Indices {
    /// `values` on the GPU. Found by comparing them all, which costs the host less than an upload and never mistakes one
    /// array for another.
    pub(super) fn get(&self, gpu: &Gpu, values: &[u32]) -> Result<Index> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(known, _)| known == values)
            && let Some(entry) = kept.remove(at)
        {
            let index = entry.1.clone();
            kept.push_front(entry);
            return Ok(index);
        }
        let index = Index(Arc::new(gpu.upload(values)?));
        kept.truncate(KEPT - 1);
        kept.push_front((values.to_vec(), index.clone()));
        Ok(index)
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
