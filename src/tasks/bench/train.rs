//! What a training step adds to a forward pass: gradients of every op, and the optimiser. Tensors are stored as training has
//! them: within a layer as the device likes it, the residual stream, the norms' gradients and those of parameters in f32. A batch
//! is a micro-batch of 1024 rows at most.

use super::cases::{Make, NoRotation, activations, count, flops, scale, sequences, starts, tensor, weights};
use super::rows::{Rows, optimiser};
use super::{Backends, Case, Shape};
use crate::error::Result;
use crate::ops::cases::{AttentionCase, HeadCase, HeadsCase, LinearCase, ModelSizes};
use crate::ops::{
    Adamw, AttentionBackwardArgs, CrossEntropyBackwardArgs, Device, DropoutArgs, DropoutMask, EmbeddingBackwardArgs,
    HeadNormBackwardArgs, LayerNormBackwardArgs, LinearBackwardBiasArgs, LinearBackwardInputArgs, LinearBackwardWeightArgs,
    RmsNormBackwardArgs, SwigluBackwardArgs, TrainingBackend,
};
use crate::tensor::Dtype;
use std::sync::Arc;

pub(super) fn all<B: TrainingBackend + Adamw + 'static>(shape: Shape) -> Vec<Make<B>> {
    let sizes = shape.sizes();
    let mut cases: Vec<Make<B>> = Vec::new();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for case in sizes.linears(sizes.micro_batch).into_iter().chain(sizes.lora(sizes.micro_batch)) {
            let make = move |op| Step { case, dtype, op };
            cases.push(Box::new(move |on| make("linear_backward_input").input_gradient(on)));
            cases.push(Box::new(move |on| make("linear_backward_weight").weight_gradient(on)));
        }
        for whole in [false, true] {
            cases.push(Box::new(move |on| cross_entropy_backward(on, sizes.head(), dtype, whole)));
        }
    }
    for case in sizes.packed.map(|lengths| sizes.sequences(lengths)) {
        cases.push(Box::new(move |on| attention_backward(on, case)));
    }
    let make = |case: fn(&MicroBatch<B>) -> Result<Case>| -> Make<B> {
        Box::new(move |on| case(&MicroBatch { on: Rows::new(on, sizes), rows: sizes.micro_batch }))
    };
    cases.extend([
        make(rms_norm_backward),
        make(layer_norm_backward),
        make(head_norm_backward),
        make(rope_backward),
        make(swiglu_backward),
        make(embedding_backward),
        make(linear_backward_bias),
        make(dropout),
        make(fill),
    ]);
    cases.extend(optimiser(shape));
    cases
}

/// A gradient of a linear layer.
struct Step {
    case: LinearCase,
    dtype: Dtype,
    op: &'static str,
}

impl Step {
    fn case(self, call: impl FnMut() -> Result<()> + 'static) -> Result<Case> {
        let Self { case: LinearCase { rows, in_features: inputs, out_features: outputs, .. }, dtype, op } = self;
        let (case, work) = (format!("{rows} rows, {inputs} -> {outputs}"), 2.0 * (rows * inputs * outputs) as f64);
        Ok(Case { op, case, dtype, work: vec![(flops(dtype), work)], call: Box::new(call) })
    }

    fn input_gradient<B: TrainingBackend + 'static>(self, on: &Backends<B>) -> Result<Case> {
        let (backend, case) = (on.of(self.dtype), self.case);
        let LinearCase { rows, in_features: inputs, out_features: outputs, .. } = case;
        let weight = weights(&*backend, outputs, inputs)?;
        let (d_y, mut d_x) = (activations(&*backend, rows, outputs)?, backend.scratch(rows, inputs)?);
        self.case(move || {
            backend.linear_backward_input(LinearBackwardInputArgs {
                d_x: &mut d_x,
                d_y: &d_y,
                weight: &weight,
                accumulate: false,
            })
        })
    }

    fn weight_gradient<B: TrainingBackend + 'static>(self, on: &Backends<B>) -> Result<Case> {
        let (backend, case) = (on.of(self.dtype), self.case);
        let LinearCase { rows, in_features: inputs, out_features: outputs, .. } = case;
        let (x, d_y) = (activations(&*backend, rows, inputs)?, activations(&*backend, rows, outputs)?);
        let mut d_weight = backend.zeros(outputs, inputs)?;
        self.case(move || {
            let d_weight = &mut d_weight;
            backend.linear_backward_weight(LinearBackwardWeightArgs { d_weight, x: &x, d_y: &d_y, first_col: 0, scale: 1e-3 })
        })
    }
}

