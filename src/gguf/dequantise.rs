//! Quantised blocks to f32, in the order of operations of ggml's reference, so that results agree bit for bit.
//!
//! In every format an element is `scale * code`, less or plus a minimum; formats differ in where the bits lie.

use super::tensor_type::TensorType;
use half::{bf16, f16};

/// Writes the elements of `blocks` (whole blocks of `kind`) to `out`.
///
/// `out` holds `blocks.len() / kind.block_bytes() * kind.block_elements()` elements; whatever is longer than the other
/// is left alone.
pub fn dequantise(kind: TensorType, blocks: &[u8], out: &mut [f32]) {
    match kind {
        TensorType::F32 => scalars::<4>(blocks, out, f32::from_le_bytes),
        TensorType::F16 => scalars::<2>(blocks, out, |b| f16::from_le_bytes(b).to_f32()),
        TensorType::Bf16 => scalars::<2>(blocks, out, |b| bf16::from_le_bytes(b).to_f32()),
        TensorType::Q4_0 => by_block::<18, 32>(blocks, out, q4_0),
        TensorType::Q4_1 => by_block::<20, 32>(blocks, out, q4_1),
        TensorType::Q5_0 => by_block::<22, 32>(blocks, out, q5_0),
        TensorType::Q5_1 => by_block::<24, 32>(blocks, out, q5_1),
        TensorType::Q8_0 => by_block::<34, 32>(blocks, out, q8_0),
        TensorType::Q4K => by_block::<144, 256>(blocks, out, q4_k),
        TensorType::Q5K => by_block::<176, 256>(blocks, out, q5_k),
        TensorType::Q6K => by_block::<210, 256>(blocks, out, q6_k),
    }
}

fn scalars<const BYTES: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    for (x, b) in out.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        *x = value(*b);
    }
}

fn by_block<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (b, x) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<ELEMENTS>().0) {
        block(b, x);
    }
}

/// The f16 at byte `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// A code less its zero point, exact in f32.
fn centred(code: u8, zero: i16) -> f32 {
    f32::from(i16::from(code) - zero)
}

/// scale f16 | 16 bytes: element j in the low nibble of byte j, element j + 16 in the high one; zero point 8.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for (j, &byte) in block[2..].iter().enumerate() {
        low[j] = centred(byte & 15, 8) * scale;
        high[j] = centred(byte >> 4, 8) * scale;
    }
}

/// scale f16 | minimum f16 | nibbles as in Q4_0.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (j, &byte) in block[4..].iter().enumerate() {
        low[j] = f32::from(byte & 15) * scale + minimum;
        high[j] = f32::from(byte >> 4) * scale + minimum;
    }
}

/// The two 5-bit codes whose low four bits share `byte`: fifth bits are bits j and j + 16 of `fifth`.
fn five_bits(byte: u8, fifth: &[u8], j: usize) -> (u8, u8) {
    let bit = |i: usize| (fifth[i / 8] >> (i % 8)) & 1;
    ((byte & 15) | (bit(j) << 4), (byte >> 4) | (bit(j + 16) << 4))
}

/// scale f16 | fifth bits u32 | nibbles as in Q4_0; zero point 16.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for (j, &byte) in block[6..].iter().enumerate() {
        let (a, b) = five_bits(byte, &block[2..6], j);
        low[j] = centred(a, 16) * scale;
        high[j] = centred(b, 16) * scale;
    }
}

/// scale f16 | minimum f16 | fifth bits u32 | nibbles as in Q4_0.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (j, &byte) in block[8..].iter().enumerate() {
        let (a, b) = five_bits(byte, &block[4..8], j);
        low[j] = f32::from(a) * scale + minimum;
        high[j] = f32::from(b) * scale + minimum;
    }
}

/// scale f16 | 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (x, &byte) in out.iter_mut().zip(&block[2..]) {
        *x = f32::from(byte.cast_signed()) * scale;
    }
}

/// The 6-bit scale and minimum of group `group` (of 8): the first four lie in the low six bits of bytes 0..4 and 4..8,
/// the others in the nibbles of bytes 8..12 with their upper two bits on top of the first eight bytes.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        ((packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4), (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

/// scale f16 | scale of minimums f16 | 12 bytes of group scales | 128 bytes: groups 2p and 2p + 1 share 32 bytes.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, scale_of_minimums) = (half_at(block, 0), half_at(block, 2));
    let (packed, codes) = (&block[4..16], &block[16..]);
    for (group, x) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = scale_and_minimum(packed, group);
        let (s, m) = (scale * s, scale_of_minimums * m);
        let shift = 4 * (group % 2);
        for (x, byte) in x.iter_mut().zip(&codes[32 * (group / 2)..]) {
            *x = s * f32::from((byte >> shift) & 15) - m;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the codes: bit `group` of byte l belongs to element l of the group.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, scale_of_minimums) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, x) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = scale_and_minimum(packed, group);
        let (s, m) = (scale * s, scale_of_minimums * m);
        let shift = 4 * (group % 2);
        for ((x, byte), fifth) in x.iter_mut().zip(&codes[32 * (group / 2)..]).zip(fifth) {
            *x = s * f32::from(((byte >> shift) & 15) | (((fifth >> group) & 1) << 4)) - m;
        }
    }
}

/// 128 bytes of low nibbles | 64 bytes of upper bit pairs | 16 signed scales | scale f16; zero point 32.
/// Each half of the block holds 128 elements as four runs of 32 that share bytes: runs 0 and 2 the first 32 bytes of
/// nibbles, 1 and 3 the next; run r the bit pair r of the upper bits.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (run, x) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (part, run) = (run / 4, run % 4);
        let low = &block[64 * part + 32 * (run % 2)..];
        let upper = &block[128 + 32 * part..];
        let scales = &block[192 + 8 * part + 2 * run..];
        for (l, x) in x.iter_mut().enumerate() {
            let code = ((low[l] >> (4 * (run / 2))) & 15) | (((upper[l] >> (2 * run)) & 3) << 4);
            *x = scale * f32::from(scales[l / 16].cast_signed()) * centred(code, 32);
        }
    }
}
