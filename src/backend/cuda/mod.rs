//! NVIDIA GPUs: kernels compiled ahead and embedded in the binary, launched through the driver API.
//!
//! **Storage.** In `f32` arithmetic everything is f32. In `bf16` arithmetic weights are bf16, and so is what lives within a
//! layer ([`Device::scratch`]): it is read and written once by memory-bound kernels, and enters a matrix product anyway. The
//! residual stream ([`Device::zeros`], [`Device::upload`]) stays f32: every layer adds a small step to it, of which bf16's
//! eight bits would lose most after a few layers, and a scan ranks layers by differences of a thousandth of a nat. It costs
//! two bytes more an element in three of a layer's kernels, against matrix products that take thousands of FLOPs an element.
//! Sums are f32 everywhere, softmax statistics f64 across chunks of the vocabulary.
//!
//! **Order.** One compute stream, nothing waits within a layer. Small index arrays (positions, page tables) are uploaded once
//! and found again by content. Weights come over a second stream ([`driver::Gpu::upload_weights`]).

mod adamw;
mod argmax;
mod attention;
mod attention_backward;
mod block_influence;
mod cols;
mod cross_entropy;
mod cross_entropy_backward;
pub mod driver;
mod dropout;
mod embedding;
mod embedding_backward;
mod fill;
mod indices;
pub mod kernels;
mod kv_cache;
mod layer_norm;
mod linear;
mod linear_backward;
mod matrix;
mod nf4;
pub mod nvml;
mod rms_norm;
mod rope;
mod rows;
mod swiglu;

pub use kv_cache::KvPages;
pub use matrix::{Dense, Matrix};
pub use nf4::Nf4Matrix;

use crate::error::{Error, Result};
use crate::ops::{Device, Shaped, expect, expect_len};
use crate::tensor::{Dtype, HostTensor};
use driver::{Argument, Buffer, CublasLt, Element, Gpu};
use indices::Indices;
use kernels::Kernel;
use nvml::Meter;
use rows::Convert;
use std::sync::{Arc, OnceLock};

/// How the elements of a tensor or matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

impl Storage {
    /// Bytes an element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    const fn element(self) -> Element {
        match self {
            Self::F32 => Element::F32,
            Self::Bf16 => Element::Bf16,
        }
    }
}

/// Activations: [rows, cols], row-major.
#[derive(Debug)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    storage: Storage,
    data: Buffer,
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
    fn read(&self) -> Argument<'_> {
        Argument::read(&self.data, self.storage.element())
    }

    fn write(&mut self) -> Argument<'_> {
        Argument::write(&mut self.data, self.storage.element())
    }
}

/// The device `cuda:N`. A clone is the same device: tensors of one are tensors of the other.
#[derive(Debug, Clone)]
pub struct CudaBackend {
    gpu: Arc<Gpu>,
    compute: Storage,
    indices: Arc<Indices>,
    meter: Arc<OnceLock<Option<Meter>>>,
    /// Multiplies bf16 matrices in place of our kernels where it was asked for.
    cublaslt: Option<Arc<CublasLt>>,
}

impl CudaBackend {
    /// GPU `ordinal`, multiplying matrices in `compute` (f32 or bf16).
    ///
    /// # Errors
    /// [`Error::Request`] for another dtype; [`Error::Device`] where there is no such GPU, no driver or no kernels.
    pub fn new(compute: Dtype, ordinal: usize) -> Result<Self> {
        let compute = storage(compute)?;
        if kernels::CUDA_KERNELS.is_none() {
            return Err(driver::no_kernels());
        }
        Ok(Self { gpu: Arc::new(Gpu::open(ordinal)?), compute, indices: Arc::default(), meter: Arc::default(), cublaslt: None })
    }

    /// The same, with bf16 products by cuBLASLt: a row's bits may then depend on the rows beside it. Products in f32 stay ours.
    ///
    /// # Errors
    /// [`Error::Device`] where its library is not on the machine.
    pub fn with_cublaslt(self) -> Result<Self> {
        Ok(Self { cublaslt: Some(Arc::new(CublasLt::open(&self.gpu)?)), ..self })
    }

    /// The same device, multiplying matrices in `compute`.
    ///
    /// # Errors
    /// [`Error::Request`] for a dtype other than f32 and bf16.
    pub fn with_dtype(&self, compute: Dtype) -> Result<Self> {
        Ok(Self { compute: storage(compute)?, ..self.clone() })
    }

    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn tensor(&self, rows: usize, cols: usize, storage: Storage) -> Result<Tensor> {
        Ok(Tensor { rows, cols, storage, data: self.gpu.allocate(elements(rows, cols)?.saturating_mul(storage.size()))? })
    }

    /// `x` itself where it is stored as f32, else a copy that is.
    fn with_f32<T>(&self, x: &Tensor, run: impl FnOnce(&Tensor) -> Result<T>) -> Result<T> {
        match x.storage {
            Storage::F32 => run(x),
            Storage::Bf16 => {
                let mut wide = self.tensor(x.rows, x.cols, Storage::F32)?;
                self.convert(Convert { y: &mut wide, x })?;
                run(&wide)
            }
        }
    }
}