/// `whole`: with the gradient of the head.
fn cross_entropy_backward<B: TrainingBackend + 'static>(
    on: &Backends<B>,
    case: HeadCase,
    dtype: Dtype,
    whole: bool,
) -> Result<Case> {
    let HeadCase { rows, hidden_size: hidden, vocab_size: vocab, logit_scale } = case;
    let backend = on.of(dtype);
    let (head, x, mut d_x) = (weights(&*backend, vocab, hidden)?, tensor(&*backend, rows, hidden)?, backend.zeros(rows, hidden)?);
    let mut d_head = if whole { Some(backend.zeros(vocab, hidden)?) } else { None };
    let targets = vec![7; rows];
    let call = Box::new(move || {
        let (d_x, d_head, x, head, targets) = (&mut d_x, d_head.as_mut(), &x, &head, targets.as_slice());
        let args = CrossEntropyBackwardArgs { d_x, d_head, x, head, targets, logit_scale, scale: 1e-3, distillation: None };
        backend.cross_entropy_backward(args).map(|_| ())
    });
    let case = format!("{rows} rows, {hidden} -> {vocab}{}", if whole { ", with d_head" } else { "" });
    let work = (if whole { 6.0 } else { 4.0 }) * (rows * hidden * vocab) as f64;
    Ok(Case { op: "cross_entropy_backward", case, dtype, work: vec![(flops(dtype), work)], call })
}

fn attention_backward<B: TrainingBackend + 'static>(on: &Backends<B>, case: AttentionCase) -> Result<Case> {
    let AttentionCase { lengths, heads } = case;
    let dtype = on.activations();
    let backend = on.of(dtype);
    let rows = lengths.iter().sum();
    let (qkv, y, d_y) = (
        activations(&*backend, rows, heads.qkv_cols())?,
        activations(&*backend, rows, heads.q_cols())?,
        activations(&*backend, rows, heads.q_cols())?,
    );
    let mut d_qkv = backend.scratch(rows, heads.qkv_cols())?;
    let starts = starts(lengths)?;
    let scale = scale(heads);
    let call = Box::new(move || {
        let (qkv, y, d_y, starts) = (&qkv, &y, &d_y, starts.as_slice());
        backend.attention_backward(AttentionBackwardArgs { d_qkv: &mut d_qkv, qkv, y, d_y, heads, starts, scale })
    });
    // q k^T again, d_y v^T, and the gradients of q, k and v: five products of the causal half.
    let pairs: usize = lengths.iter().map(|length| length * (length + 1) / 2).sum();
    let (case, work) = (sequences(lengths), 10.0 * (pairs * heads.q_cols()) as f64);
    Ok(Case { op: "attention_backward", case, dtype, work: vec![(flops(dtype), work)], call })
}

/// A micro-batch.
struct MicroBatch<B> {
    on: Rows<B>,
    rows: usize,
}

impl<B: Device> MicroBatch<B> {
    /// A case of `bytes_each` bytes, read or written, for each element of a [rows, cols] tensor.
    fn case(&self, op: &'static str, cols: usize, bytes_each: f64, call: impl FnMut() -> Result<()> + 'static) -> Result<Case> {
        self.on.case(op, format!("{} x {cols}", self.rows), self.rows * cols, bytes_each, call)
    }

    fn backend(&self) -> Arc<B> {
        self.on.backend.clone()
    }

    fn tensor(&self, cols: usize) -> Result<B::Tensor> {
        tensor(&*self.on.backend, self.rows, cols)
    }

    fn activations(&self, cols: usize) -> Result<B::Tensor> {
        activations(&*self.on.backend, self.rows, cols)
    }
}

fn rms_norm_backward<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let (backend, hidden) = (batch.backend(), batch.on.sizes.hidden);
    let (x, d_y, mut d_x) = (batch.tensor(hidden)?, batch.tensor(hidden)?, batch.tensor(hidden)?);
    let (weight, mut d_weight) = (tensor(&*backend, 1, hidden)?, backend.zeros(1, hidden)?);
    batch.case("rms_norm_backward", hidden, 4.0 * 4.0, move || {
        let (d_x, d_weight, x, weight, d_y) = (&mut d_x, Some(&mut d_weight), &x, &weight, &d_y);
        backend.rms_norm_backward(RmsNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps: 1e-5 })
    })
}

