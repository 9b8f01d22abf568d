//! Launches of the gradients in kernels/cross_entropy.cu, between a product with the head and the two that carry the gradient of
//! the logits to x and to the head.

use super::driver::{Argument, Buffer, Element, Geometry};
use super::linear_backward::{Factor, InputGradient, WeightGradient};
use super::{CudaBackend, Dense, Matrix, Storage, Tensor, kernels, matrix, size};
use crate::error::Result;
use crate::ops::{CrossEntropyBackward, CrossEntropyBackwardArgs, Distillation, Shaped, Teacher, TokenLosses};
use bytemuck::NoUninit;
use std::mem::offset_of;
use std::ops::Range;

const OP: &str = "cross_entropy_backward";

/// Threads a block, THREADS of the kernels.
const BLOCK: u32 = 256;

/// Bytes of logits and their gradients that exist at a time: rows enough that the products run at speed with the largest
/// vocabularies.
const LOGITS_BYTES: usize = 256 << 20;

/// Rows at a time are a multiple of this, where they are more: whole tiles of the products.
const ROWS_STEP: usize = 128;

/// Most rows at a time: the products do not get faster with more.
const MOST_ROWS: usize = 2048;

/// Mirrors GradientSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct GradientSizes {
    vocab: u32,
    stride: u32,
    k: u32,
    logit_scale: f32,
    teacher_scale: f32,
    scale: f32,
    temperature: f32,
    mix: f32,
}

const _: () = assert!(size_of::<GradientSizes>() == 32 && offset_of!(GradientSizes, mix) == 28, "layout shared with the kernels");

/// Memory for a group of rows, taken once.
struct Group {
    logits: Tensor,
    teacher_logits: Option<Tensor>,
    /// Rows `stride` elements apart, in the dtype matrices are multiplied in.
    gradient: Buffer,
}

/// What a teacher says about all rows, on the GPU.
enum Told<'a> {
    Nothing,
    States { x: &'a Tensor, head: &'a Dense },
    TopK { ids: Buffer, log_probs: Buffer },
}

impl CudaBackend {
    /// The gradients of the logits of rows `range`, with their losses.
    fn gradient_of_logits(
        &self,
        group: &mut Group,
        told: &Told<'_>,
        losses: &mut [Buffer; 2],
        targets: &Buffer,
        range: Range<usize>,
        sizes: GradientSizes,
    ) -> Result<()> {
        let bf16 = self.compute == Storage::Bf16;
        let first = range.start;
        let [nll, kl] = losses;
        let geometry = Geometry::row(size(OP, "x", range.len())?, BLOCK);
        let d = Argument::write(&mut group.gradient, self.compute.element());
        let nll = Argument::write(nll, Element::F32).from_element(first);
        let targets = Argument::read(targets, Element::U32).from_element(first);
        let logits = group.logits.read();
        match (told, &mut group.teacher_logits) {
            (Told::States { x, head }, Some(teacher)) => {
                teacher.rows = range.len();
                self.part(x, range, |x| self.logits(teacher, &self.operand(x, head)?, head, 0..head.rows()))?;
                let kernel = if bf16 { kernels::DISTIL_GRADIENT_BF16 } else { kernels::DISTIL_GRADIENT_F32 };
                let kl = Argument::write(kl, Element::F32).from_element(first);
                self.gpu.launch(kernel, geometry, &[d, nll, kl, logits, teacher.read(), targets], sizes)
            }
            (Told::TopK { ids, log_probs }, _) => {
                let kernel = if bf16 { kernels::DISTIL_TOP_K_GRADIENT_BF16 } else { kernels::DISTIL_TOP_K_GRADIENT_F32 };
                let kl = Argument::write(kl, Element::F32).from_element(first);
                let ids = Argument::read(ids, Element::U32).from_element(first * sizes.k as usize);
                let log_probs = Argument::read(log_probs, Element::F32).from_element(first * sizes.k as usize);
                self.gpu.launch(kernel, geometry, &[d, nll, kl, logits, ids, log_probs, targets], sizes)
            }
            (Told::Nothing | Told::States { .. }, _) => {
                let kernel = if bf16 { kernels::CROSS_ENTROPY_GRADIENT_BF16 } else { kernels::CROSS_ENTROPY_GRADIENT_F32 };
                self.gpu.launch(kernel, geometry, &[d, nll, logits, targets], sizes)
            }
        }
    }
}

