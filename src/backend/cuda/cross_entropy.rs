//! Launches of kernels/cross_entropy.cu between products with chunks of the head.

use super::driver::{Argument, Element, Geometry};
use super::linear::{Operand, Product};
use super::{CudaBackend, Dense, Matrix, Storage, Tensor, kernels, size};
use crate::error::Result;
use crate::ops::{CrossEntropy, CrossEntropyArgs, GatherRowsArgs, Rows, Shaped, TokenLosses};
use bytemuck::NoUninit;
use std::mem::offset_of;
use std::ops::Range;

/// Threads a block, THREADS of the kernels.
const BLOCK: u32 = 256;

/// Token ids a chunk. Sums are put together chunk by chunk, so it must not depend on the number of rows.
const CHUNK: usize = 4096;

/// Rows at a time: with CHUNK logits each, 32 MiB, which stay in the L2 of large GPUs between product and reduction.
const ROWS: usize = 2048;

/// f64s of state a row, STATE of the kernels.
const STATE: usize = 6;

/// Mirrors CrossEntropySizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct CrossEntropySizes {
    chunk: u32,
    first: u32,
    logit_scale: f32,
}

/// Mirrors LossSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct LossSizes {
    rows: u32,
}

const _: () = assert!(
    size_of::<CrossEntropySizes>() == 12 && offset_of!(CrossEntropySizes, logit_scale) == 8,
    "layout shared with the kernels"
);

impl CudaBackend {
    /// logits = rows of x times rows `ids` of the head, before logit_scale: [rows, ids.len()] f32.
    pub(super) fn logits(&self, logits: &mut Tensor, x: &Operand<'_>, head: &Dense, ids: Range<usize>) -> Result<()> {
        let rows = logits.rows;
        let y = logits.write();
        self.product(Product { y, y_storage: Storage::F32, x, rows, weight: head, outputs: ids, bias: None, accumulate: false })
    }

    /// Rows `range` of x, or x itself where that is all of them.
    pub(super) fn part<T>(&self, x: &Tensor, range: Range<usize>, run: impl FnOnce(&Tensor) -> Result<T>) -> Result<T> {
        if range.len() == x.rows {
            return run(x);
        }
        let mut part = self.tensor(range.len(), x.cols, x.storage)?;
        let rows: Vec<u32> = range.map(|row| size("cross_entropy", "x", row)).collect::<Result<_>>()?;
        self.gather_rows(GatherRowsArgs { y: &mut part, x, rows: &rows })?;
        run(&part)
    }

    fn losses_of_rows(
        &self,
        x: &Tensor,
        reference: Option<&Tensor>,
        head: &Dense,
        targets: &[u32],
        logit_scale: f32,
    ) -> Result<TokenLosses> {
        let (rows, vocab) = (x.rows, head.rows());
        let x = self.operand(x, head)?;
        let reference = reference.map(|reference| self.operand(reference, head)).transpose()?;
        let targets = self.indices.get(&self.gpu, targets)?;
        let mut state = self.gpu.allocate(rows * STATE * size_of::<f64>())?;
        let mut logits = self.tensor(rows, CHUNK.min(vocab), Storage::F32)?;
        let mut reference_logits = self.tensor(if reference.is_some() { rows } else { 0 }, CHUNK.min(vocab), Storage::F32)?;
        let geometry = Geometry::row(size("cross_entropy", "x", rows)?, BLOCK);
        let mut first = 0;
        while first < vocab {
            let ids = first..(first + CHUNK).min(vocab);
            first = ids.end;
            logits.cols = ids.len();
            self.logits(&mut logits, &x, head, ids.clone())?;
            let sizes = CrossEntropySizes {
                chunk: size("cross_entropy", "head", ids.len())?,
                first: size("cross_entropy", "head", ids.start)?,
                logit_scale,
            };
            let arguments = [Argument::write(&mut state, Element::F64), logits.read(), targets.read()];
            self.gpu.launch(kernels::CROSS_ENTROPY_CHUNK, geometry, &arguments, sizes)?;
            if let Some(reference) = &reference {
                reference_logits.cols = ids.len();
                self.logits(&mut reference_logits, reference, head, ids)?;
                let arguments = [Argument::write(&mut state, Element::F64), reference_logits.read(), logits.read()];
                self.gpu.launch(kernels::DIVERGENCE_CHUNK, geometry, &arguments, sizes)?;
            }
        }
        let sizes = LossSizes { rows: size("cross_entropy", "x", rows)? };
        let geometry = Geometry::over(rows, BLOCK)?;
        let loss = |kernel| {
            let mut losses = self.gpu.allocate(rows * size_of::<f32>())?;
            let arguments = [Argument::write(&mut losses, Element::F32), Argument::read(&state, Element::F64)];
            self.gpu.launch(kernel, geometry, &arguments, sizes)?;
            self.gpu.download::<f32>(&losses)
        };
        let nll = loss(kernels::CROSS_ENTROPY_LOSS)?;
        let kl = if reference.is_some() { loss(kernels::DIVERGENCE_LOSS)? } else { Vec::new() };
        Ok(TokenLosses { nll, kl })
    }
}

impl CrossEntropy for CudaBackend {
    fn cross_entropy(&self, args: CrossEntropyArgs<'_, Tensor, Matrix>) -> Result<TokenLosses> {
        args.check()?;
        let CrossEntropyArgs { x, head, targets, logit_scale, reference } = args;
        let head = &*head.dense(self)?;
        let mut losses = TokenLosses { nll: Vec::with_capacity(x.rows), kl: Vec::new() };
        let mut first = 0;
        while first < x.rows {
            let range = first..(first + ROWS).min(x.rows);
            first = range.end;
            let of_rows = self.part(x, range.clone(), |x| match reference {
                None => self.losses_of_rows(x, None, head, &targets[range.clone()], logit_scale),
                Some(reference) => self.part(reference, range.clone(), |reference| {
                    self.losses_of_rows(x, Some(reference), head, &targets[range.clone()], logit_scale)
                }),
            })?;
            losses.nll.extend(of_rows.nll);
            losses.kl.extend(of_rows.kl);
        }
        Ok(losses)
    }
}
