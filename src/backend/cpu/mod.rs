//! The CPU backend: every op in Rust, compiled for several instruction sets and chosen at run time.
//!
//! Activations are f32, row-major. Weights are packed on first use into panels of 32 outputs (`matrix.rs`); bf16 and f32
//! weights stay in 2 and 4 bytes. Each op file opens with the plain loops where the fast form differs from them.
//! Batch invariance holds by construction: an output is one chain of operations in the order of its own row (over k, over
//! keys, over the vocabulary), and blocking or threads only decide which chains run side by side.

mod adamw;
mod argmax;
mod attention;
mod attention_backward;
mod block_influence;
mod cols;
mod cross_entropy;
mod cross_entropy_backward;
mod dropout;
mod embedding;
mod embedding_backward;
mod exp;
mod fill;
mod gemm;
mod head;
mod kv_cache;
mod layer_norm;
mod layer_norm_backward;
mod linear;
mod linear_backward;
mod linear_swiglu;
mod mapped;
mod matrix;
mod nf4;
mod pack_columns;
pub mod peak;
mod pool;
mod rms_norm;
mod rms_norm_backward;
mod rope;
mod rows;
mod simd;
mod swiglu;
mod swiglu_backward;
mod transpose;
mod values;

pub use exp::exp;
pub use kv_cache::KvPages;
pub use matrix::Matrix;
pub use simd::Isa;

use crate::error::{Error, Result};
use crate::ops::{Device, Shaped, expect, expect_len};
use crate::tensor::{Dtype, HostTensor};
use mapped::Spare;
use pool::Pool;
use simd::Line;
use std::sync::{Arc, Mutex};
use values::Values;

/// Activations: [rows, cols] f32, row-major.
#[derive(Debug, Clone, Default)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Values,
}

impl Shaped for Tensor {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

impl Tensor {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }
}

/// The device `cpu`.
#[derive(Debug)]
pub struct CpuBackend {
    compute: Dtype,
    isa: Isa,
    pool: Pool,
    /// Keys and values of a packed batch in pages, kept for the next call so that its memory is not fresh each time.
    attention_pages: Mutex<Vec<Line>>,
    /// Memory of packed weights that are gone.
    spare: Arc<Spare>,
}

impl CpuBackend {
    /// A backend that multiplies matrices in `compute` (f32 or bf16) on `threads` threads (none: all of the machine's).
    ///
    /// # Errors
    /// [`Error::Request`] for another dtype or 0 threads; [`Error::Device`] if threads cannot be started.
    pub fn new(compute: Dtype, threads: Option<usize>) -> Result<Self> {
        Self::with_isa(compute, threads, Isa::detect())
    }

    /// The same with a given instruction set. f32 results have the same bits with each.
    ///
    /// # Errors
    /// As [`CpuBackend::new`]; [`Error::Device`] if the machine lacks `isa`.
    pub fn with_isa(compute: Dtype, threads: Option<usize>, isa: Isa) -> Result<Self> {
        match compute {
            Dtype::F32 | Dtype::Bf16 => {}
            Dtype::F16 => {
                return Err(Error::request("the CPU multiplies matrices in f32 or bf16, not f16").with_help("use f32"));
            }
        }
        if !isa.available() {
            return Err(Error::Device { problem: format!("this CPU has no {}", isa.name()), help: None });
        }
        Ok(Self { compute, isa, pool: Pool::new(threads)?, attention_pages: Mutex::default(), spare: Arc::default() })
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

/// Grows or shrinks `data` to `len`, keeping its memory where that is enough; an error instead of an abort when there is none.
fn set_len<T: Clone>(data: &mut Vec<T>, len: usize, fill: T) -> Result<()> {
    if len > data.len() {
        data.try_reserve_exact(len - data.len()).map_err(|_| Error::Device {
            problem: format!("not enough memory for {} bytes", len.saturating_mul(size_of::<T>())),
            help: Some("use a smaller batch or memory budget".into()),
        })?;
    }
    data.resize(len, fill);
    Ok(())
}

impl Device for CpuBackend {
    type Tensor = Tensor;
    type Matrix = Matrix;

    fn name(&self) -> String {
        "cpu".into()
    }

    fn compute_dtype(&self) -> Dtype {
        self.compute
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        let mut tensor = Tensor::default();
        self.resize(&mut tensor, rows, cols)?;
        Ok(tensor)
    }

    fn scratch(&self, rows: usize, cols: usize) -> Result<Tensor> {
        self.zeros(rows, cols)
    }

    fn scratch_dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn resize(&self, tensor: &mut Tensor, rows: usize, cols: usize) -> Result<()> {
        tensor.data.set_len(rows.saturating_mul(cols))?;
        (tensor.rows, tensor.cols) = (rows, cols);
        Ok(())
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        expect_len("upload", "values", values.len(), rows * cols)?;
        let mut tensor = self.zeros(rows, cols)?;
        tensor.data.copy_from_slice(values);
        Ok(tensor)
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(tensor.data.to_vec())
    }

    fn copy(&self, y: &mut Tensor, x: &Tensor) -> Result<()> {
        expect("copy", "x", x, y.rows, y.cols)?;
        let chunk = self.pool.rows_per_task(x.data.len(), 1).max(1 << 16);
        self.pool.chunks(&mut y.data, chunk, |first, y| y.copy_from_slice(&x.data[first..][..y.len()]));
        Ok(())
    }

    fn prepare(&self, parts: &[HostTensor]) -> Result<Matrix> {
        Matrix::new(parts)
    }

    fn make_ready(&self, weight: &Matrix) -> Result<()> {
        // Weights in four bits are packed already.
        if weight.nf4().is_none() {
            weight.packed(self)?;
        }
        Ok(())
    }

    fn tensor_bytes(&self, rows: usize, cols: usize) -> u64 {
        4 * rows as u64 * cols as u64
    }

    fn batch_rows(&self) -> usize {
        // Intermediate activations stay in cache.
        512
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn peak_memory(&self) -> Option<u64> {
        None
    }

    fn energy_joules(&self) -> Option<f64> {
        None
    }
}
