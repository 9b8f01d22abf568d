//! Ops that move memory: rows, columns, heads, caches. What counts is bytes, read and written, of data that may fit in a
//! cache: a share above one says that it did.

use super::cases::{HEADS, HIDDEN, Make, VOCAB, tensor, weights};
use super::{Case, Limit};
use crate::backend::cpu::{CpuBackend, Tensor};
use crate::error::{Error, Result};
use crate::ops::{
    Adamw, AdamwArgs, AdamwStep, AddColsArgs, BlockInfluence, BlockInfluenceArgs, Cols, Device, Embedding, EmbeddingArgs,
    GatherRowsArgs, HeadNormArgs, KvCache, KvWriteArgs, LayerNorm, LayerNormArgs, PAGE_TOKENS, RmsNorm, RmsNormArgs, Rope,
    RopeArgs, Rows, ScatterRowsArgs, Swiglu, SwigluArgs, TakeColsArgs,
};
use crate::tensor::Dtype;

/// Rows of a batch that is scored.
const ROWS: usize = 4096;
const INTERMEDIATE: usize = 1536;

/// All of them.
pub(super) fn all() -> Vec<Make> {
    vec![
        Box::new(|threads| rms_norm(threads, ROWS)),
        Box::new(|threads| rms_norm(threads, 1)),
        Box::new(layer_norm),
        Box::new(head_norm),
        Box::new(rope),
        Box::new(swiglu),
        Box::new(embedding),
        Box::new(gather_rows),
        Box::new(scatter_rows),
        Box::new(add_cols),
        Box::new(take_cols),
        Box::new(|threads| kv_write(threads, ROWS)),
        Box::new(|threads| kv_write(threads, 16)),
        Box::new(block_influence),
        Box::new(adamw),
        Box::new(squared_norm),
    ]
}

/// A case of `bytes_each` bytes, read or written, for each of `elements`.
fn case(op: &'static str, what: String, elements: usize, bytes_each: f64, call: Box<dyn FnMut() -> Result<()>>) -> Result<Case> {
    Ok(Case { op, case: what, dtype: Dtype::F32, limit: Limit::ReadBytes, work: bytes_each * elements as f64, call })
}

fn backend(threads: Option<usize>) -> Result<CpuBackend> {
    CpuBackend::new(Dtype::F32, threads)
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::request("too many rows for a bench"))
}

fn rms_norm(threads: Option<usize>, rows: usize) -> Result<Case> {
    let backend = backend(threads)?;
    let (x, weight) = (tensor(&backend, rows, HIDDEN)?, tensor(&backend, 1, HIDDEN)?);
    let mut y = backend.zeros(rows, HIDDEN)?;
    let call = Box::new(move || backend.rms_norm(RmsNormArgs { y: &mut y, x: &x, weight: &weight, eps: 1e-5 }));
    case("rms_norm", format!("{rows} x {HIDDEN}"), rows * HIDDEN, 8.0, call)
}

fn layer_norm(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let (x, weight) = (tensor(&backend, ROWS, HIDDEN)?, tensor(&backend, 1, HIDDEN)?);
    let mut y = backend.zeros(ROWS, HIDDEN)?;
    let call = Box::new(move || backend.layer_norm(LayerNormArgs { y: &mut y, x: &x, weight: &weight, eps: 1e-5 }));
    case("layer_norm", format!("{ROWS} x {HIDDEN}"), ROWS * HIDDEN, 8.0, call)
}

fn head_norm(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let mut x = tensor(&backend, ROWS, HEADS.qkv_cols())?;
    let weight = tensor(&backend, HEADS.heads, HEADS.head_dim)?;
    let call = Box::new(move || backend.head_norm(HeadNormArgs { x: &mut x, weight: &weight, first_col: 0, eps: 1e-5 }));
    case("head_norm", format!("{ROWS} x {} heads of {}", HEADS.heads, HEADS.head_dim), ROWS * HEADS.q_cols(), 8.0, call)
}

fn rope(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let (half, heads, length) = (HEADS.head_dim / 2, HEADS.heads + HEADS.kv_heads, 128);
    // Rotations: values stay as large as they are, however often it runs.
    let angles: Vec<f32> = (0_u16..128).flat_map(|t| (0_u16..32).map(move |i| f32::from(t) / f32::from(i + 1))).collect();
    let cos = backend.upload(length, half, &angles.iter().map(|a| a.cos()).collect::<Vec<_>>())?;
    let sin = backend.upload(length, half, &angles.iter().map(|a| a.sin()).collect::<Vec<_>>())?;
    let mut x = tensor(&backend, ROWS, HEADS.qkv_cols())?;
    let positions: Vec<u32> = (0..ROWS).map(|row| count(row % length)).collect::<Result<_>>()?;
    let call = Box::new(move || {
        let (cos, sin, positions) = (&cos, &sin, positions.as_slice());
        backend.rope(RopeArgs { x: &mut x, heads, cos, sin, positions, interleaved: false })
    });
    case("rope", format!("{ROWS} x {heads} heads of {}", HEADS.head_dim), ROWS * heads * HEADS.head_dim, 8.0, call)
}

fn swiglu(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let (gate_up, mut y) = (tensor(&backend, ROWS, 2 * INTERMEDIATE)?, backend.zeros(ROWS, INTERMEDIATE)?);
    let call = Box::new(move || backend.swiglu(SwigluArgs { y: &mut y, gate_up: &gate_up }));
    case("swiglu", format!("{ROWS} x {INTERMEDIATE}"), ROWS * INTERMEDIATE, 12.0, call)
}

