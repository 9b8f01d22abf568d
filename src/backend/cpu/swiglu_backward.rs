//! Gradient of SwiGLU.

use super::exp;
use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Shaped, SwigluBackward, SwigluBackwardArgs};

struct Rows<'a> {
    d_gate_up: &'a mut [f32],
    gate_up: &'a [f32],
    d_y: &'a [f32],
    cols: usize,
}

/// (d_gate, d_up).
#[inline(always)]
fn gradients<S: Simd>(s: S, gate: S::V, up: S::V, d_y: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let sigmoid = s.div(one, s.add(one, exp::lanes(s, s.sub(s.splat(0.0), gate))));
    let slope = s.mul(sigmoid, s.fma(gate, s.sub(one, sigmoid), one));
    (s.mul(s.mul(d_y, up), slope), s.mul(d_y, s.mul(gate, sigmoid)))
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.cols;
        let rows = self.gate_up.chunks_exact(2 * cols).zip(self.d_y.chunks_exact(cols));
        for (d, (gate_up, d_y)) in self.d_gate_up.chunks_exact_mut(2 * cols).zip(rows) {
            let (gate, up) = gate_up.split_at(cols);
            let (d_gate, d_up) = d.split_at_mut(cols);
            let inputs = gate.chunks(LANES).zip(up.chunks(LANES)).zip(d_y.chunks(LANES));
            for ((d_gate, d_up), ((gate, up), d_y)) in d_gate.chunks_mut(LANES).zip(d_up.chunks_mut(LANES)).zip(inputs) {
                let (g, u) = gradients(s, s.load_part(gate, 0.0), s.load_part(up, 0.0), s.load_part(d_y, 0.0));
                s.store_part(g, d_gate);
                s.store_part(u, d_up);
            }
        }
    }
}

impl SwigluBackward for CpuBackend {
    fn swiglu_backward(&self, args: SwigluBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let SwigluBackwardArgs { d_gate_up, gate_up, d_y } = args;
        let cols = d_y.cols();
        if cols == 0 {
            return Ok(());
        }
        let per_task = self.pool.rows_per_task(d_y.rows(), 4 * cols);
        self.pool.chunks(&mut d_gate_up.data, 2 * cols * per_task, |first, d_gate_up| {
            let (gate_up, d_y) = (&gate_up.data[first..][..d_gate_up.len()], &d_y.data[first / 2..]);
            self.isa.run(Rows { d_gate_up, gate_up, d_y, cols });
        });
        Ok(())
    }
}
