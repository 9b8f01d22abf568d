//! One GPU: its streams, its modules, copies, and the one function through which every kernel is launched.

use super::cublaslt::{self, CublasLt};
use super::launch::{Argument, Element, Geometry, Value, signature};
use super::pool::{Buffer, Pool};
use super::staging::Staging;
use super::tape::{Call, Parameter, Tape};
use super::{Facts, facts, failed, start};
use crate::backend::cuda::kernels::{self, Kernel};
use crate::error::{Error, Result};
use bytemuck::{NoUninit, Pod};
use cudarc::driver::sys::{CUdeviceptr, CUevent_flags, CUfunction_attribute_enum, cudaError_enum};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PushKernelArg, result};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Dynamic shared memory that a kernel gets without asking for more.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// An opened GPU. All computing goes to one stream, in the order of the calls; weights come over a second one.
#[derive(Debug)]
pub struct Gpu {
    facts: Facts,
    context: Arc<CudaContext>,
    pub(super) compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    pub(super) pool: Arc<Pool>,
    staging: Mutex<Staging>,
    /// By file name. Loaded when the first kernel of a file is launched.
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    /// By symbol, with the dynamic shared memory it was allowed.
    functions: Mutex<HashMap<&'static str, (CudaFunction, u32)>>,
    /// Steps of a generation that repeat.
    pub(super) tape: Mutex<Tape>,
    /// Wait after each launch, so that a fault inside a kernel carries that kernel's name.
    synchronous: bool,
}

/// y = x W^T (+ bias) (+ y) for cuBLASLt, with bf16 operands and sums in f32.
#[derive(Debug)]
pub struct Matmul<'a> {
    /// [rows, out_features], f32 or bf16.
    pub y: Argument<'a>,
    /// [rows, in_features].
    pub x: &'a Buffer,
    /// [any, in_features].
    pub weight: &'a Buffer,
    /// Row of weight that gives column 0 of y.
    pub first_out: usize,
    /// \[out_features\], of y's type.
    pub bias: Option<&'a Buffer>,
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of y.
    pub out_features: usize,
    /// Columns of x and weight, a multiple of 8.
    pub in_features: usize,
    /// y +=.
    pub accumulate: bool,
}

impl Gpu {
    /// Opens GPU `ordinal`. Debug builds wait after every launch.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no such GPU, or no driver.
    pub fn open(ordinal: usize) -> Result<Self> {
        start()?;
        let opening = |e| failed(&format!("opening cuda:{ordinal}"), e);
        let context = CudaContext::new(ordinal).map_err(opening)?;
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: cudarc's events order work between streams. We do that ourselves: all computing goes to the one stream below,
        // and what the copy stream writes is ordered by the events of `Pool` and `Staging`.
        unsafe {
            context.disable_event_tracking();
        }
        let compute = context.new_stream().map_err(opening)?;
        let copies = context.new_stream().map_err(opening)?;
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        Ok(Self {
            facts: facts(ordinal)?,
            pool: Pool::new(Arc::clone(&context), Arc::clone(&compute), Arc::clone(&copies))?,
            staging: Mutex::new(Staging::new(Arc::clone(&copies))),
            context,
            compute,
            copies,
            modules: Mutex::default(),
            functions: Mutex::default(),
            tape: Mutex::default(),
            synchronous: cfg!(debug_assertions),
        })
    }

