//! The sizes: SmolLM2-135M's, in scoring (many rows) and in decoding (few).

use super::{Case, Limit, What};
use crate::backend::cpu::{CpuBackend, Matrix, Tensor};
use crate::error::{Error, Result};
use crate::ops::{
    Argmax, ArgmaxArgs, Attention, AttentionArgs, AttentionPagedArgs, CrossEntropy, CrossEntropyArgs, Device, Heads, KvCache,
    KvWriteArgs, Linear, LinearArgs, PAGE_TOKENS, PagedRow,
};
use crate::tensor::{Dtype, HostTensor, SharedBytes};
use std::sync::Arc;

pub(super) type Make = Box<dyn FnOnce(Option<usize>) -> Result<Case>>;

pub(super) const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
pub(super) const HIDDEN: usize = 576;
pub(super) const VOCAB: usize = 49152;
/// Weights of a decoding case together: more than caches hold.
const ROTATED_BYTES: usize = 128 << 20;

/// The cases of `what`, made one at a time.
pub(super) fn all(what: What) -> Vec<Make> {
    if what == What::Nf4 {
        return super::nf4::all();
    }
    let mut cases: Vec<Make> = Vec::new();
    if what != What::Attention {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for rows in [1, 16, 128, 4096] {
                for (inputs, outputs) in [(HIDDEN, 960), (HIDDEN, 3072), (1536, HIDDEN)] {
                    cases.push(Box::new(move |threads| linear(threads, dtype, rows, inputs, outputs)));
                }
            }
            cases.push(Box::new(move |threads| cross_entropy(threads, dtype, 512)));
            cases.push(Box::new(move |threads| argmax(threads, dtype, 1)));
            cases.push(Box::new(move |threads| argmax(threads, dtype, 16)));
        }
    }
    if what != What::Gemm {
        cases.push(Box::new(|threads| attention(threads, 32, 128)));
        cases.push(Box::new(|threads| attention(threads, 4, 1024)));
        cases.push(Box::new(|threads| attention_paged(threads, 16, 256)));
        cases.push(Box::new(|threads| attention_paged(threads, 1, 512)));
    }
    if what == What::Ops {
        cases.extend(super::rows::all());
    }
    cases
}

pub(super) fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 - 0.5).collect()
}

/// bf16 weights, as files hold them.
pub(super) fn weights(backend: &CpuBackend, rows: usize, cols: usize) -> Result<Matrix> {
    let bytes: Vec<u8> = values(rows * cols).iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let len = bytes.len();
    let bytes = SharedBytes::new(Arc::new(bytes), 0..len).ok_or_else(|| Error::shape("bench", "weight", &[len], &[0]))?;
    let tensor = HostTensor { name: "bench".into(), file: "bench".into(), dtype: Dtype::Bf16, shape: vec![rows, cols], bytes };
    backend.prepare(&[tensor])
}

/// FLOPs where there are rows enough, bytes of weights below.
fn limit(dtype: Dtype, rows: usize, weights: usize) -> (Limit, f64) {
    match (rows, dtype) {
        (0..=16, _) => (Limit::ReadBytes, 2.0 * weights as f64),
        (_, Dtype::Bf16) => (Limit::Bf16Flops, 2.0 * (rows * weights) as f64),
        (_, Dtype::F32 | Dtype::F16) => (Limit::F32Flops, 2.0 * (rows * weights) as f64),
    }
}

pub(super) fn tensor(backend: &CpuBackend, rows: usize, cols: usize) -> Result<Tensor> {
    backend.upload(rows, cols, &values(rows * cols))
}

fn linear(threads: Option<usize>, dtype: Dtype, rows: usize, inputs: usize, outputs: usize) -> Result<Case> {
    let backend = CpuBackend::new(dtype, threads)?;
    let copies = if rows <= 16 { (ROTATED_BYTES / (2 * inputs * outputs)).max(1) } else { 1 };
    let matrices = (0..copies).map(|_| weights(&backend, outputs, inputs)).collect::<Result<Vec<_>>>()?;
    let (x, mut y) = (tensor(&backend, rows, inputs)?, backend.zeros(rows, outputs)?);
    let (limit, work) = limit(dtype, rows, inputs * outputs);
    let call = Box::new(move || {
        for weight in &matrices {
            backend.linear(LinearArgs { y: &mut y, x: &x, weight, bias: None, accumulate: false })?;
        }
        Ok(())
    });
    let case = format!("{rows} rows, {inputs} -> {outputs}, {copies} in turn");
    Ok(Case { op: "linear", case, dtype, limit, work: work * copies as f64, call })
}

