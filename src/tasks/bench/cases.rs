//! Products with weights, and attention: in scoring (many rows) and in decoding (few).

use super::{Backends, Case, Limit, Shape, What};
use crate::error::{Error, Result};
use crate::ops::cases::{AttentionCase, HeadCase, LinearCase};
use crate::ops::{
    ArgmaxArgs, AttentionArgs, AttentionPagedArgs, Backend, CrossEntropyArgs, Device, Heads, KvWriteArgs, LinearArgs,
    LinearSwigluArgs, PAGE_TOKENS, PagedRow, RopeArgs,
};
use crate::tensor::{Dtype, HostTensor, SharedBytes};
use std::sync::Arc;

pub(super) type Make<B> = Box<dyn FnOnce(&Backends<B>) -> Result<Case>>;

/// The cases of `what`, made one at a time.
pub(super) fn all<B: Backend + 'static>(what: What, shape: Shape) -> Vec<Make<B>> {
    let sizes = shape.sizes();
    if what == What::Nf4 {
        return super::nf4::all(shape);
    }
    let mut cases: Vec<Make<B>> = Vec::new();
    if what != What::Attention {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for case in sizes.rows.iter().flat_map(|&rows| sizes.linears(rows)) {
                cases.push(Box::new(move |on| linear(on, case, dtype, shape.rotated_bytes())));
            }
            for case in sizes.rows.iter().map(|&rows| sizes.gated(rows)) {
                cases.push(Box::new(move |on| linear_swiglu(on, case, dtype, shape.rotated_bytes())));
            }
            cases.push(Box::new(move |on| cross_entropy(on, sizes.head(), dtype)));
            for rows in [1, FEW_ROWS] {
                cases.push(Box::new(move |on| argmax(on, HeadCase { rows, ..sizes.head() }, dtype)));
            }
        }
    }
    if what != What::Gemm {
        for case in sizes.packed.map(|lengths| sizes.sequences(lengths)) {
            cases.push(Box::new(move |on| attention(on, case)));
        }
        for case in sizes.paged.map(|lengths| sizes.sequences(lengths)) {
            cases.push(Box::new(move |on| attention_paged(on, case)));
        }
    }
    if what == What::Ops {
        cases.extend(super::rows::all(sizes));
    }
    cases
}

pub(super) fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 - 0.5).collect()
}

/// Numbers made one by one; beyond them they repeat.
const PATTERN: usize = 1 << 20;

/// bf16 weights, as files hold them.
pub(super) fn weights<B: Device>(backend: &B, rows: usize, cols: usize) -> Result<B::Matrix> {
    let len = 2 * rows * cols;
    let pattern = values(PATTERN.min(rows * cols));
    let pattern: Vec<u8> = pattern.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let bytes: Vec<u8> = pattern.iter().copied().cycle().take(len).collect();
    let bytes = SharedBytes::new(Arc::new(bytes), 0..len).ok_or_else(|| Error::shape("bench", "weight", &[len], &[0]))?;
    let tensor = HostTensor { name: "bench".into(), file: "bench".into(), dtype: Dtype::Bf16, shape: vec![rows, cols], bytes };
    backend.prepare(&[tensor])
}

/// A tensor as the residual stream is stored.
pub(super) fn tensor<B: Device>(backend: &B, rows: usize, cols: usize) -> Result<B::Tensor> {
    backend.upload(rows, cols, &values(rows * cols))
}

/// A tensor as it is stored within a layer.
pub(super) fn activations<B: Device>(backend: &B, rows: usize, cols: usize) -> Result<B::Tensor> {
    let mut scratch = backend.scratch(rows, cols)?;
    backend.copy(&mut scratch, &tensor(backend, rows, cols)?)?;
    Ok(scratch)
}

/// Rows of a decoding step, at most: reading weights takes about as long as multiplying so few rows with them.
const FEW_ROWS: usize = 16;

/// What arithmetic in `dtype` is held against.
pub(super) fn flops(dtype: Dtype) -> Limit {
    if dtype == Dtype::Bf16 { Limit::Bf16Flops } else { Limit::F32Flops }
}

/// FLOPs, and for a few rows the bytes of weights: which of the two takes longer depends on the machine.
fn work_of_product(dtype: Dtype, rows: usize, weights: usize, bytes_each: f64) -> Vec<(Limit, f64)> {
    let mut work = vec![(flops(dtype), 2.0 * (rows * weights) as f64)];
    if rows <= FEW_ROWS {
        work.push((Limit::MemoryBytes, bytes_each * weights as f64));
    }
    work
}

/// A product with `weights` numbers of `bytes_each` bytes that `prepare` makes, in as many copies as it takes not to find them in
/// a cache.
pub(super) struct Product<'a> {
    pub(super) what: &'a str,
    pub(super) dtype: Dtype,
    pub(super) case: LinearCase,
    pub(super) bytes_each: f64,
    pub(super) rotated_bytes: usize,
}

