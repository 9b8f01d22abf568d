//! What this machine can do at most: fused multiply-adds, bf16 products and bytes read, on the backend's own threads and
//! instruction set. The yardstick of `prunectl bench`.

use super::CpuBackend;
use super::simd::{Kernel, LANES, Line, Simd};
use bytemuck::Zeroable;
use std::hint::black_box;
use std::time::Instant;

/// Sums in flight: enough to hide the latency of every unit.
const SUMS: usize = 20;

struct MultiplyAdds {
    turns: usize,
}

impl Kernel for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
        let mut sums = [s.splat(black_box(1.0)); SUMS];
        for _ in 0..self.turns {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        s.sum(sums.into_iter().fold(s.splat(0.0), |all, sum| s.add(all, sum)))
    }
}

struct Dots {
    turns: usize,
}

impl Kernel for Dots {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let a = black_box(0x3e80_3e80);
        let b = black_box([0x3f00_3f00; LANES]);
        let mut sums = [s.splat(black_box(1.0)); SUMS];
        for _ in 0..self.turns {
            for sum in &mut sums {
                *sum = s.dot_pairs(*sum, a, &b);
            }
        }
        s.sum(sums.into_iter().fold(s.splat(0.0), |all, sum| s.add(all, sum)))
    }
}

struct Read<'a>(&'a [Line]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 8];
        for lines in self.0.as_chunks::<8>().0 {
            for (sum, line) in sums.iter_mut().zip(lines) {
                s.prefetch(line, 64 * size_of::<Line>());
                *sum = s.max(*sum, s.load(&line.0));
            }
        }
        s.sum(sums.into_iter().fold(s.splat(0.0), |all, sum| s.add(all, sum)))
    }
}

/// Memory to read from, larger than caches.
pub struct ReadBuffer(Vec<Line>);

impl ReadBuffer {
    /// `bytes` of it.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(vec![Line([black_box(1.0); LANES]); bytes / size_of::<Line>()])
    }
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self(vec![Zeroable::zeroed(); 8])
    }
}

impl CpuBackend {
    /// f32 FLOP/s of all threads in independent fused multiply-adds (two FLOPs each), for some milliseconds.
    #[must_use]
    pub fn peak_f32(&self) -> f64 {
        self.rate(|turns| self.isa.run(MultiplyAdds { turns }))
    }

    /// bf16 FLOP/s of all threads: the dot instruction where there is one (four FLOPs a lane), else as this backend
    /// computes bf16, widened.
    #[must_use]
    pub fn peak_bf16(&self) -> f64 {
        2.0 * self.rate(|turns| if self.isa.has_dot() { self.isa.run_dot(Dots { turns }) } else { self.isa.run(Dots { turns }) })
    }

    fn rate(&self, work: impl Fn(usize) -> f32 + Sync) -> f64 {
        let turns = 100_000;
        let tasks = 4 * self.threads();
        let start = Instant::now();
        self.pool.run(tasks, &|_| {
            black_box(work(turns));
        });
        (tasks * turns * SUMS * LANES * 2) as f64 / start.elapsed().as_secs_f64()
    }

    /// Bytes a second that all threads read from memory.
    #[must_use]
    pub fn peak_read(&self, buffer: &ReadBuffer) -> f64 {
        let chunk = buffer.0.len().div_ceil(8 * self.threads()).next_multiple_of(8);
        let start = Instant::now();
        self.pool.run(buffer.0.len().div_ceil(chunk), &|index| {
            let end = ((index + 1) * chunk).min(buffer.0.len());
            black_box(self.isa.run(Read(&buffer.0[index * chunk..end])));
        });
        size_of_val(buffer.0.as_slice()) as f64 / start.elapsed().as_secs_f64()
    }
}