    /// What the driver says about it.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes that could be allocated now.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn available_memory(&self) -> Result<u64> {
        self.pool.available()
    }

    /// Most bytes this program held on the GPU at a time.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.pool.peak()
    }

    /// `len` bytes of unspecified content: whoever asks for them writes them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, len: usize) -> Result<Buffer> {
        let mut tape = self.tape();
        if !tape.running() {
            return self.pool.activations(len);
        }
        match tape.block(len) {
            Some(block) => Ok(block),
            None => Ok(tape.keep(self.pool.activations(len)?)),
        }
    }

    /// Copies `values` to the GPU. Does not wait for it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if let Some(buffer) = self.step_input(bytes)? {
            return Ok(buffer);
        }
        let buffer = self.allocate(bytes.len())?;
        self.write(&buffer, bytes)?;
        Ok(buffer)
    }

    /// Copies `bytes` to the beginning of a buffer that nobody else writes.
    pub(super) fn write(&self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        if bytes.len() > buffer.len() {
            return Err(Error::shape("upload", "bytes", &[buffer.len()], &[bytes.len()]));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: the buffer has room for `bytes`. They are pageable memory, which the driver has read when this returns.
        let copied = unsafe { result::memcpy_htod_async(buffer.block.address, bytes, self.compute.cu_stream()) };
        copied.map_err(|e| failed(&format!("copying {} bytes to the GPU", bytes.len()), e))
    }

    /// Weights: `len` bytes that `fill` writes piece by piece, each a whole number of `unit`s, straight into memory that the
    /// GPU copies from while `fill` writes the next. Computing that is queued after this call waits for the copy; what was
    /// queued before goes on beside it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; those of `fill`.
    pub fn upload_weights(
        &self,
        len: usize,
        unit: usize,
        mut fill: impl FnMut(Range<usize>, &mut [u8]) -> Result<()>,
    ) -> Result<Buffer> {
        self.interrupt()?;
        let buffer = self.pool.weights(len)?;
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = staging.piece(unit)?;
        let mut start = 0;
        while start < len {
            let range = start..(start + piece).min(len);
            staging.copy(buffer.block, range.clone(), |bytes| fill(range.clone(), bytes))?;
            start = range.end;
        }
        let there = self.copies.record_event(None).map_err(|e| failed("cuEventRecord", e))?;
        self.compute.wait(&there).map_err(|e| failed("cuStreamWaitEvent", e))?;
        Ok(buffer)
    }

    /// Fills a buffer with zero bytes.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn clear(&self, buffer: &mut Buffer) -> Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        self.perform(&Call::Clear { address: buffer.block.address, bytes: buffer.len() }, &|| "cuMemsetD8Async".into())
    }

    /// Copies `bytes` bytes between buffers, from `from_offset` to `to_offset`, within the GPU.
    ///
    /// # Errors
    /// [`Error::Device`], also where the range lies outside either buffer.
    pub fn copy(&self, to: &mut Buffer, to_offset: usize, from: &Buffer, from_offset: usize, bytes: usize) -> Result<()> {
        if to_offset + bytes > to.len() || from_offset + bytes > from.len() {
            return Err(Error::shape("copy", "bytes", &[to.len(), from.len()], &[to_offset + bytes, from_offset + bytes]));
        }
        self.copy_device(to.block.address + to_offset as u64, from.block.address + from_offset as u64, bytes)
    }

    /// The same within one buffer, between ranges that do not overlap.
    ///
    /// # Errors
    /// [`Error::Device`], also where a range lies outside the buffer or they overlap.
    pub fn copy_within(&self, buffer: &mut Buffer, to: usize, from: usize, bytes: usize) -> Result<()> {
        if to + bytes > buffer.len() || from + bytes > buffer.len() || to.abs_diff(from) < bytes {
            return Err(Error::shape("copy", "bytes", &[buffer.len()], &[to + bytes, from + bytes]));
        }
        self.copy_device(buffer.block.address + to as u64, buffer.block.address + from as u64, bytes)
    }

    fn copy_device(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.perform(&Call::Copy { to, from, bytes }, &|| format!("copying {bytes} bytes within the GPU"))
    }

    /// Waits for all work and copies a buffer of `T`s back.
    ///
    /// # Errors
    /// [`Error::Device`], also for faults of kernels launched before.
    pub fn download<T: Pod>(&self, buffer: &Buffer) -> Result<Vec<T>> {
        self.interrupt()?;
        let mut values = vec![T::zeroed(); buffer.len() / size_of::<T>()];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        if !bytes.is_empty() {
            self.bind()?;
            let len = bytes.len();
            #[expect(unsafe_code, reason = "the driver seam")]
            // SAFETY: the buffer has at least as many bytes as `values`, which live until after the wait below.
            let copied = unsafe { result::memcpy_dtoh_async(bytes, buffer.block.address, self.compute.cu_stream()) };
            // The wait comes first whatever the copy said: it may still be under way.
            let waited = self.synchronize();
            copied.map_err(|e| failed(&format!("copying {len} bytes from the GPU"), e))?;
            waited?;
        }
        Ok(values)
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// [`Error::Device`] with the first fault since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        self.interrupt()?;
        self.compute.synchronize().map_err(|e| failed("waiting for the GPU", e))?;
        self.context.check_err().map_err(|e| failed("an earlier call", e))
    }

    /// Seconds that the GPU takes for what `work` queues, by its own clock: from when it gets there to when all is done.
    ///
    /// # Errors
    /// [`Error::Device`]; those of `work`.
    pub fn seconds(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let now = || {
            let event = self.compute.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            event.map_err(|e| failed("cuEventRecord", e))
        };
        let start = now()?;
        work()?;
        let milliseconds = start.elapsed_ms(&now()?).map_err(|e| failed("cuEventElapsedTime", e))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| failed("cuCtxSetCurrent", e))
    }

    /// Launches a kernel: the pointers in this order, then `sizes` by value. A grid without blocks launches nothing.
    ///
    /// Types and order of the arguments are compared with the kernel's own parameter list when it is first looked up. The
    /// caller answers for what cannot be checked here: that the buffers are as long as the kernel reaches with these sizes
    /// and this geometry. Each caller is the one file of `backend/cuda` that is named after its kernel's, and checks the
    /// lengths before.
    ///
    /// # Errors
    /// [`Error::Device`] naming kernel, geometry and sizes.
    pub(crate) fn launch<S: NoUninit + Debug>(
        &self,
        kernel: Kernel,
        geometry: Geometry,
        arguments: &[Argument<'_>],
        sizes: S,
    ) -> Result<()> {
        if geometry.grid.contains(&0) {
            return Ok(());
        }
        self.ready(kernel, geometry.shared, || signature::<S>(arguments))?;
        let mut parameters = Vec::with_capacity(arguments.len() + 1);
        parameters.extend(arguments.iter().map(|argument| match &argument.value {
            Value::Pointer { address, .. } => Parameter::address(*address),
            Value::Map(map) => *map,
        }));
        parameters.push(Parameter::bytes(bytemuck::bytes_of(&sizes)).ok_or_else(|| Error::Device {
            problem: format!("kernel {}: its sizes take {} bytes", kernel.name, size_of::<S>()),
            help: Some("this is a bug in prunectl; please report it".into()),
        })?);
        let what = || format!("kernel {} with {geometry:?} and {sizes:?}", kernel.name);
        self.perform(&Call::Launch { kernel, geometry, parameters }, &what)
    }

    /// Queues a call, now.
    pub(super) fn queue(&self, call: &Call) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        let stream = self.compute.cu_stream();
        match call {
            Call::Launch { kernel, geometry, parameters } => {
                let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((function, _)) = functions.get(kernel.name) else {
                    return Err(DriverError(cudaError_enum::CUDA_ERROR_NOT_FOUND));
                };
                let mut launch = self.compute.launch_builder(function);
                for parameter in parameters {
                    launch.arg(parameter);
                }
                let [x, y, z] = geometry.grid;
                let (grid_dim, block_dim) = ((x, y, z), (geometry.block, 1, 1));
                let config = LaunchConfig { grid_dim, block_dim, shared_mem_bytes: geometry.shared };
                #[expect(unsafe_code, reason = "the driver seam")]
                // SAFETY: types and order of the arguments are the kernel's (`ready` compared them), and each has at least
                // as many bytes as the parameter; bounds are the caller's of `launch`, as documented; what the kernel writes
                // was borrowed mutably; memory that is freed after this call is reused only by work that comes after it
                // (`Pool`).
                unsafe { launch.launch(config) }.map(drop)
            }
            Call::Copy { to, from, bytes } => {
                #[expect(unsafe_code, reason = "the driver seam")]
                // SAFETY: both ranges lie in buffers that were borrowed, checked by the callers, and do not overlap.
                unsafe {
                    result::memcpy_dtod_async(*to, *from, *bytes, stream)
                }
            }
            Call::Clear { address, bytes } => {
                #[expect(unsafe_code, reason = "the driver seam")]
                // SAFETY: the buffer has that many bytes and was borrowed mutably.
                unsafe {
                    result::memset_d8_async(*address, 0, *bytes, stream)
                }
            }
        }
    }

    /// Queues a product of cuBLASLt's. As with `launch`, the caller answers for the length of y.
    ///
    /// # Errors
    /// [`Error::Shape`] where another buffer is shorter than the sizes say; [`Error::Device`] with all of them.
    pub(crate) fn matmul(&self, library: &CublasLt, product: &Matmul<'_>) -> Result<()> {
        let &Matmul { ref y, x, weight, first_out, bias, rows, out_features, in_features, accumulate } = product;
        let Value::Pointer { address: y, element: y_element, writes: true } = y.value else {
            return Err(Error::Device { problem: "cuBLASLt: y is not a buffer to write".into(), help: None });
        };
        let row = in_features.saturating_mul(Element::Bf16.size());
        for (arg, buffer, needed) in [
            ("x", Some(x), rows.saturating_mul(row)),
            ("weight", Some(weight), first_out.saturating_add(out_features).saturating_mul(row)),
            ("bias", bias, out_features.saturating_mul(y_element.size())),
        ] {
            if let Some(buffer) = buffer.filter(|buffer| buffer.len() < needed) {
                return Err(Error::shape("cublaslt", arg, &[needed], &[buffer.len()]));
            }
        }
        self.interrupt()?;
        self.bind()?;
        let product = cublaslt::Matmul {
            y,
            y_element,
            x: x.block.address,
            weight: weight.block.address + (first_out * row) as u64,
            bias: bias.map(|bias| bias.block.address),
            rows,
            out_features,
            in_features,
            accumulate,
        };
        library.matmul(&product, self.compute.cu_stream().cast())?;
        self.settle().map_err(|e| failed(&format!("cuBLASLt with {product:?}"), e))
    }

    /// Waits for what was just queued, in debug builds.
    pub(super) fn settle(&self) -> std::result::Result<(), DriverError> {
        if self.synchronous { self.compute.synchronize() } else { Ok(()) }
    }

    /// Loads a kernel before its first launch, and allows it `shared` bytes of dynamic shared memory.
    fn ready(&self, kernel: Kernel, shared: u32, signature: impl FnOnce() -> String) -> Result<()> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, allowed) = match functions.entry(kernel.name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let signature = signature();
                if signature != kernel.parameters {
                    return Err(Error::Device {
                        problem: format!("kernel {} takes ({}), not ({signature})", kernel.name, kernel.parameters),
                        help: Some("this is a bug in prunectl; please report it".into()),
                    });
                }
                place.insert((self.load(kernel)?, SHARED_WITHOUT_ASKING))
            }
        };
        if shared > *allowed {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
            let what = || format!("{shared} bytes of shared memory for kernel {}", kernel.name);
            function.set_attribute(attribute, bytes).map_err(|e| failed(&what(), e))?;
            *allowed = shared;
        }
        Ok(())
    }

    fn load(&self, kernel: Kernel) -> Result<CudaFunction> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(kernel.file) {
            Some(module) => Arc::clone(module),
            None => {
                let image = kernels::image(kernel.file).ok_or_else(no_kernels)?;
                let loaded = self.context.load_module(Ptx::from_binary(image.to_vec()));
                let module = loaded.map_err(|e| failed(&format!("loading the kernels of {}", kernel.file), e))?;
                modules.insert(kernel.file, Arc::clone(&module));
                module
            }
        };
        module.load_function(kernel.name).map_err(|e| failed(&format!("looking up kernel {}", kernel.name), e))
    }
}

