//! Ops that move memory: rows, columns, heads, caches. What counts is bytes, read and written, of data that may fit in a
//! cache: a share above one says that it did.

use super::cases::{Make, NoRotation, activations, count, tensor, weights};
use super::{Backends, Case, Limit, Shape};
use crate::error::Result;
use crate::ops::cases::{ColsCase, HeadsCase, ModelSizes, RowsCase};
use crate::ops::{
    Adamw, AdamwArgs, AdamwStep, AddColsArgs, Backend, BlockInfluenceArgs, Device, EmbeddingArgs, GatherRowsArgs, HeadNormArgs,
    KvWriteArgs, LayerNormArgs, PAGE_TOKENS, RmsNormArgs, RopeArgs, ScatterRowsArgs, SwigluArgs, TakeColsArgs,
};
use crate::tensor::Dtype;
use std::sync::Arc;

/// Ops of a model.
pub(super) fn all<B: Backend + 'static>(sizes: ModelSizes) -> Vec<Make<B>> {
    let make = |case: fn(&Rows<B>) -> Result<Case>| -> Make<B> { Box::new(move |on| case(&Rows::new(on, sizes))) };
    vec![
        make(|on| rms_norm(on, on.stream())),
        make(|on| rms_norm(on, RowsCase { rows: 1, ..on.stream() })),
        make(layer_norm),
        make(head_norm),
        make(rope),
        make(swiglu),
        make(embedding),
        make(gather_rows),
        make(scatter_rows),
        make(add_cols),
        make(take_cols),
        make(|on| kv_write(on, on.sizes.batch, 1)),
        make(|on| kv_write(on, 16, PAGE_TOKENS)),
        make(block_influence),
    ]
}

/// Ops of the optimiser.
pub(super) fn optimiser<B: Backend + Adamw + 'static>(shape: Shape) -> Vec<Make<B>> {
    let sizes = shape.sizes();
    vec![Box::new(move |on| adamw(&Rows::new(on, sizes))), Box::new(move |on| squared_norm(&Rows::new(on, sizes)))]
}

/// The backend whose activations are stored as in a model, and the sizes.
pub(super) struct Rows<B> {
    pub(super) backend: Arc<B>,
    pub(super) dtype: Dtype,
    pub(super) sizes: ModelSizes,
}

impl<B: Device> Rows<B> {
    pub(super) fn new(on: &Backends<B>, sizes: ModelSizes) -> Self {
        let dtype = on.activations();
        Self { backend: on.of(dtype), dtype, sizes }
    }

    /// The residual stream of a batch.
    fn stream(&self) -> RowsCase {
        self.sizes.stream(self.sizes.batch)
    }

    /// Bytes of an element within a layer. The residual stream has 4.
    pub(super) fn within(&self) -> f64 {
        self.backend.scratch_dtype().size() as f64
    }

    /// A case of `bytes_each` bytes, read or written, for each of `elements`.
    pub(super) fn case(
        &self,
        op: &'static str,
        case: String,
        elements: usize,
        bytes_each: f64,
        call: impl FnMut() -> Result<()> + 'static,
    ) -> Result<Case> {
        let work = vec![(Limit::MemoryBytes, bytes_each * elements as f64)];
        Ok(Case { op, case, dtype: self.dtype, work, call: Box::new(call) })
    }
}

fn rms_norm<B: Backend + 'static>(on: &Rows<B>, case: RowsCase) -> Result<Case> {
    let (backend, RowsCase { rows, cols: hidden }) = (on.backend.clone(), case);
    let (x, weight) = (tensor(&*backend, rows, hidden)?, tensor(&*backend, 1, hidden)?);
    let mut y = backend.scratch(rows, hidden)?;
    let call = move || backend.rms_norm(RmsNormArgs { y: &mut y, x: &x, weight: &weight, eps: 1e-5 });
    on.case("rms_norm", format!("{rows} x {hidden}"), rows * hidden, 4.0 + on.within(), call)
}

fn layer_norm<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, RowsCase { rows: batch, cols: hidden }) = (on.backend.clone(), on.stream());
    let (x, weight) = (tensor(&*backend, batch, hidden)?, tensor(&*backend, 1, hidden)?);
    let mut y = backend.scratch(batch, hidden)?;
    let call = move || backend.layer_norm(LayerNormArgs { y: &mut y, x: &x, weight: &weight, eps: 1e-5 });
    on.case("layer_norm", format!("{batch} x {hidden}"), batch * hidden, 4.0 + on.within(), call)
}

