//! Weights that are not numbers. One NaN makes every score NaN, so it is named before anything is computed.

use super::folder::ModelFolder;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor};
use rayon::prelude::*;

/// Elements looked at between two chances to stop: large enough to vectorise, small enough to share out.
const CHUNK: usize = 1 << 16;

impl ModelFolder {
    /// Reads every weight once (in parallel, about as fast as the memory or disk gives them).
    ///
    /// # Errors
    /// [`Error::Data`] naming the first tensor, by name, with a NaN or an infinity, and the element.
    pub fn check_finite(&self) -> Result<()> {
        let tensors: Vec<&HostTensor> = self.used().collect();
        match tensors.par_iter().find_map_first(|tensor| first_not_finite(tensor).map(|element| (tensor, element))) {
            None => Ok(()),
            Some((tensor, element)) => {
                let mut value = Vec::new();
                tensor.extend_f32(element..element + 1, &mut value);
                let kind = if value.iter().any(|v| v.is_nan()) { "NaN" } else { "infinite" };
                let place = place(&tensor.shape, element);
                Err(Error::data(&tensor.file, format!("tensor {}", tensor.name), format!("element {place:?} is {kind}"))
                    .with_help("the model is damaged, or its training diverged: such a weight makes every result NaN"))
            }
        }
    }
}

/// Index of the first element that is NaN or infinite.
fn first_not_finite(tensor: &HostTensor) -> Option<usize> {
    let bytes = tensor.bytes.as_slice();
    match tensor.dtype {
        Dtype::F32 => first(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7F80_0000 == 0x7F80_0000),
        Dtype::F16 => first(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7C00 == 0x7C00),
        Dtype::Bf16 => first(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7F80 == 0x7F80),
    }
}

/// First element of `SIZE` bytes for which `bad` holds. An exponent of all ones is NaN or infinity, so this is an integer
/// test, which vectorises; a chunk is searched element by element only once it is known to hold one.
fn first<const SIZE: usize>(bytes: &[u8], bad: impl Fn([u8; SIZE]) -> bool + Sync) -> Option<usize> {
    let elements = bytes.as_chunks::<SIZE>().0;
    elements.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, part)| {
        let any = part.iter().fold(false, |any, e| any | bad(*e));
        any.then(|| part.iter().position(|e| bad(*e)).map(|at| chunk * CHUNK + at)).flatten()
    })
}

/// Row-major index -> one index an axis.
fn place(shape: &[usize], mut element: usize) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for (index, extent) in place.iter_mut().zip(shape).rev() {
        *index = element % extent.max(&1);
        element /= extent.max(&1);
    }
    place
}
