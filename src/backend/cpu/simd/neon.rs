//! Arm NEON: a vector is four registers.
#![expect(unsafe_code, reason = "SIMD instructions: one of the places where unsafe is allowed")]

use super::{Kernel, LANES, Simd};
use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected as has;

/// Exists only on machines that have the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        has!("neon").then_some(Self(()))
    }
}

#[target_feature(enable = "neon")]
fn run<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
    kernel.run(s)
}

#[inline(always)]
fn zip(a: [float32x4_t; 4], b: [float32x4_t; 4], f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> [float32x4_t; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Neon {
    type V = [float32x4_t; 4];
    // 6 x 4 accumulators, 4 registers of weights, 1 of x: 29 of 32.
    const MAX_ROWS: usize = 6;
    const MAX_ROWS_OF_PAIRS: usize = Self::MAX_ROWS;
    const VECS: usize = 1;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists, so `detect` has seen the feature.
        unsafe { run(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        // SAFETY: NEON is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
        [0, 4, 8, 12].map(|i| unsafe { vld1q_f32(x.as_ptr().add(i)) })
    }

    #[inline(always)]
    fn store(self, x: Self::V, to: &mut [f32; LANES]) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: NEON is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), x) }
        }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        std::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        zip(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        zip(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        zip(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        zip(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        zip(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        zip(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }

    #[inline(always)]
    fn shift_to_exponent(self, x: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has NEON.
        x.map(|x| unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(x))) })
    }

    #[inline(always)]
    fn first_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        // SAFETY: NEON is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
        [0, 4, 8, 12].map(|i| unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vld1q_u32(x.as_ptr().add(i)))) })
    }

    #[inline(always)]
    fn second_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        // SAFETY: NEON is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
        [0, 4, 8, 12].map(|i| unsafe { vreinterpretq_f32_u32(vandq_u32(vld1q_u32(x.as_ptr().add(i)), vdupq_n_u32(0xffff_0000))) })
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: u32, b: &[u32; LANES]) -> Self::V {
        let acc = self.fma(self.splat(f32::from_bits(a << 16)), self.first_of_pairs(b), acc);
        self.fma(self.splat(f32::from_bits(a & 0xffff_0000)), self.second_of_pairs(b), acc)
    }

    #[inline(always)]
    fn prefetch<T: ?Sized>(self, _x: &T, _bytes: usize) {}

    #[inline(always)]
    fn prefetch_to_write<T: ?Sized>(self, _x: &T, _bytes: usize) {}
}
