//! One GPU: its memory, its modules, and the one function through which every kernel is launched.

use super::{failed, start};
use crate::backend::cuda::kernels::{self, Kernel};
use crate::error::{Error, Result};
use bytemuck::{NoUninit, Pod};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

/// An opened GPU. All work goes to one stream, in the order of the calls.
#[derive(Debug)]
pub struct Gpu {
    stream: Arc<CudaStream>,
    /// By file name. Loaded when the first kernel of a file is launched.
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    /// Wait after each launch, so that a fault inside a kernel carries that kernel's name.
    synchronous: bool,
}

/// `len` elements in the memory of a GPU.
#[derive(Debug)]
pub struct Buffer<T> {
    /// At least one byte, because the driver has no allocation of zero.
    bytes: CudaSlice<u8>,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Blocks, threads a block, and bytes of dynamic shared memory a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: u32,
    /// Threads a block.
    pub block: u32,
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
}

/// Memory passed to a kernel: a pointer in its argument list.
#[derive(Debug)]
pub enum Argument<'a> {
    /// The kernel writes it.
    Write(&'a mut CudaSlice<u8>),
    /// The kernel only reads it.
    Read(&'a CudaSlice<u8>),
}

impl<'a> Argument<'a> {
    /// A buffer the kernel writes.
    pub fn write<T>(buffer: &'a mut Buffer<T>) -> Self {
        Self::Write(&mut buffer.bytes)
    }

    /// A buffer the kernel reads.
    pub fn read<T>(buffer: &'a Buffer<T>) -> Self {
        Self::Read(&buffer.bytes)
    }
}

/// A struct of sizes passed to a kernel by value.
#[repr(transparent)]
struct ByValue<S>(S);

#[expect(unsafe_code, reason = "the driver seam")]
// SAFETY: NoUninit types are plain bytes without padding; the driver copies as many of them as the kernel's parameter has,
// which is the size of the struct that both sides assert.
unsafe impl<S: NoUninit> DeviceRepr for ByValue<S> {}

impl Gpu {
    /// Opens GPU `ordinal`. Debug builds wait after every launch.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no such GPU, or no driver.
    pub fn open(ordinal: usize) -> Result<Self> {
        start()?;
        let context = CudaContext::new(ordinal).map_err(|e| failed(&format!("opening cuda:{ordinal}"), e))?;
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: events order work between streams, and all work of this context goes to the one stream below.
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.default_stream();
        Ok(Self { stream, modules: Mutex::default(), synchronous: cfg!(debug_assertions) })
    }

    /// Copies `values` to the GPU.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.allocate(values.len())?;
        if !values.is_empty() {
            let copied = self.stream.memcpy_htod(bytemuck::cast_slice::<T, u8>(values), &mut buffer.bytes);
            copied.map_err(|e| failed(&format!("copying {} bytes to the GPU", size_of_val(values)), e))?;
        }
        Ok(buffer)
    }

    /// `len` elements of unspecified content: whoever asks for them writes them.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    pub fn allocate<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = len.saturating_mul(size_of::<T>()).max(1);
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: any bytes are a valid T (Pod), and reading memory of the GPU before it is written gives bytes, not
        // undefined behaviour.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) };
        let bytes = slice.map_err(|e| failed(&format!("allocating {bytes} bytes on the GPU"), e))?;
        Ok(Buffer { bytes, len, element: PhantomData })
    }

    /// Waits for all work and copies a buffer back.
    ///
    /// # Errors
    /// [`Error::Device`], also for faults of kernels launched before.
    pub fn download<T: Pod>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); buffer.len];
        if !values.is_empty() {
            let size = size_of_val(values.as_slice());
            let copied = self.stream.memcpy_dtoh(&buffer.bytes, bytemuck::cast_slice_mut::<T, u8>(&mut values));
            copied.map_err(|e| failed(&format!("copying {size} bytes from the GPU"), e))?;
        }
        self.synchronize()?;
        Ok(values)
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// [`Error::Device`] with the first fault since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| failed("waiting for the GPU", e))
    }

    /// Launches a kernel: the pointers in this order, then `sizes` by value. A grid of zero blocks launches nothing.
    ///
    /// The caller answers for what cannot be checked here: pointers and `sizes` have the types and order of the kernel's
    /// parameters, and the buffers are as long as the kernel reaches with these sizes and this geometry. Each caller is
    /// the one file of `backend/cuda` that is named after its kernel's, and checks the lengths before.
    ///
    /// # Errors
    /// [`Error::Device`] naming kernel, geometry and sizes.
    pub(crate) fn launch<S: NoUninit + Debug>(
        &self,
        kernel: Kernel,
        geometry: Geometry,
        arguments: &mut [Argument<'_>],
        sizes: S,
    ) -> Result<()> {
        if geometry.grid == 0 {
            return Ok(());
        }
        let function = self.function(kernel)?;
        let mut launch = self.stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Argument::Write(slice) => launch.arg(&mut **slice),
                Argument::Read(slice) => launch.arg(&**slice),
            };
        }
        let by_value = ByValue(sizes);
        launch.arg(&by_value);
        let config = LaunchConfig {
            grid_dim: (geometry.grid, 1, 1),
            block_dim: (geometry.block, 1, 1),
            shared_mem_bytes: geometry.shared,
        };
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: types, order and bounds are the caller's, as documented; what the kernel writes was borrowed mutably; the
        // buffers outlive the launch because freeing goes through the same stream.
        let launched = unsafe { launch.launch(config) }.map(drop);
        let launched = if self.synchronous { launched.and_then(|()| self.stream.synchronize()) } else { launched };
        launched.map_err(|e| failed(&format!("kernel {} with {geometry:?} and {:?}", kernel.name, by_value.0), e))
    }

    fn function(&self, kernel: Kernel) -> Result<CudaFunction> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(kernel.file) {
            Some(module) => Arc::clone(module),
            None => {
                let image = kernels::image(kernel.file).ok_or_else(no_kernels)?;
                let loaded = self.stream.context().load_module(Ptx::from_binary(image.to_vec()));
                let module = loaded.map_err(|e| failed(&format!("loading the kernels of {}", kernel.file), e))?;
                modules.insert(kernel.file, Arc::clone(&module));
                module
            }
        };
        module.load_function(kernel.name).map_err(|e| failed(&format!("looking up kernel {}", kernel.name), e))
    }
}

fn no_kernels() -> Error {
    Error::Device {
        problem: "CUDA kernels are not in this build".into(),
        help: Some("run scripts/cuda-toolchain and build again, or use --device cpu".into()),
    }
}
