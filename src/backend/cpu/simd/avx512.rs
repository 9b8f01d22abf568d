//! AVX-512, with (`Avx512<true>`) or without VDPBF16PS.
#![expect(unsafe_code, reason = "SIMD instructions: one of the places where unsafe is allowed")]

use super::super::matrix::{pairs_of_floats, round_bf16};
use super::{Kernel, LANES, Simd};
use std::arch::x86_64::*;
use std::is_x86_feature_detected as has;

/// Exists only on machines that have the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    pub(super) fn detect() -> Option<Self> {
        let base = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx2") && has!("fma");
        (base && (!BF16 || has!("avx512bf16"))).then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run_plain<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
    kernel.run(s)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn run_bf16<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
    kernel.run(s)
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    // 14 x 2 accumulators, 2 vectors of weights, 1 of x: 31 of 32 registers.
    const MAX_ROWS: usize = 14;
    // 13 x 2 accumulators, 2 vectors of weights, 1 of x, 1 mask: 30. With 14 rows the compiler spills.
    const MAX_ROWS_OF_PAIRS: usize = 13;
    const VECS: usize = 2;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        if BF16 {
            // SAFETY: `self` exists, so `detect` has seen all these features.
            unsafe { run_bf16(self, kernel) }
        } else {
            // SAFETY: `self` exists, so `detect` has seen all these features.
            unsafe { run_plain(self, kernel) }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        // SAFETY: AVX-512 F is there (`self` exists); the array has the 64 bytes that are read, in any alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: Self::V, to: &mut [f32; LANES]) {
        // SAFETY: AVX-512 F is there (`self` exists); the array has the 64 bytes that are written, in any alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F. MAXPS gives its second operand where either is NaN.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F. MINPS gives its second operand where either is NaN.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn shift_to_exponent(self, x: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX-512 F.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(x))) }
    }

    #[inline(always)]
    fn first_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        // SAFETY: AVX-512 F is there (`self` exists); the array has the 64 bytes that are read, in any alignment.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn second_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        // SAFETY: AVX-512 F is there (`self` exists); the array has the 64 bytes that are read, in any alignment.
        unsafe {
            let upper = _mm512_set1_epi32(i32::from_ne_bytes(0xffff_0000_u32.to_ne_bytes()));
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(x.as_ptr().cast()), upper))
        }
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: u32, b: &[u32; LANES]) -> Self::V {
        if BF16 {
            // SAFETY: AVX512-BF16 is there (`Avx512<true>` exists); the array has the 64 bytes that are read, in any
            // alignment; __m512i and __m512bh are 64 plain bytes both.
            unsafe {
                let a = _mm512_set1_epi32(i32::from_ne_bytes(a.to_ne_bytes()));
                let b = _mm512_loadu_si512(b.as_ptr().cast());
                _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
            }
        } else {
            let acc = self.fma(self.splat(f32::from_bits(a << 16)), self.first_of_pairs(b), acc);
            self.fma(self.splat(f32::from_bits(a & 0xffff_0000)), self.second_of_pairs(b), acc)
        }
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], codes: &[u32; LANES], shift: u32) -> Self::V {
        // SAFETY: AVX-512 F is there (`self` exists); both arrays have the 64 bytes that are read, in any alignment. VPERMPS
        // looks at the lower four bits of an index.
        unsafe {
            let codes = _mm512_srl_epi32(_mm512_loadu_si512(codes.as_ptr().cast()), _mm_cvtsi32_si128(shift.cast_signed()));
            _mm512_permutexvar_ps(codes, _mm512_loadu_ps(table.as_ptr()))
        }
    }

    #[inline(always)]
    fn neighbours(self, x: &[f32; 2 * LANES]) -> [u32; LANES] {
        let mut pairs = [0; LANES];
        if BF16 {
            // SAFETY: AVX512-BF16 is there (`Avx512<true>` exists); `x` has the 128 bytes and `pairs` the 64 that are touched, in
            // any alignment; __m512bh and __m512i are 64 plain bytes both.
            unsafe {
                let (low, high) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES)));
                let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), halves);
            }
        } else {
            pairs_of_floats(x, &mut pairs);
        }
        pairs
    }

    #[inline(always)]
    fn pairs(self, first: Self::V, second: Self::V) -> [u32; LANES] {
        let mut pairs = [0; LANES];
        if BF16 {
            // Element 2 i of the result is lane i of `first`, element 2 i + 1 lane i of `second`.
            const ORDER: [u16; 32] = [
                0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                31,
            ];
            // SAFETY: AVX512-BF16 is there (`Avx512<true>` exists), and AVX-512 BW; ORDER and `pairs` have the 64 bytes that
            // are touched, in any alignment; __m512bh and __m512i are 64 plain bytes both.
            unsafe {
                let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                let ordered = _mm512_permutexvar_epi16(_mm512_loadu_si512(ORDER.as_ptr().cast()), halves);
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), ordered);
            }
        } else {
            let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
            self.store(first, &mut a);
            self.store(second, &mut b);
            for i in 0..LANES {
                pairs[i] = round_bf16(a[i]) >> 16 | round_bf16(b[i]);
            }
        }
        pairs
    }

    #[inline(always)]
    fn transpose(self, square: &mut [[u32; LANES]; LANES]) {
        // SAFETY: AVX-512 F is there (`self` exists); each array has the 64 bytes that are read and written, in any alignment.
        unsafe {
            // Squares of 4 x 4 turned: quads[q][c] has words c, c + 4, c + 8 and c + 12 of rows 4 q to 4 q + 3.
            let mut quads = [[_mm512_setzero_si512(); 4]; 4];
            for (quad, rows) in quads.iter_mut().zip(square.as_chunks::<4>().0) {
                let (a, b) = (_mm512_loadu_si512(rows[0].as_ptr().cast()), _mm512_loadu_si512(rows[1].as_ptr().cast()));
                let (c, d) = (_mm512_loadu_si512(rows[2].as_ptr().cast()), _mm512_loadu_si512(rows[3].as_ptr().cast()));
                let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
                *quad = [
                    _mm512_unpacklo_epi64(ab, cd),
                    _mm512_unpackhi_epi64(ab, cd),
                    _mm512_unpacklo_epi64(ab_high, cd_high),
                    _mm512_unpackhi_epi64(ab_high, cd_high),
                ];
            }
            // And the 4 x 4 squares among each other.
            for i in 0..4 {
                let [a, b, c, d] = [quads[0][i], quads[1][i], quads[2][i], quads[3][i]];
                let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
                let (ab_high, cd_high) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
                _mm512_storeu_si512(square[i].as_mut_ptr().cast(), _mm512_shuffle_i32x4::<0x88>(ab, cd));
                _mm512_storeu_si512(square[i + 4].as_mut_ptr().cast(), _mm512_shuffle_i32x4::<0xdd>(ab, cd));
                _mm512_storeu_si512(square[i + 8].as_mut_ptr().cast(), _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high));
                _mm512_storeu_si512(square[i + 12].as_mut_ptr().cast(), _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high));
            }
        }
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
