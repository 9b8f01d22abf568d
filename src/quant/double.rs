//! Double quantisation: the magnitudes of NF4 blocks in 8 bits, less their mean, in blocks of 256, by the dynamic map of
//! "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861).

use std::sync::LazyLock;

/// Magnitudes that share a magnitude of their own.
pub const BLOCK: usize = 256;

/// Magnitudes in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Nested {
    /// One code a magnitude.
    pub codes: Vec<u8>,
    /// Largest magnitude of each block of 256.
    pub absmax: Vec<f32>,
    /// The mean, taken off before.
    pub offset: f32,
    /// Values of the codes.
    pub map: Vec<f32>,
}

impl Nested {
    /// Quantises the magnitudes of NF4 blocks.
    #[must_use]
    pub fn quantise(magnitudes: &[f32]) -> Self {
        let offset = mean(magnitudes);
        let mut codes = Vec::with_capacity(magnitudes.len());
        let mut absmax = Vec::with_capacity(magnitudes.len().div_ceil(BLOCK));
        for block in magnitudes.chunks(BLOCK) {
            let largest = block.iter().fold(0.0_f32, |m, v| m.max((v - offset).abs()));
            absmax.push(largest);
            let inverse = 1.0 / largest;
            // A block that is all 0 has the code 0, whatever that stands for: it is multiplied by 0.
            codes.extend(block.iter().map(|v| if largest == 0.0 { 0 } else { code((v - offset) * inverse) }));
        }
        Self { codes, absmax, offset, map: MAP.to_vec() }
    }

    /// The magnitudes of NF4 blocks: value of the code, times the block's magnitude, plus the offset, each rounded to f32.
    #[must_use]
    pub fn dequantise(&self) -> Vec<f32> {
        self.codes
            .chunks(BLOCK)
            .zip(&self.absmax)
            .flat_map(|(codes, scale)| {
                codes.iter().map(move |&code| self.map.get(usize::from(code)).copied().unwrap_or(0.0) * scale + self.offset)
            })
            .collect()
    }
}

/// Steps of the table below, as bitsandbytes' CPU code has it; its GPU code searches the map itself, which may give a
/// neighbouring code to what lies between two values.
const STEPS: f32 = 65535.0;

/// The code of a number in [-1, 1]: of the step it is nearest to.
fn code(x: f32) -> u8 {
    let step = (x.clamp(-1.0, 1.0) + 1.0) * (STEPS / 2.0) + 0.5;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0.5 and 65535.5: cut off on purpose")]
    let step = step as usize;
    NEAREST.get(step).copied().unwrap_or(u8::MAX)
}

/// For each of 65536 steps from -1 to 1 the code whose value is nearest.
static NEAREST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut nearest = Vec::with_capacity(65536);
    let mut code = 0_u8;
    for step in 0..65536_u32 {
        let x = f64::from(step) / f64::from(STEPS / 2.0) - 1.0;
        while code < u8::MAX && (f64::from(MAP[usize::from(code)]) + f64::from(MAP[usize::from(code) + 1])) / 2.0 < x {
            code += 1;
        }
        nearest.push(code);
    }
    nearest
});

/// The signed dynamic map: for each exponent e from 0 to 6 the middles of 2^e equal parts of [0.1, 1], times 10^(e - 6), with
/// both signs; and 0; and 1. In f32 as torch computes it.
pub static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..7_i32 {
        let parts: u16 = 1 << exponent;
        let scale = 10_f64.powi(exponent - 6);
        #[expect(clippy::cast_possible_truncation, reason = "torch multiplies f32 by the factor rounded to f32")]
        let scale = scale as f32;
        for part in 0..parts {
            let middle = (boundary(part, parts) + boundary(part + 1, parts)) / 2.0;
            values.extend([scale * middle, -scale * middle]);
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
});

/// torch.linspace(0.1, 1, parts + 1)[index]: from the nearer end, with fused multiply-add.
fn boundary(index: u16, parts: u16) -> f32 {
    let (start, end) = (0.1_f32, 1.0_f32);
    let step = (end - start) / f32::from(parts);
    if index < parts.div_ceil(2) { step.mul_add(f32::from(index), start) } else { (-step).mul_add(f32::from(parts - index), end) }
}

/// The mean as torch computes it on one thread (SumKernel.cpp): eight lanes, four partial sums, a cascade of four levels. For
/// fewer than 32768 numbers torch uses one thread always; beyond, its mean depends on their number in the last bits.
fn mean(values: &[f32]) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "torch divides by the count as f32")]
    let count = values.len() as f32;
    if values.is_empty() {
        return 0.0;
    }
    sum(values) / count
}

fn sum(values: &[f32]) -> f32 {
    if values.len() < 8 {
        let (scalars, _) = values.as_chunks::<1>();
        return row_sum(scalars)[0];
    }
    let (vectors, rest) = values.as_chunks::<8>();
    let lanes = row_sum(vectors);
    rest.iter().chain(&lanes).fold(0.0, |sum, x| sum + x)
}

/// Sums vectors lane by lane, every fourth into one partial sum.
fn row_sum<const LANES: usize>(vectors: &[[f32; LANES]]) -> [f32; LANES] {
    let (fours, rest) = vectors.as_chunks::<4>();
    let mut partial = cascade(fours);
    for vector in rest {
        add(&mut partial[0], vector);
    }
    let [mut first, others @ ..] = partial;
    for other in &others {
        add(&mut first, other);
    }
    first
}

fn add<const LANES: usize>(sum: &mut [f32; LANES], x: &[f32; LANES]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += x;
    }
}

/// Four running sums in four levels: each level takes over what the one below has summed in `1 << power` steps.
fn cascade<const LANES: usize>(rows: &[[[f32; LANES]; 4]]) -> [[f32; LANES]; 4] {
    const LEVELS: usize = 4;
    let bits = if rows.len() <= 1 { 0 } else { usize::BITS - (rows.len() - 1).leading_zeros() };
    let power = (bits / 4).max(4);
    let step = 1_usize << power;
    let mut levels = [[[0.0; LANES]; 4]; LEVELS];
    let whole = rows.len() / step * step;
    for (index, row) in rows[..whole].iter().enumerate() {
        for (sum, x) in levels[0].iter_mut().zip(row) {
            add(sum, x);
        }
        let done = index + 1;
        if done % step != 0 {
            continue;
        }
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; LANES]; 4]);
            for (sum, x) in levels[level].iter_mut().zip(&below) {
                add(sum, x);
            }
            if done >> (power * u32::try_from(level).unwrap_or(u32::MAX)) & (step - 1) != 0 {
                break;
            }
        }
    }
    for row in &rows[whole..] {
        for (sum, x) in levels[0].iter_mut().zip(row) {
            add(sum, x);
        }
    }
    let [mut total, upper @ ..] = levels;
    for level in &upper {
        for (sum, x) in total.iter_mut().zip(level) {
            add(sum, x);
        }
    }
    total
}
