//! SwiGLU: y = gate / (1 + e^-gate) * up.

use super::exp;
use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Shaped, Swiglu, SwigluArgs};

struct Rows<'a> {
    y: &'a mut [f32],
    gate_up: &'a [f32],
    cols: usize,
}

#[inline(always)]
pub(super) fn gated<S: Simd>(s: S, gate: S::V, up: S::V) -> S::V {
    let one = s.splat(1.0);
    let e = exp::lanes(s, s.sub(s.splat(0.0), gate));
    s.mul(s.div(gate, s.add(one, e)), up)
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.cols;
        for (y, gate_up) in self.y.chunks_exact_mut(cols).zip(self.gate_up.chunks_exact(2 * cols)) {
            let (gate, up) = gate_up.split_at(cols);
            let (gates, gate_rest) = gate.as_chunks::<LANES>();
            let (ups, up_rest) = up.as_chunks::<LANES>();
            let (ys, y_rest) = y.as_chunks_mut::<LANES>();
            for ((y, gate), up) in ys.iter_mut().zip(gates).zip(ups) {
                s.store(gated(s, s.load(gate), s.load(up)), y);
            }
            s.store_part(gated(s, s.load_part(gate_rest, 0.0), s.load_part(up_rest, 0.0)), y_rest);
        }
    }
}

impl Swiglu for CpuBackend {
    fn swiglu(&self, args: SwigluArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let SwigluArgs { y, gate_up } = args;
        let cols = y.cols();
        if cols == 0 {
            return Ok(());
        }
        // Ten times the arithmetic of a norm.
        let per_task = self.pool.rows_per_task(y.rows(), 4 * cols);
        self.pool.chunks(&mut y.data, cols * per_task, |first, y| {
            self.isa.run(Rows { gate_up: &gate_up.data[2 * first..][..2 * y.len()], y, cols });
        });
        Ok(())
    }
}
