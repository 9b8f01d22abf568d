//! e^x for softmax and SiLU, the same bits at every instruction set.

use super::CpuBackend;
use super::simd::{Kernel, LANES, Simd};

/// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^x to 2 ulp, denormal results included; 0 below -104, +inf above 88.73, NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series to r^7 (truncation 5e-9, a twelfth of an ulp); 2^n in two
/// halves so that neither leaves the range of f32.
#[inline(always)]
pub(super) fn lanes<S: Simd>(s: S, x: S::V) -> S::V {
    // Operand order: max and min give the second where either is NaN.
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.5), x));
    let (p, n) = parts(s, x);
    let half = s.sub(s.fma(n, s.splat(0.5), s.splat(ROUND)), s.splat(ROUND));
    s.mul(s.mul(p, exponent(s, half)), exponent(s, s.sub(n, half)))
}

/// The same for x up to 0, as softmax needs it: 2 ulp down to -87, and below that 2e-38 at most, which is nothing beside the
/// largest term of a softmax, 1.
#[inline(always)]
pub(super) fn below_zero<S: Simd>(s: S, x: S::V) -> S::V {
    let (p, n) = parts(s, s.max(s.splat(-87.0), x));
    s.mul(p, exponent(s, n))
}

/// (e^r, n).
#[inline(always)]
fn parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let round = s.splat(ROUND);
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), round), round);
    // ln 2 in two parts, the first so short that n times it is exact.
    let r = s.fma(n, s.splat(-355.0 / 512.0), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    (p, n)
}

/// 2^n for whole n from -126 to 127.
#[inline(always)]
fn exponent<S: Simd>(s: S, n: S::V) -> S::V {
    s.shift_to_exponent(s.add(n, s.splat(ROUND + 127.0)))
}

struct All<'a>(&'a mut [f32]);

impl Kernel for All<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.0.chunks_mut(LANES) {
            let y = lanes(s, s.load_part(x, 0.0));
            s.store_part(y, x);
        }
    }
}

/// e^x of each element, in place: the function that softmax and SiLU use, for tests of its accuracy.
pub fn exp(backend: &CpuBackend, x: &mut [f32]) {
    backend.isa.run(All(x));
}