impl Product<'_> {
    pub(super) fn case<B: Backend + 'static>(self, backend: Arc<B>, prepare: impl Fn(&B) -> Result<B::Matrix>) -> Result<Case> {
        let Product { what, dtype, case, bytes_each, rotated_bytes } = self;
        let LinearCase { rows, in_features: inputs, out_features: outputs, bias: _, accumulate } = case;
        let weights = inputs * outputs;
        let copies = copies(rows, weights, rotated_bytes);
        let matrices = (0..copies).map(|_| prepare(&backend)).collect::<Result<Vec<_>>>()?;
        let (x, mut y) = (activations(&*backend, rows, inputs)?, backend.scratch(rows, outputs)?);
        let work = work_of_product(dtype, rows, copies * weights, bytes_each);
        let call = Box::new(move || {
            for weight in &matrices {
                backend.linear(LinearArgs { y: &mut y, x: &x, weight, bias: None, accumulate })?;
            }
            Ok(())
        });
        let case = format!("{what}{rows} rows, {inputs} -> {outputs}, {copies} in turn");
        Ok(Case { op: "linear", case, dtype, work, call })
    }
}

fn linear<B: Backend + 'static>(on: &Backends<B>, case: LinearCase, dtype: Dtype, rotated_bytes: usize) -> Result<Case> {
    let (backend, bytes_each) = (on.of(dtype), on.weight_bytes(dtype));
    Product { what: "", dtype, case, bytes_each, rotated_bytes }
        .case(backend, |backend| weights(backend, case.out_features, case.in_features))
}

/// Matrices of `weights` numbers that are multiplied in turn.
fn copies(rows: usize, weights: usize, rotated_bytes: usize) -> usize {
    if rows <= FEW_ROWS { (rotated_bytes / (2 * weights)).max(1) } else { 1 }
}

fn linear_swiglu<B: Backend + 'static>(on: &Backends<B>, case: LinearCase, dtype: Dtype, rotated_bytes: usize) -> Result<Case> {
    let LinearCase { rows, in_features: inputs, out_features: intermediate, .. } = case;
    let (backend, outputs) = (on.of(dtype), 2 * intermediate);
    let copies = copies(rows, outputs * inputs, rotated_bytes);
    let matrices = (0..copies).map(|_| weights(&*backend, outputs, inputs)).collect::<Result<Vec<_>>>()?;
    let x = activations(&*backend, rows, inputs)?;
    let (mut gate_up, mut y) = (backend.scratch(rows, outputs)?, backend.scratch(rows, intermediate)?);
    let work = work_of_product(dtype, rows, copies * outputs * inputs, on.weight_bytes(dtype));
    let call = Box::new(move || {
        for weight in &matrices {
            let (y, gate_up) = (&mut y, &mut gate_up);
            backend.linear_swiglu(LinearSwigluArgs { y, gate_up, x: &x, weight, bias: None })?;
        }
        Ok(())
    });
    let case = format!("{rows} rows, {inputs} -> 2 x {intermediate}, {copies} in turn");
    Ok(Case { op: "linear_swiglu", case, dtype, work, call })
}

fn cross_entropy<B: Backend + 'static>(on: &Backends<B>, case: HeadCase, dtype: Dtype) -> Result<Case> {
    let HeadCase { rows, hidden_size: hidden, vocab_size: vocab, logit_scale } = case;
    let backend = on.of(dtype);
    let (head, x) = (weights(&*backend, vocab, hidden)?, tensor(&*backend, rows, hidden)?);
    let targets = vec![7; rows];
    let work = work_of_product(dtype, rows, vocab * hidden, on.weight_bytes(dtype));
    let call = Box::new(move || {
        let args = CrossEntropyArgs { x: &x, head: &head, targets: &targets, logit_scale, reference: None };
        backend.cross_entropy(args).map(|_| ())
    });
    Ok(Case { op: "cross_entropy", case: format!("{rows} rows, {hidden} -> {vocab}"), dtype, work, call })
}

fn argmax<B: Backend + 'static>(on: &Backends<B>, case: HeadCase, dtype: Dtype) -> Result<Case> {
    let HeadCase { rows, hidden_size: hidden, vocab_size: vocab, logit_scale } = case;
    let backend = on.of(dtype);
    let (head, x) = (weights(&*backend, vocab, hidden)?, tensor(&*backend, rows, hidden)?);
    let work = work_of_product(dtype, rows, vocab * hidden, on.weight_bytes(dtype));
    let call = Box::new(move || backend.argmax(ArgmaxArgs { x: &x, head: &head, logit_scale }).map(|_| ()));
    Ok(Case { op: "argmax", case: format!("{rows} rows, {hidden} -> {vocab}"), dtype, work, call })
}