fn cross_entropy(threads: Option<usize>, dtype: Dtype, rows: usize) -> Result<Case> {
    let backend = CpuBackend::new(dtype, threads)?;
    let (head, x) = (weights(&backend, VOCAB, HIDDEN)?, tensor(&backend, rows, HIDDEN)?);
    let targets = vec![7; rows];
    let (limit, work) = limit(dtype, rows, VOCAB * HIDDEN);
    let call = Box::new(move || {
        let args = CrossEntropyArgs { x: &x, head: &head, targets: &targets, logit_scale: 1.0, reference: None };
        backend.cross_entropy(args).map(|_| ())
    });
    Ok(Case { op: "cross_entropy", case: format!("{rows} rows, {HIDDEN} -> {VOCAB}"), dtype, limit, work, call })
}

fn argmax(threads: Option<usize>, dtype: Dtype, rows: usize) -> Result<Case> {
    let backend = CpuBackend::new(dtype, threads)?;
    let (head, x) = (weights(&backend, VOCAB, HIDDEN)?, tensor(&backend, rows, HIDDEN)?);
    let (limit, work) = limit(dtype, rows, VOCAB * HIDDEN);
    let call = Box::new(move || backend.argmax(ArgmaxArgs { x: &x, head: &head, logit_scale: 1.0 }).map(|_| ()));
    Ok(Case { op: "argmax", case: format!("{rows} rows, {HIDDEN} -> {VOCAB}"), dtype, limit, work, call })
}

/// FLOPs of a row that sees `keys` keys: q k^T and p v.
fn attention_flops(keys: usize) -> f64 {
    4.0 * (keys * HEADS.q_cols()) as f64
}

fn attention(threads: Option<usize>, sequences: usize, length: usize) -> Result<Case> {
    let backend = CpuBackend::new(Dtype::F32, threads)?;
    let rows = sequences * length;
    let (qkv, mut y) = (tensor(&backend, rows, HEADS.qkv_cols())?, backend.zeros(rows, HEADS.q_cols())?);
    let starts = (0..=sequences)
        .map(|s| u32::try_from(s * length).map_err(|_| Error::request("too many rows for a bench")))
        .collect::<Result<Vec<u32>>>()?;
    let work = (1..=length).map(attention_flops).sum::<f64>() * sequences as f64;
    let call =
        Box::new(move || backend.attention(AttentionArgs { y: &mut y, qkv: &qkv, heads: HEADS, starts: &starts, scale: 0.125 }));
    let case = format!("{sequences} sequences of {length}");
    Ok(Case { op: "attention", case, dtype: Dtype::F32, limit: Limit::F32Flops, work, call })
}

fn attention_paged(threads: Option<usize>, rows: usize, keys: u32) -> Result<Case> {
    let backend = CpuBackend::new(Dtype::F32, threads)?;
    let pages_each = keys.div_ceil(16);
    let count = u32::try_from(rows).map_err(|_| Error::request("too many rows for a bench"))?;
    let mut pages = backend.kv_pages(rows * pages_each as usize, HEADS)?;
    let slots: Vec<u32> = (0..count * pages_each * 16).collect();
    let kv = tensor(&backend, slots.len(), HEADS.qkv_cols())?;
    backend.kv_write(KvWriteArgs { pages: &mut pages, qkv: &kv, heads: HEADS, slots: &slots })?;
    let (qkv, mut y) = (tensor(&backend, rows, HEADS.qkv_cols())?, backend.zeros(rows, HEADS.q_cols())?);
    let ids: Vec<Vec<u32>> = (0..count).map(|r| (r * pages_each..(r + 1) * pages_each).collect()).collect();
    let work = rows as f64 * attention_flops(keys as usize);
    let call = Box::new(move || {
        let rows: Vec<PagedRow<'_>> = ids.iter().map(|pages| PagedRow { pages, len: keys }).collect();
        backend.attention_paged(AttentionPagedArgs {
            y: &mut y,
            qkv: &qkv,
            heads: HEADS,
            pages: &pages,
            rows: &rows,
            scale: 0.125,
        })
    });
    let case = format!("{rows} rows, {keys} keys, pages of {PAGE_TOKENS}");
    Ok(Case { op: "attention_paged", case, dtype: Dtype::F32, limit: Limit::F32Flops, work, call })
}
