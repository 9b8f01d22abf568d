//! Sixteen f32 lanes, whatever the machine: kernels are written once, generic over [`Simd`], and compiled for each
//! instruction set. All levels have the same lanes and the same IEEE operations (fused multiply-add included), so a kernel
//! gives the same bits on every level.
//!
//! A level's type is a token: it exists only where the level was detected (or needs no detection), which is what makes
//! calling its instructions sound. [`Isa`] holds the choice made at run time.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use bytemuck::{Pod, Zeroable};

/// Lanes of a vector, and of a [`Line`].
pub(crate) const LANES: usize = 16;

/// Sixteen floats on a cache line of their own: packed weights and keys are made of these, so no load straddles two lines.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; LANES]);

/// Sixteen pairs of bf16: the lower half of a word comes first in the sum.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub(crate) struct PairLine(pub(crate) [u32; LANES]);

/// Work that is compiled for every level: the arguments are fields, the code is `run`.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The work. Mark it and what it calls `#[inline(always)]`: only what is inlined is compiled for the level.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A level: operations on sixteen f32 lanes.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen f32.
    type V: Copy;
    /// Rows of x a micro-kernel holds in registers at most.
    const MAX_ROWS: usize;
    /// The same for one that widens bf16 weights in registers.
    const MAX_ROWS_OF_PAIRS: usize;
    /// Vectors of outputs it holds beside them: 1 or 2.
    const VECS: usize;

    /// Runs `kernel` compiled for this level.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// From memory.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// To memory.
    fn store(self, x: Self::V, to: &mut [f32; LANES]);
    /// a * b + c, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: b where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: b where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The bits of each lane shifted left by 23: an integer becomes an exponent.
    fn shift_to_exponent(self, x: Self::V) -> Self::V;
    /// The first bf16 of each pair, exactly.
    fn first_of_pairs(self, x: &[u32; LANES]) -> Self::V;
    /// The second bf16 of each pair, exactly.
    fn second_of_pairs(self, x: &[u32; LANES]) -> Self::V;
    /// acc + a.0 * b.0 + a.1 * b.1 for bf16 pairs; one instruction where there is one, else two `fma`.
    fn dot_pairs(self, acc: Self::V, a: u32, b: &[u32; LANES]) -> Self::V;
    /// table\[(code >> shift) & 15\] for each lane's code.
    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], codes: &[u32; LANES], shift: u32) -> Self::V {
        let mut lanes = [0.0; LANES];
        for i in 0..LANES {
            lanes[i] = table[(codes[i] >> shift & 15) as usize];
        }
        self.load(&lanes)
    }

    /// Rounded to the nearest bf16, halves to even.
    #[inline(always)]
    fn round_bf16(self, x: Self::V) -> Self::V {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        for lane in &mut lanes {
            *lane = f32::from_bits(super::matrix::round_bf16(*lane));
        }
        self.load(&lanes)
    }

    /// Neighbours rounded to bf16 and paired, the first of each pair in the lower half. Where it is one instruction, subnormal
    /// numbers become 0, as they count for in [`dot_pairs`](Self::dot_pairs).
    #[inline(always)]
    fn neighbours(self, x: &[f32; 2 * LANES]) -> [u32; LANES] {
        let mut pairs = [0; LANES];
        super::matrix::pairs_of_floats(x, &mut pairs);
        pairs
    }

    /// Lanes rounded to bf16 and paired, `first` in the lower halves.
    #[inline(always)]
    fn pairs(self, first: Self::V, second: Self::V) -> [u32; LANES] {
        let (mut a, mut b, mut pairs) = ([0.0; LANES], [0.0; LANES], [0; LANES]);
        self.store(first, &mut a);
        self.store(second, &mut b);
        for i in 0..LANES {
            pairs[i] = super::matrix::round_bf16(a[i]) >> 16 | super::matrix::round_bf16(b[i]);
        }
        pairs
    }

    /// Word `i` of array `j` and word `j` of array `i` change places.
    #[inline(always)]
    fn transpose(self, square: &mut [[u32; LANES]; LANES]) {
        let rows = *square;
        for (i, column) in square.iter_mut().enumerate() {
            for (word, row) in column.iter_mut().zip(&rows) {
                *word = row[i];
            }
        }
    }

    /// Asks for L2 to hold the cache line `bytes` bytes after `x`, which may lie outside of anything.
    fn prefetch<T: ?Sized>(self, x: &T, bytes: usize);
    /// Asks for the cache line `bytes` bytes after `x` to be taken from other cores, since it will be written.
    fn prefetch_to_write<T: ?Sized>(self, x: &T, bytes: usize);

    /// Lane sums, then a fixed tree.
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane; NaN lanes are passed over.
    #[inline(always)]
    fn max_lane(self, x: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        lanes.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
    }

    /// Up to sixteen values, the rest `fill`.
    #[inline(always)]
    fn load_part(self, x: &[f32], fill: f32) -> Self::V {
        // The whole vector is the common case; and a loop, for a copy of unknown length would be a call.
        if let Some(x) = x.as_array::<LANES>() {
            return self.load(x);
        }
        let mut lanes = [fill; LANES];
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = *x;
        }
        self.load(&lanes)
    }

    /// The first `to.len()` lanes, at most sixteen.
    #[inline(always)]
    fn store_part(self, x: Self::V, to: &mut [f32]) {
        if let Some(to) = to.as_mut_array::<LANES>() {
            return self.store(x, to);
        }
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        for (to, lane) in to.iter_mut().zip(lanes) {
            *to = lane;
        }
    }
}