/// FLOPs of rows that see `pairs` keys together: q k^T and p v.
fn attention_flops(heads: Heads, pairs: usize) -> f64 {
    4.0 * (pairs * heads.q_cols()) as f64
}

/// First rows of packed sequences, and the number of rows.
pub(super) fn starts(lengths: &[usize]) -> Result<Vec<u32>> {
    (0..=lengths.len()).map(|s| count(lengths[..s].iter().sum())).collect()
}

/// `16 sequences of 128`: those of a bench are of one length.
pub(super) fn sequences(lengths: &[usize]) -> String {
    format!("{} sequences of {}", lengths.len(), lengths.first().unwrap_or(&0))
}

pub(super) fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::request("too many rows for a bench"))
}

pub(super) fn scale(heads: Heads) -> f32 {
    1.0 / (heads.head_dim as f32).sqrt()
}

/// A rotation by nothing: values stay as they are, however often an op runs.
pub(super) struct NoRotation<B: Device> {
    cos: B::Tensor,
    sin: B::Tensor,
    positions: Vec<u32>,
}

impl<B: Device> NoRotation<B> {
    /// Of `rows` rows whose heads have `head_dim` elements.
    pub(super) fn new(backend: &B, rows: usize, head_dim: usize) -> Result<Self> {
        let half = head_dim / 2;
        let (cos, sin) = (backend.upload(1, half, &vec![1.0; half])?, backend.zeros(1, half)?);
        Ok(Self { cos, sin, positions: vec![0; rows] })
    }

    /// Of the first `heads` heads of x.
    pub(super) fn of<'a>(&'a self, x: &'a mut B::Tensor, heads: usize) -> RopeArgs<'a, B::Tensor> {
        RopeArgs { x, heads, cos: &self.cos, sin: &self.sin, positions: &self.positions, interleaved: false }
    }
}

fn attention<B: Backend + 'static>(on: &Backends<B>, case: AttentionCase) -> Result<Case> {
    let AttentionCase { lengths, heads } = case;
    let dtype = on.activations();
    let backend = on.of(dtype);
    let rows = lengths.iter().sum();
    let (qkv, mut y) = (activations(&*backend, rows, heads.qkv_cols())?, backend.scratch(rows, heads.q_cols())?);
    let starts = starts(lengths)?;
    let pairs = lengths.iter().map(|length| length * (length + 1) / 2).sum();
    let work = vec![(flops(dtype), attention_flops(heads, pairs))];
    let scale = scale(heads);
    let call = Box::new(move || backend.attention(AttentionArgs { y: &mut y, qkv: &qkv, heads, starts: &starts, scale }));
    Ok(Case { op: "attention", case: sequences(lengths), dtype, work, call })
}

fn attention_paged<B: Backend + 'static>(on: &Backends<B>, case: AttentionCase) -> Result<Case> {
    let AttentionCase { lengths, heads } = case;
    let (rows, keys) = (lengths.len(), count(lengths.iter().copied().max().unwrap_or(0))?);
    let dtype = on.activations();
    let backend = on.of(dtype);
    let pages_each = keys.div_ceil(16);
    let count = count(rows)?;
    let mut pages = backend.kv_pages(rows * pages_each as usize, heads)?;
    let slots: Vec<u32> = (0..count * pages_each * 16).collect();
    let mut kv = activations(&*backend, slots.len(), heads.qkv_cols())?;
    let rotation = NoRotation::new(&*backend, slots.len(), heads.head_dim)?;
    let rope = rotation.of(&mut kv, heads.heads + heads.kv_heads);
    backend.kv_write(KvWriteArgs { pages: &mut pages, rope, heads, slots: &slots })?;
    let (qkv, mut y) = (activations(&*backend, rows, heads.qkv_cols())?, backend.scratch(rows, heads.q_cols())?);
    let ids: Vec<Vec<u32>> = (0..count).map(|r| (r * pages_each..(r + 1) * pages_each).collect()).collect();
    // A CPU finds these keys and values in its caches; a GPU, which keeps them in bf16, reads them.
    let work = vec![match dtype {
        Dtype::F32 | Dtype::F16 => (Limit::F32Flops, rows as f64 * attention_flops(heads, keys as usize)),
        Dtype::Bf16 => (Limit::MemoryBytes, (rows * keys as usize * 2 * heads.kv_cols() * dtype.size()) as f64),
    }];
    let scale = scale(heads);
    let call = Box::new(move || {
        let rows: Vec<PagedRow<'_>> = ids.iter().map(|pages| PagedRow { pages, len: keys }).collect();
        backend.attention_paged(AttentionPagedArgs { y: &mut y, qkv: &qkv, heads, pages: &pages, rows: &rows, scale })
    });
    let case = format!("{rows} rows, {keys} keys, pages of {PAGE_TOKENS}");
    Ok(Case { op: "attention_paged", case, dtype, work, call })
}