/// What matrices are stored in that are multiplied in `dtype`.
fn storage(dtype: Dtype) -> Result<Storage> {
    match dtype {
        Dtype::F32 => Ok(Storage::F32),
        Dtype::Bf16 => Ok(Storage::Bf16),
        Dtype::F16 => Err(Error::request("GPUs multiply matrices in f32 or bf16 here, not f16").with_help("use bf16")),
    }
}

fn elements(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).ok_or_else(|| Error::shape("allocate", "tensor", &[usize::MAX], &[rows, cols]))
}

/// A size or a count as kernels take it.
fn size(op: &'static str, arg: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::shape(op, arg, &[u32::MAX as usize], &[value]))
}

/// The kernel for tensors stored as `y` and `x`; `None` stands for a combination that no model asks for.
fn kernel_for(op: &'static str, y: Storage, x: Storage, kernels: [Option<Kernel>; 4]) -> Result<Kernel> {
    let [f32_f32, f32_bf16, bf16_f32, bf16_bf16] = kernels;
    let kernel = match (y, x) {
        (Storage::F32, Storage::F32) => f32_f32,
        (Storage::F32, Storage::Bf16) => f32_bf16,
        (Storage::Bf16, Storage::F32) => bf16_f32,
        (Storage::Bf16, Storage::Bf16) => bf16_bf16,
    };
    kernel.ok_or_else(|| Error::Device {
        problem: format!("{op}: there is no kernel for a result in {y:?} from {x:?}"),
        help: Some("this is a bug in prunectl; please report it".into()),
    })
}

/// The kernel for tensors that are all stored alike: in f32 or in bf16, where there are kernels for both.
fn kernel_of(op: &'static str, first: Storage, others: &[Storage], f32: Option<Kernel>, bf16: Option<Kernel>) -> Result<Kernel> {
    let kernels = [f32, None, None, bf16];
    others.iter().try_fold(kernel_for(op, first, first, kernels)?, |_, &other| kernel_for(op, first, other, kernels))
}

impl Device for CudaBackend {
    type Tensor = Tensor;
    type Matrix = Matrix;

    fn name(&self) -> String {
        format!("cuda:{}", self.gpu.facts().ordinal)
    }

    fn gemm(&self) -> &'static str {
        if self.cublaslt.is_some() { "cublaslt" } else { "native" }
    }

    fn compute_dtype(&self) -> Dtype {
        match self.compute {
            Storage::F32 => Dtype::F32,
            Storage::Bf16 => Dtype::Bf16,
        }
    }

    fn step(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        // Arrays of the host lie elsewhere within a step, and are written over by the next.
        self.indices.clear();
        let done = self.gpu.step(work);
        self.indices.clear();
        done
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        let mut tensor = self.tensor(rows, cols, Storage::F32)?;
        self.gpu.clear(&mut tensor.data)?;
        Ok(tensor)
    }

    fn scratch(&self, rows: usize, cols: usize) -> Result<Tensor> {
        self.tensor(rows, cols, self.compute)
    }

    fn scratch_dtype(&self) -> Dtype {
        self.compute_dtype()
    }

    fn resize(&self, tensor: &mut Tensor, rows: usize, cols: usize) -> Result<()> {
        if elements(rows, cols)?.saturating_mul(tensor.storage.size()) > tensor.data.len() {
            *tensor = self.tensor(rows, cols, tensor.storage)?;
        }
        (tensor.rows, tensor.cols) = (rows, cols);
        Ok(())
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        expect_len("upload", "values", values.len(), elements(rows, cols)?)?;
        Ok(Tensor { rows, cols, storage: Storage::F32, data: self.gpu.upload(values)? })
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let wanted = tensor.rows * tensor.cols;
        self.with_f32(tensor, |tensor| {
            let mut values = self.gpu.download::<f32>(&tensor.data)?;
            // A resized tensor may lie in a larger buffer.
            values.truncate(wanted);
            Ok(values)
        })
    }

    fn copy(&self, y: &mut Tensor, x: &Tensor) -> Result<()> {
        expect("copy", "x", x, y.rows, y.cols)?;
        if y.storage == x.storage {
            let bytes = x.rows * x.cols * x.storage.size();
            self.gpu.copy(&mut y.data, 0, &x.data, 0, bytes)
        } else {
            self.convert(Convert { y, x })
        }
    }

    fn prepare(&self, parts: &[HostTensor]) -> Result<Matrix> {
        Dense::upload(&self.gpu, self.compute, parts).map(Matrix::Dense)
    }

    fn make_ready(&self, _weight: &Matrix) -> Result<()> {
        // Weights are on their way as soon as they are prepared, and what uses them waits in its own stream.
        Ok(())
    }

    fn tensor_bytes(&self, rows: usize, cols: usize) -> u64 {
        4 * rows as u64 * cols as u64
    }

    fn batch_rows(&self) -> usize {
        // Thousands of tiles in the narrowest product of a 4096 wide model; half a gigabyte within its layers.
        4096
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        self.gpu.available_memory().map(Some)
    }

    fn peak_memory(&self) -> Option<u64> {
        Some(self.gpu.peak_memory())
    }

    fn energy_joules(&self) -> Option<f64> {
        self.meter.get_or_init(|| Meter::open(self.gpu.facts())).as_ref()?.energy_joules()
    }
}
