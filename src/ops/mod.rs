//! The contract between models and devices: one trait an op, each with its formula, shapes and numerics, and the checks
//! of its arguments. A backend implements all of them; there are no default bodies, so an op that is missing does not compile.
//!
//! Rules that hold for every op:
//! - Activations are [`Tensor`](Device::Tensor)s of shape [rows, cols]; a row is a token. What they are stored as is the
//!   backend's choice (CPU: f32), sums are always f32 or wider.
//! - **Batch-invariant**: what comes out for a row has the same bits whatever other rows are in the call, however rows are
//!   grouped into calls, and with any number of threads. Each output element is one chain of operations in an order that
//!   depends on its own row only.
//! - Zero rows are legal and do nothing.
//! - Arguments that do not fit are an [`Error::Shape`], found before anything is computed.

pub mod adamw;
pub mod argmax;
pub mod attention;
pub mod block_influence;
pub mod cases;
pub mod cols;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod fill;
pub mod kv_cache;
pub mod layer_norm;
pub mod linear;
pub mod linear_swiglu;
pub mod nf4;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod swiglu;

use crate::error::{Error, Result};
use crate::tensor::HostTensor;

pub use adamw::{Adamw, AdamwArgs, AdamwStep};
pub use argmax::{Argmax, ArgmaxArgs};
pub use attention::{Attention, AttentionArgs, AttentionBackward, AttentionBackwardArgs, Heads};
pub use block_influence::{BlockInfluence, BlockInfluenceArgs};
pub use cols::{AddColsArgs, Cols, TakeColsArgs};
pub use cross_entropy::{
    CrossEntropy, CrossEntropyArgs, CrossEntropyBackward, CrossEntropyBackwardArgs, Distillation, Teacher, TokenLosses,
};
pub use dropout::{Dropout, DropoutArgs, DropoutMask};
pub use embedding::{Embedding, EmbeddingArgs, EmbeddingBackward, EmbeddingBackwardArgs};
pub use fill::Fill;
pub use kv_cache::{AttentionPagedArgs, KvCache, KvWriteArgs, PAGE_TOKENS, PagedRow};
pub use layer_norm::{HeadNormArgs, HeadNormBackwardArgs, LayerNorm, LayerNormArgs, LayerNormBackward, LayerNormBackwardArgs};
pub use linear::{
    Direction, Linear, LinearArgs, LinearBackward, LinearBackwardBiasArgs, LinearBackwardInputArgs, LinearBackwardWeightArgs,
};
pub use linear_swiglu::{LinearSwiglu, LinearSwigluArgs};
pub use nf4::Nf4;
pub use rms_norm::{RmsNorm, RmsNormArgs, RmsNormBackward, RmsNormBackwardArgs};
pub use rope::{Rope, RopeArgs, RopeBackward};
pub use rows::{GatherRowsArgs, Rows, ScatterRowsArgs};
pub use swiglu::{Swiglu, SwigluArgs, SwigluBackward, SwigluBackwardArgs};

/// Shape of a device tensor.
pub trait Shaped {
    /// Number of rows (tokens).
    fn rows(&self) -> usize;
    /// Elements a row.
    fn cols(&self) -> usize;
}

/// Memory of a device: activations and prepared weights.
pub trait Device: Send + Sync {
    /// Activations, [rows, cols].
    type Tensor: Shaped + Send + Sync;
    /// A weight matrix [out_features, in_features], prepared for this device's `linear`. [`Shaped::rows`] is out_features.
    type Matrix: Shaped + Send + Sync;

    /// `cpu`, `cuda:0`: as `--device` takes it.
    fn name(&self) -> String;

    /// The dtype matrices are multiplied in, for reports: `f32` or `bf16`.
    fn compute_dtype(&self) -> crate::tensor::Dtype;

