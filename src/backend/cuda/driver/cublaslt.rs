//! cuBLASLt, NVIDIA's matrix products, where the library is on the machine. It is looked up when it is asked for.
//!
//! It chooses another algorithm for another shape, and may split k: a row's bits then depend on the number of rows. So nothing
//! uses it unasked.

use super::gpu::Gpu;
use super::launch::Element;
use super::pool::Buffer;
use crate::error::{Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUdeviceptr;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Memory an algorithm may use, NVIDIA's recommendation for Hopper.
const WORKSPACE: usize = 32 << 20;

/// What every operand is aligned to: rows of weights begin at multiples of 16 bytes, and a product may begin at any.
const ALIGNMENT: u32 = 16;

/// `CUBLAS_OP_T` of cublas_api.h.
const TRANSPOSED: i32 = 1;

/// True where libcublasLt can be loaded.
#[must_use]
pub fn cublaslt_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
        // SAFETY: the library is NVIDIA's cuBLASLt (or a stand-in for it that the user put on the library path), whose
        // initialisers any program that uses it runs.
        unsafe {
            sys::is_culib_present()
        }
    })
}

/// The version of libcublasLt, as major, minor and patch; `None` where it is not there.
#[must_use]
pub fn cublaslt_version() -> Option<(usize, usize, usize)> {
    if !cublaslt_present() {
        return None;
    }
    #[expect(unsafe_code, reason = "the library's seam")]
    // SAFETY: the library is there; the function takes nothing and returns a number.
    let version = unsafe { sys::cublasLtGetVersion() };
    Some((version / 10_000, version / 100 % 100, version % 100))
}

/// What an algorithm is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    out_features: usize,
    in_features: usize,
    y: Element,
    bias: bool,
    accumulate: bool,
}

/// y = x W^T (+ bias) (+ y) with bf16 operands and sums in f32: addresses of y: [rows, out_features]; x: [rows, in_features];
/// weight: [out_features, in_features]; bias: [out_features], of y's type.
#[derive(Debug)]
pub(super) struct Matmul {
    pub(super) y: CUdeviceptr,
    pub(super) y_element: Element,
    pub(super) x: CUdeviceptr,
    pub(super) weight: CUdeviceptr,
    pub(super) bias: Option<CUdeviceptr>,
    pub(super) rows: usize,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    pub(super) accumulate: bool,
}

/// An opened library. Its calls go to the compute stream of the GPU it was opened on.
#[derive(Debug)]
pub struct CublasLt {
    handle: Handle,
    /// Used by one product at a time, in the order of the compute stream.
    workspace: Buffer,
    algorithms: Mutex<HashMap<Shape, sys::cublasLtMatmulAlgo_t>>,
}

/// Objects of the library, destroyed with their owner.
macro_rules! owned {
    ($name:ident, $raw:ty, $destroy:path) => {
        #[derive(Debug)]
        struct $name($raw);

        impl Drop for $name {
            fn drop(&mut self) {
                #[expect(unsafe_code, reason = "the library's seam")]
                // SAFETY: the object was created by the library and is destroyed once. A failure leaves nothing to do.
                let _ = unsafe { $destroy(self.0) };
            }
        }
    };
}

owned!(Handle, sys::cublasLtHandle_t, result::destroy_handle);
owned!(Description, sys::cublasLtMatmulDesc_t, result::destroy_matmul_desc);
owned!(Layout, sys::cublasLtMatrixLayout_t, result::destroy_matrix_layout);
owned!(Preference, sys::cublasLtMatmulPreference_t, result::destroy_matmul_pref);

#[expect(unsafe_code, reason = "the library's seam")]
// SAFETY: cuBLASLt's functions may be called with one handle by several threads at a time ("Thread safety" of its manual).
unsafe impl Send for Handle {}
#[expect(unsafe_code, reason = "the library's seam")]
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// The description of a product and the layouts of its operands, column-major as the library sees them: a row-major matrix is
/// its transpose. So y^T = weight x^T, where `weight`, seen as [in_features, out_features], is transposed.
struct Operation {
    description: Description,
    weight: Layout,
    x: Layout,
    y: Layout,
}

