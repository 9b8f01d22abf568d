//! The NF4 codec: numbers to codes and back.

use rayon::prelude::*;

/// Numbers that share a magnitude.
pub const BLOCK: usize = 64;

/// The values of the codes 0-15 (QLoRA, appendix E; to the bit as bitsandbytes has them).
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Half-way between neighbours: a number up to and including it takes the lower code.
const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (CODEBOOK[i] + CODEBOOK[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

/// The code of zero.
const ZERO: u8 = 7;

/// Smallest magnitude that is divided by: below it, all is nearly 0.
const SMALLEST: f32 = 1e-38;

/// Blocks that one task takes.
const TASK_BLOCKS: usize = 256;

/// Numbers as NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// Two codes a byte, the first in the upper half; the last byte of an odd number of them is filled with the code of 0.
    pub codes: Vec<u8>,
    /// Largest magnitude of each block of 64, the last block being what is left.
    pub absmax: Vec<f32>,
}

/// Quantises finite numbers. An incomplete last block is *divided* by its magnitude, which is at least 1e-38, while the
/// others are multiplied by the inverse: the two differ in the last bit, and so does bitsandbytes.
#[must_use]
pub fn quantise(values: &[f32]) -> Quantised {
    let mut codes = vec![0; values.len().div_ceil(2)];
    let mut absmax = vec![0.0; values.len().div_ceil(BLOCK)];
    codes
        .par_chunks_mut(TASK_BLOCKS * BLOCK / 2)
        .zip(absmax.par_chunks_mut(TASK_BLOCKS))
        .zip(values.par_chunks(TASK_BLOCKS * BLOCK))
        .for_each(|((codes, absmax), values)| {
            for ((codes, absmax), values) in codes.chunks_mut(BLOCK / 2).zip(absmax).zip(values.chunks(BLOCK)) {
                *absmax = block(values, codes);
            }
        });
    Quantised { codes, absmax }
}

/// Codes of one block, and its magnitude.
fn block(values: &[f32], codes: &mut [u8]) -> f32 {
    let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let Some(values) = values.as_array::<BLOCK>() else {
        let largest = largest.max(SMALLEST);
        let code_of = |v: &f32| code((v / largest).clamp(-1.0, 1.0));
        for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
            *byte = code_of(&pair[0]) << 4 | pair.get(1).map_or(ZERO, code_of);
        }
        return largest;
    };
    let inverse = 1.0 / largest.max(SMALLEST);
    for (byte, [first, second]) in codes.iter_mut().zip(values.as_chunks::<2>().0) {
        *byte = code((first * inverse).clamp(-1.0, 1.0)) << 4 | code((second * inverse).clamp(-1.0, 1.0));
    }
    largest
}

/// The code of a number in [-1, 1]: how many midpoints lie below it. Counting all of them needs no branch.
#[inline]
fn code(x: f32) -> u8 {
    MIDPOINTS.iter().map(|midpoint| u8::from(*midpoint < x)).sum()
}

/// Numbers `first..first + out.len()` of a quantised run: code's value times block's magnitude, rounded once to f32.
pub fn dequantise(codes: &[u8], absmax: &[f32], first: usize, out: &mut [f32]) {
    let mut at = first;
    let mut rest = out;
    while !rest.is_empty() {
        // To the end of the block.
        let (part, after) = rest.split_at_mut(rest.len().min(BLOCK - at % BLOCK));
        let scale = absmax[at / BLOCK];
        for (i, out) in part.iter_mut().enumerate() {
            let byte = codes[(at + i) / 2];
            let code = if (at + i).is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            *out = CODEBOOK[usize::from(code)] * scale;
        }
        at += part.len();
        rest = after;
    }
}