impl CrossEntropyBackward for CudaBackend {
    fn cross_entropy_backward(&self, args: CrossEntropyBackwardArgs<'_, Tensor, Matrix>) -> Result<TokenLosses> {
        args.check()?;
        let CrossEntropyBackwardArgs { d_x, mut d_head, x, head, targets, logit_scale, scale, distillation } = args;
        let (rows, cols, vocab) = (x.rows, head.cols(), head.rows());
        if rows == 0 || vocab == 0 {
            return Ok(TokenLosses { nll: Vec::new(), kl: Vec::new() });
        }
        let head = &*head.dense(self)?;
        let (temperature, mix) = distillation.as_ref().map_or((1.0, 0.0), |d| (d.temperature, d.mix));
        let teacher_head;
        let mut told = Told::Nothing;
        let (mut k, mut teacher_scale) = (0, 1.0);
        match distillation.as_ref().map(|Distillation { teacher, .. }| teacher) {
            None => {}
            Some(Teacher::States { x, head, logit_scale }) => {
                teacher_head = head.dense(self)?;
                teacher_scale = *logit_scale;
                told = Told::States { x, head: &teacher_head };
            }
            Some(Teacher::TopK { k: tokens, ids, log_probs }) => {
                k = *tokens;
                told = Told::TopK { ids: self.gpu.upload(ids)?, log_probs: self.gpu.upload(log_probs)? };
            }
        }
        let stride = matrix::stride(self.compute, vocab);
        let sizes = GradientSizes {
            vocab: size(OP, "head", vocab)?,
            stride: size(OP, "head", stride)?,
            k: size(OP, "teacher.ids", k)?,
            logit_scale,
            teacher_scale,
            scale,
            temperature,
            mix,
        };
        let sides = if matches!(told, Told::States { .. }) { 2 } else { 1 };
        let a_row = vocab * sides * size_of::<f32>() + stride * self.compute.size();
        let at_once = LOGITS_BYTES / a_row;
        let at_once =
            if at_once > ROWS_STEP { at_once / ROWS_STEP * ROWS_STEP } else { at_once.max(16) }.min(MOST_ROWS).min(rows);
        let mut group = Group {
            logits: self.tensor(at_once, vocab, Storage::F32)?,
            teacher_logits: (sides == 2).then(|| self.tensor(at_once, vocab, Storage::F32)).transpose()?,
            gradient: self.gpu.allocate(at_once * stride * self.compute.size())?,
        };
        let distils = !matches!(told, Told::Nothing);
        let room = |wanted: bool| self.gpu.allocate(if wanted { rows * size_of::<f32>() } else { 0 });
        let mut losses = [room(true)?, room(distils)?];
        let targets = self.gpu.upload(targets)?;
        for first in (0..rows).step_by(at_once) {
            let range = first..(first + at_once).min(rows);
            self.part(x, range.clone(), |x| {
                let operand = self.operand(x, head)?;
                group.logits.rows = range.len();
                self.logits(&mut group.logits, &operand, head, 0..vocab)?;
                self.gradient_of_logits(&mut group, &told, &mut losses, &targets, range.clone(), sizes)?;
                let d_y = || Factor { data: Argument::read(&group.gradient, self.compute.element()), stride };
                let d_x_storage = d_x.storage;
                self.input_gradient(InputGradient {
                    d_x: d_x.write().from_element(first * cols),
                    d_x_storage,
                    d_y: d_y(),
                    rows: range.len(),
                    weight: head,
                    accumulate: false,
                })?;
                let Some(d_weight) = d_head.as_deref_mut() else { return Ok(()) };
                let x = Factor { data: operand.read(), stride: matrix::stride(self.compute, cols) };
                self.weight_gradient(WeightGradient { d_weight, d_y: d_y(), x, rows: range.len(), scale: 1.0 })
            })?;
        }
        let [nll, kl] = losses;
        Ok(TokenLosses { nll: self.gpu.download(&nll)?, kl: self.gpu.download(&kl)? })
    }
}
