//! Rotary position embedding: each pair (a, b) of each head becomes (a cos - b sin, b cos + a sin).

use super::simd::{Kernel, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Rope, RopeArgs, RopeBackward, Shaped};

struct Rows<'a> {
    x: &'a mut [f32],
    cols: usize,
    heads: usize,
    cos: &'a Tensor,
    sin: &'a Tensor,
    positions: &'a [u32],
    interleaved: bool,
    /// 1, or -1 for the inverse rotation.
    direction: f32,
}

#[inline(always)]
fn rotate(a: &mut f32, b: &mut f32, cos: f32, sin: f32) {
    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let half = self.cos.cols();
        for (row, &position) in self.x.chunks_exact_mut(self.cols).zip(self.positions) {
            let (cos, sin) = (self.cos.row(position as usize), self.sin.row(position as usize));
            for head in row.chunks_exact_mut(2 * half).take(self.heads) {
                if self.interleaved {
                    for (([a, b], &cos), &sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                        rotate(a, b, cos, self.direction * sin);
                    }
                } else {
                    let (a, b) = head.split_at_mut(half);
                    for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        rotate(a, b, cos, self.direction * sin);
                    }
                }
            }
        }
    }
}

impl CpuBackend {
    fn rotate(&self, args: RopeArgs<'_, Tensor>, direction: f32) -> Result<()> {
        args.check()?;
        let RopeArgs { x, heads, cos, sin, positions, interleaved } = args;
        let cols = x.cols();
        if cols == 0 || cos.cols() == 0 {
            return Ok(());
        }
        let per_task = self.pool.rows_per_task(x.rows(), cols);
        self.pool.chunks(&mut x.data, cols * per_task, |first, x| {
            let positions = &positions[first / cols..];
            self.isa.run(Rows { x, cols, heads, cos, sin, positions, interleaved, direction });
        });
        Ok(())
    }
}

impl Rope for CpuBackend {
    fn rope(&self, args: RopeArgs<'_, Tensor>) -> Result<()> {
        self.rotate(args, 1.0)
    }
}

impl RopeBackward for CpuBackend {
    fn rope_backward(&self, args: RopeArgs<'_, Tensor>) -> Result<()> {
        self.rotate(args, -1.0)
    }
}