    /// Whose matrix products these are: `native`, whose results do not depend on the rows beside, or `cublaslt`.
    fn gemm(&self) -> &'static str {
        "native"
    }

    /// Runs `work`, one of many steps in a row that mostly call the same ops on the same memory (a token more for every sequence
    /// of a batch), which a device may replay as a whole. Not within another step.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Device`].
    fn step(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        work()
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    fn zeros(&self, rows: usize, cols: usize) -> Result<Self::Tensor>;

    /// A tensor of unspecified content for what lives within a layer, between two matrix products. A backend may store it in
    /// fewer bits than [`Device::zeros`] and [`Device::upload`] do, whose tensors are summed over layers.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    fn scratch(&self, rows: usize, cols: usize) -> Result<Self::Tensor>;

    /// What [`Device::scratch`] tensors are stored in.
    fn scratch_dtype(&self) -> crate::tensor::Dtype;

    /// Changes the shape, keeping the memory where it is large enough. The content is unspecified afterwards.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    fn resize(&self, tensor: &mut Self::Tensor, rows: usize, cols: usize) -> Result<()>;

    /// `values` (row-major, rows * cols of them) as a tensor.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] when memory is short.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Tensor>;

    /// The elements, row-major, as f32.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn download(&self, tensor: &Self::Tensor) -> Result<Vec<f32>>;

    /// y = x, shapes equal.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    fn copy(&self, y: &mut Self::Tensor, x: &Self::Tensor) -> Result<()>;

    /// A matrix from two-dimensional parts with equal in_features, stacked along out_features (q, k and v as one).
    /// Preparing may be put off until the first use. The parts' bytes stay mapped as long as the matrix lives.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] when memory is short.
    fn prepare(&self, parts: &[HostTensor]) -> Result<Self::Matrix>;

    /// Does now what [`Device::prepare`] has put off until the first use of `weight`; nothing where nothing was.
    ///
    /// # Errors
    /// [`Error::Data`] for a weight that is not finite; [`Error::Device`] when memory is short.
    fn make_ready(&self, weight: &Self::Matrix) -> Result<()>;

    /// Bytes a tensor of this shape takes, for planning against a memory budget.
    fn tensor_bytes(&self, rows: usize, cols: usize) -> u64;

    /// Rows that go through a layer together: enough for full arithmetic speed, few enough for what lives within a layer.
    fn batch_rows(&self) -> usize;

    /// Bytes that could be allocated now, on a device with memory of its own, which weights have to share; `None` on one that
    /// reads weights where the files are mapped.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn free_memory(&self) -> Result<Option<u64>>;

    /// Most bytes of the device's own memory that were in use at a time; `None` on one that has none.
    fn peak_memory(&self) -> Option<u64>;

    /// Energy that the device has drawn since some moment in the past, in joules: differences count, and whoever else uses it
    /// is in them. `None` where nothing measures it.
    fn energy_joules(&self) -> Option<f64>;
}

/// A device that computes every op.
pub trait Backend:
    Device
    + Embedding
    + Linear
    + RmsNorm
    + LayerNorm
    + Rope
    + Attention
    + KvCache
    + Swiglu
    + LinearSwiglu
    + CrossEntropy
    + Argmax
    + BlockInfluence
    + Rows
    + Cols
    + Nf4
{
}

impl<T> Backend for T where
    T: Device
        + Embedding
        + Linear
        + RmsNorm
        + LayerNorm
        + Rope
        + Attention
        + KvCache
        + Swiglu
        + LinearSwiglu
        + CrossEntropy
        + Argmax
        + BlockInfluence
        + Rows
        + Cols
        + Nf4
{
}

/// A device that computes gradients too.
pub trait TrainingBackend:
    Backend
    + AttentionBackward
    + CrossEntropyBackward
    + Dropout
    + EmbeddingBackward
    + Fill
    + LayerNormBackward
    + LinearBackward
    + RmsNormBackward
    + RopeBackward
    + SwigluBackward
{
}

impl<T> TrainingBackend for T where
    T: Backend
        + AttentionBackward
        + CrossEntropyBackward
        + Dropout
        + EmbeddingBackward
        + Fill
        + LayerNormBackward
        + LinearBackward
        + RmsNormBackward
        + RopeBackward
        + SwigluBackward
{
}

/// Names of all ops, as files, tests and `bench ops` spell them.
pub const ALL: &[&str] = &[
    "adamw",
    "add_cols",
    "argmax",
    "attention",
    "attention_paged",
    "block_influence",
    "cross_entropy",
    "embedding",
    "gather_rows",
    "head_norm",
    "kv_write",
    "layer_norm",
    "linear",
    "linear_swiglu",
    "rms_norm",
    "rope",
    "scatter_rows",
    "squared_norm",
    "swiglu",
    "take_cols",
];

/// Names of the ops that only training uses.
pub const TRAINING: &[&str] = &[
    "attention_backward",
    "cross_entropy_backward",
    "dropout",
    "embedding_backward",
    "fill",
    "head_norm_backward",
    "layer_norm_backward",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "rms_norm_backward",
    "rope_backward",
    "swiglu_backward",
];

/// `Err(Shape)` unless `tensor` is [rows, cols].
pub(crate) fn expect(op: &'static str, arg: &'static str, tensor: &impl Shaped, rows: usize, cols: usize) -> Result<()> {
    if tensor.rows() == rows && tensor.cols() == cols {
        Ok(())
    } else {
        Err(Error::shape(op, arg, &[rows, cols], &[tensor.rows(), tensor.cols()]))
    }
}

/// `Err(Shape)` unless a host array has `len` elements.
pub(crate) fn expect_len(op: &'static str, arg: &'static str, found: usize, len: usize) -> Result<()> {
    if found == len { Ok(()) } else { Err(Error::shape(op, arg, &[len], &[found])) }
}

/// `Err(Shape)` unless every index is below `limit`; the shape named is [limit], the offending index stands as found.
pub(crate) fn expect_below(op: &'static str, arg: &'static str, indices: &[u32], limit: usize) -> Result<()> {
    match indices.iter().find(|&&i| i as usize >= limit) {
        Some(&i) => Err(Error::shape(op, arg, &[limit], &[i as usize])),
        None => Ok(()),
    }
}
