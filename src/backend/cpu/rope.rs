//! Rotary position embedding: each pair (a, b) of each head becomes (a cos - b sin, b cos + a sin).

use super::simd::{Kernel, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Rope, RopeArgs, RopeBackward, Shaped};

struct Rows<'a> {
    x: &'a mut [f32],
    cols: usize,
    positions: &'a [u32],
    turn: Turn<'a>,
}

/// How rows are rotated.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    /// The first heads of a row.
    pub(super) heads: usize,
    /// [positions, head_dim / 2].
    pub(super) cos: &'a Tensor,
    /// Likewise.
    pub(super) sin: &'a Tensor,
    /// Pairs are neighbours, not halves of a head.
    pub(super) interleaved: bool,
    /// 1, or -1 for the inverse rotation.
    pub(super) direction: f32,
}

#[inline(always)]
fn rotate(a: &mut f32, b: &mut f32, cos: f32, sin: f32) {
    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        for (row, &position) in self.x.chunks_exact_mut(self.cols).zip(self.positions) {
            self.turn.row(row, position);
        }
    }
}

impl Turn<'_> {
    /// One row, at its position.
    #[inline(always)]
    pub(super) fn row(self, row: &mut [f32], position: u32) {
        let (cos, sin) = (self.cos.row(position as usize), self.sin.row(position as usize));
        let half = cos.len();
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
            self.isa.run(Rows { x, cols, positions, turn: Turn { heads, cos, sin, interleaved, direction } });
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
