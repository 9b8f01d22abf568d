//! Plain Rust: the meaning of every operation, and the fallback.

use super::{Kernel, LANES, Simd};

#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];
    const MAX_ROWS: usize = 4;
    const MAX_ROWS_OF_PAIRS: usize = Self::MAX_ROWS;
    const VECS: usize = 1;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }

    #[inline(always)]
    fn store(self, x: Self::V, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn shift_to_exponent(self, x: Self::V) -> Self::V {
        x.map(|x| f32::from_bits(x.to_bits() << 23))
    }

    #[inline(always)]
    fn first_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        x.map(|pair| f32::from_bits(pair << 16))
    }

    #[inline(always)]
    fn second_of_pairs(self, x: &[u32; LANES]) -> Self::V {
        x.map(|pair| f32::from_bits(pair & 0xffff_0000))
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
