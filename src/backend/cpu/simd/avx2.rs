//! AVX2 with FMA: a vector is two registers.
#![expect(unsafe_code, reason = "SIMD instructions: one of the places where unsafe is allowed")]

use super::{Kernel, LANES, Simd};
use std::arch::x86_64::*;
use std::is_x86_feature_detected as has;

/// Exists only on machines that have the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (has!("avx2") && has!("fma")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn run<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
    kernel.run(s)
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    // 6 x 2 accumulators, 2 registers of weights, 1 of x: 15 of 16.
    const MAX_ROWS: usize = 6;
    const MAX_ROWS_OF_PAIRS: usize = Self::MAX_ROWS;
    const VECS: usize = 1;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists, so `detect` has seen both features.
        unsafe { run(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        // SAFETY: AVX2 is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, x: Self::V, to: &mut [f32; LANES]) {
        // SAFETY: AVX2 is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA. MAXPS gives its second operand where either is NaN.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA. MINPS gives its second operand where either is NaN.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn shift_to_exponent(self, x: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        x.map(|x| unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(x))) })
    }

    #[inline(always)]
    fn first_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        // SAFETY: AVX2 is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
        [0, 8].map(|i| unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(x.as_ptr().add(i).cast()))) })
    }

    #[inline(always)]
    fn second_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        // SAFETY: AVX2 is there (`self` exists); the array has the 64 bytes that are touched, in any alignment.
        [0, 8].map(|i| unsafe {
            let upper = _mm256_set1_epi32(i32::from_ne_bytes(0xffff_0000_u32.to_ne_bytes()));
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(x.as_ptr().add(i).cast()), upper))
        })
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: u32, b: &[u32; LANES]) -> Self::V {
        let acc = self.fma(self.splat(f32::from_bits(a << 16)), self.first_of_pairs(b), acc);
        self.fma(self.splat(f32::from_bits(a & 0xffff_0000)), self.second_of_pairs(b), acc)
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], codes: &[u32; LANES], shift: u32) -> Self::V {
        let [low, high] = self.load(table);
        // SAFETY: AVX2 is there (`self` exists); the array has the 64 bytes that are touched, in any alignment. VPERMPS looks
        // at the lower three bits of an index; the fourth, moved to the sign, chooses the half of the table.
        [0, 8].map(|i| unsafe {
            let codes = _mm256_loadu_si256(codes.as_ptr().add(i).cast());
            let codes = _mm256_srl_epi32(codes, _mm_cvtsi32_si128(shift.cast_signed()));
            let (low, high) = (_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes));
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
        })
    }

    #[inline(always)]
    fn prefetch<T: ?Sized>(self, x: &T, bytes: usize) {
        let at = std::ptr::from_ref(x).cast::<i8>().wrapping_add(bytes);
        // SAFETY: PREFETCHT1 reads nothing that the program could observe and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at) }
    }

    #[inline(always)]
    fn prefetch_to_write<T: ?Sized>(self, x: &T, bytes: usize) {
        let at = std::ptr::from_ref(x).cast::<i8>().wrapping_add(bytes);
        // SAFETY: PREFETCHW changes nothing that the program could observe and never faults, wherever it points; processors
        // without it take it for a no-operation.
        unsafe { std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
}