impl Operation {
    fn new(shape: Shape, bias: Option<CUdeviceptr>) -> Result<Self, CublasError> {
        use sys::cudaDataType::{CUDA_R_16BF, CUDA_R_32F};
        let y_type = if shape.y == Element::F32 { CUDA_R_32F } else { CUDA_R_16BF };
        let [rows, outs, ins] = [shape.rows, shape.out_features, shape.in_features].map(|size| size as u64);
        let description = Description(result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F)?);
        description.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if let Some(bias) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            description.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            description.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let layout = |kind, rows: u64, cols| result::create_matrix_layout(kind, rows, cols, rows.cast_signed()).map(Layout);
        Ok(Self {
            description,
            weight: layout(CUDA_R_16BF, ins, outs)?,
            x: layout(CUDA_R_16BF, ins, rows)?,
            y: layout(y_type, outs, rows)?,
        })
    }

    /// The library's first choice.
    fn algorithm(&self, handle: &Handle) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref()?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        for operand in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(operand, &ALIGNMENT)?;
        }
        #[expect(unsafe_code, reason = "the library's seam")]
        // SAFETY: handle, description, layouts and preference are alive.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle.0,
                self.description.0,
                self.weight.0,
                self.x.0,
                self.y.0,
                self.y.0,
                preference.0,
            )
        };
        found.map(|found| found.algo)
    }
}

impl Description {
    /// The attribute's type is that of `value`, as the library's manual lists them.
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), CublasError> {
        #[expect(unsafe_code, reason = "the library's seam")]
        // SAFETY: the description is alive, and the library copies as many bytes as `value` has.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Preference {
    /// The attribute's type is that of `value`, as the library's manual lists them.
    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), CublasError> {
        #[expect(unsafe_code, reason = "the library's seam")]
        // SAFETY: the preference is alive, and the library copies as many bytes as `value` has.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl CublasLt {
    /// Opens the library for a GPU.
    ///
    /// # Errors
    /// [`Error::Device`] where it is not on the machine or does not start; [`Error::OutOfMemory`].
    pub fn open(gpu: &Gpu) -> Result<Self> {
        if !cublaslt_present() {
            return Err(Error::Device {
                problem: "cuBLASLt's library (libcublasLt.so) is not on this machine".into(),
                help: Some("install the CUDA toolkit's cublas, put its folder in LD_LIBRARY_PATH, or use --gemm native".into()),
            });
        }
        gpu.bind()?;
        let handle = Handle(result::create_handle().map_err(|e| failed("cublasLtCreate", e))?);
        Ok(Self { handle, workspace: gpu.allocate(WORKSPACE)?, algorithms: Mutex::default() })
    }

    /// Queues a product on the stream `stream` of a context that is current.
    pub(super) fn matmul(&self, product: &Matmul, stream: sys::cudaStream_t) -> Result<()> {
        let shape = Shape {
            rows: product.rows,
            out_features: product.out_features,
            in_features: product.in_features,
            y: product.y_element,
            bias: product.bias.is_some(),
            accumulate: product.accumulate,
        };
        let what = || format!("cuBLASLt with {product:?}");
        let operation = Operation::new(shape, product.bias).map_err(|e| failed(&what(), e))?;
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        let algorithm = match algorithms.get(&shape) {
            Some(known) => *known,
            None => {
                let chosen = operation.algorithm(&self.handle).map_err(|e| failed(&what(), e))?;
                algorithms.insert(shape, chosen);
                chosen
            }
        };
        let (alpha, beta) = (1.0_f32, if product.accumulate { 1.0_f32 } else { 0.0 });
        let pointer = |address: CUdeviceptr| address as *const c_void;
        #[expect(unsafe_code, reason = "the library's seam")]
        // SAFETY: handle, description and layouts are alive, and the library copies them and both factors before it returns.
        // The addresses are those of buffers that `Gpu::matmul` has compared with these sizes; the workspace has the size that
        // the algorithm was chosen for, and whatever used it before is earlier in the same stream.
        let queued = unsafe {
            result::matmul(
                self.handle.0,
                operation.description.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(product.weight),
                operation.weight.0,
                pointer(product.x),
                operation.x.0,
                pointer(product.y),
                operation.y.0,
                product.y as *mut c_void,
                operation.y.0,
                &raw const algorithm,
                self.workspace.block.address as *mut c_void,
                self.workspace.len(),
                stream,
            )
        };
        queued.map_err(|e| failed(&what(), e))
    }
}

fn failed(call: &str, error: CublasError) -> Error {
    Error::Device { problem: format!("{call}: {:?}", error.0), help: Some("--gemm native does without cuBLASLt".into()) }
}