/// Instruction sets, best first. What is detected is an upper bound; a lower one may be asked for (tests do).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; fused multiply-add from the C library where the target has none.
    Portable,
    /// Arm: 4 lanes a register, 32 registers.
    Neon,
    /// AVX2 and FMA: 8 lanes, 16 registers.
    Avx2Fma,
    /// AVX-512 F, BW, DQ, VL: 16 lanes, 32 registers.
    Avx512,
    /// And VDPBF16PS: two bf16 products a lane.
    Avx512Bf16,
}

impl Isa {
    /// Every level.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Neon, Self::Avx2Fma, Self::Avx512, Self::Avx512Bf16];

    /// The best level of this machine.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL.into_iter().filter(|isa| isa.available()).max().unwrap_or(Self::Portable)
    }

    /// True if this machine has it.
    #[must_use]
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::Neon::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Fma => avx2::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512::<false>::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => avx512::Avx512::<true>::detect().is_some(),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2Fma | Self::Avx512 | Self::Avx512Bf16 => false,
        }
    }

    /// As reports spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2Fma => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// True if bf16 products are one instruction.
    pub(crate) const fn has_dot(self) -> bool {
        matches!(self, Self::Avx512Bf16)
    }

    /// Runs a kernel that does not use [`Simd::dot_pairs`].
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => {}
            #[cfg(target_arch = "aarch64")]
            Self::Neon => {
                if let Some(s) = neon::Neon::detect() {
                    return s.run(kernel);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Fma => {
                if let Some(s) = avx2::Avx2::detect() {
                    return s.run(kernel);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => {
                if let Some(s) = avx512::Avx512::<false>::detect() {
                    return s.run(kernel);
                }
            }
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => {}
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2Fma | Self::Avx512 | Self::Avx512Bf16 => {}
        }
        portable::Portable.run(kernel)
    }

    /// Runs a kernel that uses [`Simd::dot_pairs`]: where there is such an instruction, and else (callers ask first) in
    /// plain Rust, so that it is not compiled for every level.
    pub(crate) fn run_dot<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if let (Self::Avx512Bf16, Some(s)) = (self, avx512::Avx512::<true>::detect()) {
            return s.run(kernel);
        }
        portable::Portable.run(kernel)
    }
}