/// Row numbers below `rows`, all different, far from each other.
fn scattered(rows: usize) -> Result<Vec<u32>> {
    // 1657 is prime and no divisor of the tables' sizes.
    (0..rows).map(|i| count(i * 1657 % rows)).collect()
}

fn embedding(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let table = weights(&backend, VOCAB, HIDDEN)?;
    let mut ids = scattered(VOCAB)?;
    ids.truncate(ROWS);
    let mut y = backend.zeros(ROWS, HIDDEN)?;
    let call = Box::new(move || backend.embedding(EmbeddingArgs { y: &mut y, table: &table, ids: &ids }));
    case("embedding", format!("{ROWS} of {VOCAB} x {HIDDEN}"), ROWS * HIDDEN, 6.0, call)
}

/// Half of a batch's rows, as when half of them are targets.
fn picked() -> Result<Vec<u32>> {
    let mut rows = scattered(ROWS)?;
    rows.truncate(ROWS / 2);
    Ok(rows)
}

fn gather_rows(threads: Option<usize>) -> Result<Case> {
    let (backend, rows) = (backend(threads)?, picked()?);
    let (x, mut y) = (tensor(&backend, ROWS, HIDDEN)?, backend.zeros(rows.len(), HIDDEN)?);
    let elements = rows.len() * HIDDEN;
    let call = Box::new(move || backend.gather_rows(GatherRowsArgs { y: &mut y, x: &x, rows: &rows }));
    case("gather_rows", format!("{} of {ROWS} x {HIDDEN}", ROWS / 2), elements, 8.0, call)
}

fn scatter_rows(threads: Option<usize>) -> Result<Case> {
    let (backend, rows) = (backend(threads)?, picked()?);
    let (x, mut y) = (tensor(&backend, rows.len(), HIDDEN)?, backend.zeros(ROWS, HIDDEN)?);
    let elements = rows.len() * HIDDEN;
    let call = Box::new(move || backend.scatter_rows(ScatterRowsArgs { y: &mut y, x: &x, rows: &rows }));
    case("scatter_rows", format!("{} of {ROWS} x {HIDDEN}", ROWS / 2), elements, 8.0, call)
}

fn add_cols(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let (x, mut y) = (tensor(&backend, ROWS, HEADS.kv_cols())?, backend.zeros(ROWS, HEADS.qkv_cols())?);
    let call = Box::new(move || backend.add_cols(AddColsArgs { y: &mut y, x: &x, first_col: HEADS.q_cols(), scale: 0.5 }));
    case("add_cols", format!("{ROWS} x {}", HEADS.kv_cols()), ROWS * HEADS.kv_cols(), 12.0, call)
}

fn take_cols(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let (x, mut y) = (tensor(&backend, ROWS, HEADS.qkv_cols())?, backend.zeros(ROWS, HEADS.kv_cols())?);
    let call = Box::new(move || backend.take_cols(TakeColsArgs { y: &mut y, x: &x, first_col: HEADS.q_cols() }));
    case("take_cols", format!("{ROWS} x {}", HEADS.kv_cols()), ROWS * HEADS.kv_cols(), 8.0, call)
}

fn kv_write(threads: Option<usize>, rows: usize) -> Result<Case> {
    let backend = backend(threads)?;
    // Few rows are those of a decoding step: one a sequence, each in a page of its own.
    let stride = if rows == ROWS { 1 } else { PAGE_TOKENS };
    let mut pages = backend.kv_pages((rows * stride).div_ceil(PAGE_TOKENS), HEADS)?;
    let slots: Vec<u32> = (0..rows).map(|row| count(row * stride)).collect::<Result<_>>()?;
    let qkv = tensor(&backend, rows, HEADS.qkv_cols())?;
    let call = Box::new(move || backend.kv_write(KvWriteArgs { pages: &mut pages, qkv: &qkv, heads: HEADS, slots: &slots }));
    case("kv_write", format!("{rows} x {}", 2 * HEADS.kv_cols()), rows * 2 * HEADS.kv_cols(), 8.0, call)
}

fn block_influence(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let (before, after) = (tensor(&backend, ROWS, HIDDEN)?, tensor(&backend, ROWS, HIDDEN)?);
    let call = Box::new(move || backend.block_influence(BlockInfluenceArgs { before: &before, after: &after }).map(|_| ()));
    case("block_influence", format!("{ROWS} x {HIDDEN}"), ROWS * HIDDEN, 8.0, call)
}

fn adamw(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let step = AdamwStep { step: 10, lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, grad_scale: 1.0 };
    let matrix = || tensor(&backend, 2 * INTERMEDIATE, HIDDEN);
    let (mut value, grad, mut first): (Tensor, Tensor, Tensor) = (matrix()?, matrix()?, matrix()?);
    let mut second = backend.zeros(2 * INTERMEDIATE, HIDDEN)?;
    let call = Box::new(move || {
        backend.adamw(AdamwArgs { value: &mut value, grad: &grad, first: &mut first, second: &mut second, step })
    });
    case("adamw", format!("{} x {HIDDEN}", 2 * INTERMEDIATE), 2 * INTERMEDIATE * HIDDEN, 28.0, call)
}

fn squared_norm(threads: Option<usize>) -> Result<Case> {
    let backend = backend(threads)?;
    let x = tensor(&backend, 2 * INTERMEDIATE, HIDDEN)?;
    let call = Box::new(move || backend.squared_norm(&x).map(|_| ()));
    case("squared_norm", format!("{} x {HIDDEN}", 2 * INTERMEDIATE), 2 * INTERMEDIATE * HIDDEN, 4.0, call)
}
