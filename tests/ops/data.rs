//! Seeded inputs.

use half::{bf16, f16};
use prunectl::tensor::{Dtype, HostTensor, SharedBytes};
use std::sync::Arc;

/// Values in [-1, 1), the same for the same seed.
pub(crate) fn floats(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| (bits(seed, i) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).collect()
}

/// Integers below `limit`.
pub(crate) fn indices(seed: u64, len: usize, limit: usize) -> Vec<u32> {
    (0..len as u64).map(|i| u32::try_from(bits(seed, i) % limit as u64).unwrap()).collect()
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn bits(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What `dtype` makes of `values`.
pub(crate) fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    values
        .iter()
        .map(|&x| match dtype {
            Dtype::F32 => x,
            Dtype::F16 => f16::from_f32(x).to_f32(),
            Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        })
        .collect()
}

/// A tensor as a file would hold it, at an odd address.
pub(crate) fn host(name: &str, shape: &[usize], values: &[f32], dtype: Dtype) -> HostTensor {
    let mut bytes = vec![0_u8];
    for &x in values {
        match dtype {
            Dtype::F32 => bytes.extend(x.to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
        }
    }
    let range = 1..bytes.len();
    let bytes = SharedBytes::new(Arc::new(bytes), range).unwrap();
    HostTensor { name: name.into(), file: "weights.safetensors".into(), dtype, shape: shape.to_vec(), bytes }
}

/// f64 of each.
pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}