pub(in crate::backend) fn no_kernels() -> Error {
    Error::Device {
        problem: "CUDA kernels are not in this build".into(),
        help: Some("run scripts/cuda-toolchain and build again, or use --device cpu".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::devices;
    use bytemuck::Zeroable;

    /// Named and laid out as kernels/rms_norm.cu has it.
    #[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
    #[repr(C)]
    struct RmsNormSizes([u32; 3]);

    #[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
    #[repr(C)]
    struct OtherSizes([u32; 3]);

    #[test]
    fn a_launch_whose_types_are_not_the_kernels_is_refused() {
        if kernels::CUDA_KERNELS.is_none() || !devices().is_ok_and(|found| !found.is_empty()) {
            assert!(std::env::var_os("PRUNECTL_TEST_DEVICE").is_none(), "PRUNECTL_TEST_DEVICE is set, and there is no GPU");
            return;
        }
        let gpu = Gpu::open(0).unwrap();
        let (mut y, x) = (gpu.allocate(256).unwrap(), gpu.allocate(256).unwrap());
        let kernel = kernels::RMS_NORM_BF16_F32;
        let geometry = Geometry::row(1, 32);
        let read = || Argument::read(&x, Element::F32);
        let mut refused = |arguments: &dyn Fn(Argument<'_>) -> Result<()>, words: &str| {
            let error = arguments(Argument::write(&mut y, Element::Bf16)).unwrap_err().to_string();
            assert_eq!(error, format!("kernel rms_norm_bf16_f32 takes ({}), not ({words})", kernel.parameters));
        };
        let sizes = RmsNormSizes::zeroed();
        refused(
            &|y| gpu.launch(kernel, geometry, &[read(), y, read()], sizes),
            "const float*, bf16*, const float*, RmsNormSizes",
        );
        refused(&|y| gpu.launch(kernel, geometry, &[y, read()], sizes), "bf16*, const float*, RmsNormSizes");
        refused(
            &|y| gpu.launch(kernel, geometry, &[y, read(), read()], OtherSizes::zeroed()),
            "bf16*, const float*, const float*, OtherSizes",
        );
    }
}