fn head_norm<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, case) = (on.backend.clone(), on.sizes.queries(on.sizes.batch));
    let HeadsCase { rows, heads, head_dim, behind } = case;
    let mut x = activations(&*backend, rows, heads * head_dim + behind)?;
    let weight = tensor(&*backend, heads, head_dim)?;
    let call = move || backend.head_norm(HeadNormArgs { x: &mut x, weight: &weight, first_col: 0, eps: 1e-5 });
    on.case("head_norm", of_heads(case), rows * heads * head_dim, 2.0 * on.within(), call)
}

fn of_heads(case: HeadsCase) -> String {
    format!("{} x {} heads of {}", case.rows, case.heads, case.head_dim)
}

fn rope<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, case) = (on.backend.clone(), on.sizes.rotated(on.sizes.batch));
    let HeadsCase { rows, heads, head_dim, behind } = case;
    let (half, length) = (head_dim / 2, 128);
    // Rotations: values stay as large as they are, however often it runs.
    let angles: Vec<f32> = (0..length).flat_map(|t| (0..half).map(move |i| t as f32 / (i + 1) as f32)).collect();
    let cos = backend.upload(length, half, &angles.iter().map(|a| a.cos()).collect::<Vec<_>>())?;
    let sin = backend.upload(length, half, &angles.iter().map(|a| a.sin()).collect::<Vec<_>>())?;
    let mut x = activations(&*backend, rows, heads * head_dim + behind)?;
    let positions: Vec<u32> = (0..rows).map(|row| count(row % length)).collect::<Result<_>>()?;
    let call = move || {
        let (cos, sin, positions) = (&cos, &sin, positions.as_slice());
        backend.rope(RopeArgs { x: &mut x, heads, cos, sin, positions, interleaved: false })
    };
    on.case("rope", of_heads(case), rows * heads * head_dim, 2.0 * on.within(), call)
}

fn swiglu<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, RowsCase { rows: batch, cols: intermediate }) = (on.backend.clone(), on.sizes.mlp(on.sizes.batch));
    let (gate_up, mut y) = (activations(&*backend, batch, 2 * intermediate)?, backend.scratch(batch, intermediate)?);
    let call = move || backend.swiglu(SwigluArgs { y: &mut y, gate_up: &gate_up });
    on.case("swiglu", format!("{batch} x {intermediate}"), batch * intermediate, 3.0 * on.within(), call)
}

/// Row numbers below `rows`, all different, far from each other.
fn scattered(rows: usize) -> Result<Vec<u32>> {
    // 1657 is prime and no divisor of the tables' sizes.
    (0..rows).map(|i| count(i * 1657 % rows)).collect()
}

fn embedding<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, ModelSizes { vocab, hidden, batch, .. }) = (on.backend.clone(), on.sizes);
    let table = weights(&*backend, vocab, hidden)?;
    let mut ids = scattered(vocab)?;
    ids.truncate(batch);
    let mut y = backend.zeros(ids.len(), hidden)?;
    let elements = ids.len() * hidden;
    let case = format!("{} of {vocab} x {hidden}", ids.len());
    let call = move || backend.embedding(EmbeddingArgs { y: &mut y, table: &table, ids: &ids });
    on.case("embedding", case, elements, 6.0, call)
}

/// Half of a batch's rows, as when half of them are targets.
fn picked(sizes: ModelSizes) -> Result<Vec<u32>> {
    let mut rows = scattered(sizes.batch)?;
    rows.truncate(sizes.batch / 2);
    Ok(rows)
}

fn gather_rows<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, rows, RowsCase { rows: batch, cols: hidden }) = (on.backend.clone(), picked(on.sizes)?, on.stream());
    let (x, mut y) = (tensor(&*backend, batch, hidden)?, backend.zeros(rows.len(), hidden)?);
    let (case, elements) = (format!("{} of {batch} x {hidden}", rows.len()), rows.len() * hidden);
    let call = move || backend.gather_rows(GatherRowsArgs { y: &mut y, x: &x, rows: &rows });
    on.case("gather_rows", case, elements, 8.0, call)
}