fn layer_norm_backward<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let (backend, hidden) = (batch.backend(), batch.on.sizes.hidden);
    let (x, d_y, mut d_x) = (batch.tensor(hidden)?, batch.tensor(hidden)?, batch.tensor(hidden)?);
    let (weight, mut d_weight) = (tensor(&*backend, 1, hidden)?, backend.zeros(1, hidden)?);
    batch.case("layer_norm_backward", hidden, 4.0 * 4.0, move || {
        let (d_x, d_weight, x, weight, d_y) = (&mut d_x, Some(&mut d_weight), &x, &weight, &d_y);
        backend.layer_norm_backward(LayerNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps: 1e-5 })
    })
}

fn head_norm_backward<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let HeadsCase { heads, head_dim, behind, .. } = batch.on.sizes.queries(batch.rows);
    let (backend, cols) = (batch.backend(), heads * head_dim);
    let (x, mut d) = (batch.activations(cols + behind)?, batch.activations(cols + behind)?);
    let (weight, mut d_weight) = (tensor(&*backend, heads, head_dim)?, backend.zeros(heads, head_dim)?);
    batch.case("head_norm_backward", cols, 3.0 * batch.on.within(), move || {
        let (d, d_weight, x, weight) = (&mut d, Some(&mut d_weight), &x, &weight);
        backend.head_norm_backward(HeadNormBackwardArgs { d, d_weight, x, weight, first_col: 0, eps: 1e-5 })
    })
}

fn rope_backward<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let HeadsCase { heads, head_dim, behind, .. } = batch.on.sizes.rotated(batch.rows);
    let (backend, mut x) = (batch.backend(), batch.activations(heads * head_dim + behind)?);
    let rotation = NoRotation::new(&*backend, batch.rows, head_dim)?;
    batch.case("rope_backward", heads * head_dim, 2.0 * batch.on.within(), move || {
        backend.rope_backward(rotation.of(&mut x, heads))
    })
}

fn swiglu_backward<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let (backend, intermediate) = (batch.backend(), batch.on.sizes.intermediate);
    let (gate_up, d_y) = (batch.activations(2 * intermediate)?, batch.activations(intermediate)?);
    let mut d_gate_up = batch.activations(2 * intermediate)?;
    batch.case("swiglu_backward", intermediate, 5.0 * batch.on.within(), move || {
        backend.swiglu_backward(SwigluBackwardArgs { d_gate_up: &mut d_gate_up, gate_up: &gate_up, d_y: &d_y })
    })
}

fn embedding_backward<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let (backend, ModelSizes { vocab, hidden, .. }) = (batch.backend(), batch.on.sizes);
    let (d_y, mut d_table) = (batch.tensor(hidden)?, backend.zeros(vocab, hidden)?);
    let ids = (0..batch.rows).map(|i| count(i * 1657 % vocab)).collect::<Result<Vec<_>>>()?;
    batch.case("embedding_backward", hidden, 3.0 * 4.0, move || {
        backend.embedding_backward(EmbeddingBackwardArgs { d_table: &mut d_table, d_y: &d_y, ids: &ids })
    })
}

fn linear_backward_bias<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let (backend, cols) = (batch.backend(), batch.on.sizes.heads.qkv_cols());
    let (d_y, mut d_bias) = (batch.activations(cols)?, backend.zeros(1, cols)?);
    batch.case("linear_backward_bias", cols, batch.on.within(), move || {
        backend.linear_backward_bias(LinearBackwardBiasArgs { d_bias: &mut d_bias, d_y: &d_y, first_col: 0 })
    })
}

fn dropout<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let (backend, hidden) = (batch.backend(), batch.on.sizes.hidden);
    let (x, mut y) = (batch.activations(hidden)?, batch.activations(hidden)?);
    let mask = DropoutMask { seed: 1, stream: 2, probability: 0.1 };
    batch.case("dropout", hidden, 2.0 * batch.on.within(), move || backend.dropout(DropoutArgs { y: &mut y, x: &x, mask }))
}

fn fill<B: TrainingBackend + 'static>(batch: &MicroBatch<B>) -> Result<Case> {
    let (backend, hidden) = (batch.backend(), batch.on.sizes.hidden);
    let mut y = batch.tensor(hidden)?;
    batch.case("fill", hidden, 4.0, move || backend.fill(&mut y, 0.0))
}
