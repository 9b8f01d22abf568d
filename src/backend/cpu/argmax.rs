//! Argmax of the logits.
//!
//! The plain loops:
//! ```text
//! best = -inf; id = 0
//! for n in 0..vocab { logit = logit_scale * dot(x, head[n]); if logit > best { best = logit; id = n } }
//! ```

use super::head::{Logits, Reduce};
use super::simd::{Line, Simd};
use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{Argmax, ArgmaxArgs, Shaped};

struct Best {
    logit_scale: f32,
}

impl Reduce for Best {
    /// The largest logit and the first id that has it; -inf if all are NaN.
    type Kept = (f32, u32);

    #[inline(always)]
    fn reduce<S: Simd>(&self, s: S, logits: Logits<'_>, _reference: Option<&[Line]>) -> (f32, u32) {
        let mut best = (f32::NEG_INFINITY, 0);
        let scale = s.splat(self.logit_scale);
        let mut id = u32::try_from(logits.first).unwrap_or(u32::MAX);
        let mut left = logits.valid;
        for line in logits.lines {
            if left == 0 {
                break;
            }
            let n = left.min(line.0.len());
            let scaled = s.mul(s.load(&line.0), scale);
            let mut lanes = [0.0; 16];
            s.store(scaled, &mut lanes);
            for &logit in &lanes[..n] {
                if logit > best.0 {
                    best = (logit, id);
                }
                id += 1;
            }
            left -= n;
        }
        best
    }
}

impl Argmax for CpuBackend {
    fn argmax(&self, args: ArgmaxArgs<'_, Tensor, Matrix>) -> Result<Vec<u32>> {
        args.check()?;
        if args.x.rows() == 0 {
            return Ok(Vec::new());
        }
        let kept = self.sweep_head(args.x, None, args.head, &Best { logit_scale: args.logit_scale })?;
        let best = |row| kept.row(row).fold((f32::NEG_INFINITY, 0), |best, chunk| if chunk.0 > best.0 { chunk } else { best }).1;
        Ok((0..args.x.rows()).map(best).collect())
    }
}