fn scatter_rows<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, rows, RowsCase { rows: batch, cols: hidden }) = (on.backend.clone(), picked(on.sizes)?, on.stream());
    let (x, mut y) = (tensor(&*backend, rows.len(), hidden)?, backend.zeros(batch, hidden)?);
    let (case, elements) = (format!("{} of {batch} x {hidden}", rows.len()), rows.len() * hidden);
    let call = move || backend.scatter_rows(ScatterRowsArgs { y: &mut y, x: &x, rows: &rows });
    on.case("scatter_rows", case, elements, 8.0, call)
}

fn add_cols<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, case) = (on.backend.clone(), on.sizes.keys(on.sizes.batch));
    let ColsCase { rows, cols, first_col, behind } = case;
    let (x, mut y) = (activations(&*backend, rows, cols)?, activations(&*backend, rows, first_col + cols + behind)?);
    let call = move || backend.add_cols(AddColsArgs { y: &mut y, x: &x, first_col, scale: 0.5 });
    on.case("add_cols", format!("{rows} x {cols}"), rows * cols, 3.0 * on.within(), call)
}

fn take_cols<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, case) = (on.backend.clone(), on.sizes.keys(on.sizes.batch));
    let ColsCase { rows, cols, first_col, behind } = case;
    let (x, mut y) = (activations(&*backend, rows, first_col + cols + behind)?, backend.scratch(rows, cols)?);
    let call = move || backend.take_cols(TakeColsArgs { y: &mut y, x: &x, first_col });
    on.case("take_cols", format!("{rows} x {cols}"), rows * cols, 2.0 * on.within(), call)
}

/// Rows `stride` tokens apart: with that of a page they are those of a decoding step, one a sequence.
fn kv_write<B: Backend + 'static>(on: &Rows<B>, rows: usize, stride: usize) -> Result<Case> {
    let (backend, ModelSizes { heads, .. }) = (on.backend.clone(), on.sizes);
    let mut pages = backend.kv_pages((rows * stride).div_ceil(PAGE_TOKENS), heads)?;
    let slots: Vec<u32> = (0..rows).map(|row| count(row * stride)).collect::<Result<_>>()?;
    let mut qkv = activations(&*backend, rows, heads.qkv_cols())?;
    let rotation = NoRotation::new(&*backend, rows, heads.head_dim)?;
    let call = move || {
        let rope = rotation.of(&mut qkv, heads.heads + heads.kv_heads);
        backend.kv_write(KvWriteArgs { pages: &mut pages, rope, heads, slots: &slots })
    };
    let cols = heads.qkv_cols();
    on.case("kv_write", format!("{rows} x {cols}"), rows * cols, 2.0 * on.within(), call)
}

fn block_influence<B: Backend + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, RowsCase { rows: batch, cols: hidden }) = (on.backend.clone(), on.stream());
    let (before, after) = (tensor(&*backend, batch, hidden)?, tensor(&*backend, batch, hidden)?);
    let call = move || backend.block_influence(BlockInfluenceArgs { before: &before, after: &after }).map(|_| ());
    on.case("block_influence", format!("{batch} x {hidden}"), batch * hidden, 8.0, call)
}

fn adamw<B: Backend + Adamw + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, RowsCase { rows, cols: hidden }) = (on.backend.clone(), on.sizes.parameters());
    let step = AdamwStep { step: 10, lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, grad_scale: 1.0 };
    let matrix = || tensor(&*backend, rows, hidden);
    let (mut value, grad, mut first) = (matrix()?, matrix()?, matrix()?);
    let mut second = backend.zeros(rows, hidden)?;
    let call = move || backend.adamw(AdamwArgs { value: &mut value, grad: &grad, first: &mut first, second: &mut second, step });
    on.case("adamw", format!("{rows} x {hidden}"), rows * hidden, 28.0, call)
}

fn squared_norm<B: Backend + Adamw + 'static>(on: &Rows<B>) -> Result<Case> {
    let (backend, RowsCase { rows, cols: hidden }) = (on.backend.clone(), on.sizes.parameters());
    let x = tensor(&*backend, rows, hidden)?;
    let call = move || backend.squared_norm(&x).map(|_| ());
    on.case("squared_norm", format!("{rows} x {hidden}"), rows * hidden, 4.0, call)
}
