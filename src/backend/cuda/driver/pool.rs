//! Memory of a GPU. `cuMemAlloc` and `cuMemFree` may wait for the GPU, so no op may call them.
//!
//! Activations come from the driver's own pool of memory, which hands out and takes back in the order of the compute stream,
//! without waiting, and is told to keep what it has. (A cache of our own above the driver would hide reads and writes out of
//! bounds from compute-sanitizer and from the emulated device: buffers would lie side by side in one allocation.)
//!
//! Weights are written by the copy stream and read by the compute stream. A freed block of weights carries an event that the
//! next copy into it waits for. At most [`PARKED`] of a size wait to be reused: a model that is streamed layer by layer then
//! fills one set while the other is computed with.

use super::failed;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUdeviceptr, CUmemPool_attribute, cudaError_enum};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Freed blocks of weights of one size that wait for a copy at most, before the next copy waits for the oldest of them.
const PARKED: usize = 2;

/// A piece of the GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) address: CUdeviceptr,
    /// At least 1: the driver has no allocation of zero.
    pub(super) bytes: usize,
}

/// What a block is used for, which decides how it is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Activations,
    Weights,
}

/// `len` bytes in the memory of a GPU, on loan from its pool.
#[derive(Debug)]
pub struct Buffer {
    pub(super) block: Block,
    len: usize,
    used: Use,
    /// The buffer this one is a part of.
    whole: Option<Arc<Buffer>>,
    pool: Arc<Pool>,
}

impl Buffer {
    /// `len` bytes of another buffer, from `offset`; fewer, or none, where it is shorter.
    pub(super) fn lend(whole: &Arc<Self>, offset: usize, len: usize) -> Self {
        let offset = offset.min(whole.len);
        let len = len.min(whole.len - offset);
        let block = Block { address: whole.block.address + offset as u64, bytes: len };
        Self { block, len, used: whole.used, whole: Some(Arc::clone(whole)), pool: Arc::clone(&whole.pool) }
    }

    /// Number of bytes.
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

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.whole.is_none() {
            self.pool.give_back(self.block, self.used);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Of weights, by size, oldest first, with the end of the work that reads them.
    parked: BTreeMap<usize, VecDeque<(Block, CudaEvent)>>,
    /// Bytes of activations on loan, and the most since the driver's pool was last emptied: what it holds.
    lent: u64,
    kept: u64,
    /// Bytes of weights, on loan or parked, and parked.
    weights: u64,
    parked_bytes: u64,
    /// Most bytes of both kinds.
    peak: u64,
    /// Given back while calls that may use them are put off; `None` where none are.
    held: Option<Vec<(Block, Use)>>,
}

impl State {
    fn measure(&mut self) {
        self.kept = self.kept.max(self.lent);
        self.peak = self.peak.max(self.kept + self.weights);
    }
}

/// The memory of one opened GPU.
#[derive(Debug)]
pub(super) struct Pool {
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    state: Mutex<State>,
}

impl Pool {
    pub(super) fn new(context: Arc<CudaContext>, compute: Arc<CudaStream>, copies: Arc<CudaStream>) -> Result<Arc<Self>> {
        if context.has_async_alloc() {
            let mut everything = u64::MAX;
            let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            #[expect(unsafe_code, reason = "the driver seam")]
            // SAFETY: the device is the context's own, its default pool always exists, and this attribute is a u64.
            let set = unsafe {
                result::device::get_default_mem_pool(context.cu_device())
                    .and_then(|pool| result::mem_pool::set_attribute(pool, attribute, (&raw mut everything).cast()))
            };
            set.map_err(|e| failed("cuMemPoolSetAttribute", e))?;
        }
        Ok(Arc::new(Self { context, compute, copies, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that could be lent: free on the GPU, or held and not in use.
    pub(super) fn available(&self) -> Result<u64> {
        self.context.bind_to_thread().map_err(|e| failed("cuCtxSetCurrent", e))?;
        let (free, _) = self.context.mem_get_info().map_err(|e| failed("cuMemGetInfo", e))?;
        let state = self.state();
        Ok(free as u64 + (state.kept - state.lent) + state.parked_bytes)
    }

    /// Most bytes held at a time.
    pub(super) fn peak(&self) -> u64 {
        self.state().peak
    }

    /// Memory for activations, of unspecified content.
    pub(super) fn activations(self: &Arc<Self>, len: usize) -> Result<Buffer> {
        let block = self.take(len, Use::Activations)?;
        Ok(Buffer { block, len, used: Use::Activations, whole: None, pool: Arc::clone(self) })
    }

    /// Memory for weights, of unspecified content, that the copy stream may write.
    pub(super) fn weights(self: &Arc<Self>, len: usize) -> Result<Buffer> {
        let parked = {
            let mut state = self.state();
            let queue = state.parked.entry(len.max(1)).or_default();
            let ready = queue.front().is_some_and(|(_, event)| event.is_complete()) || queue.len() >= PARKED;
            let found = if ready { queue.pop_front() } else { None };
            if let Some((block, _)) = &found {
                state.parked_bytes -= block.bytes as u64;
            }
            found
        };
        let block = match parked {
            Some((block, event)) => {
                self.copies.wait(&event).map_err(|e| failed("cuStreamWaitEvent", e))?;
                block
            }
            None => self.take(len, Use::Weights)?,
        };
        Ok(Buffer { block, len, used: Use::Weights, whole: None, pool: Arc::clone(self) })
    }

    /// A new block from the driver; when it has none, after giving back what is not in use.
    fn take(&self, len: usize, used: Use) -> Result<Block> {
        let bytes = len.max(1);
        let block = match self.allocate(bytes, used) {
            Err(DriverError(cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY)) => {
                self.release()?;
                self.allocate(bytes, used)
            }
            other => other,
        };
        match block {
            Ok(block) => {
                let mut state = self.state();
                match used {
                    Use::Activations => state.lent += bytes as u64,
                    Use::Weights => state.weights += bytes as u64,
                }
                state.measure();
                Ok(block)
            }
            Err(DriverError(cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.context.mem_get_info().unwrap_or_default();
                let state = self.state();
                let (activations, weights) = (state.lent, state.weights);
                Err(Error::OutOfMemory {
                    problem: format!(
                        "out of memory on the GPU: {bytes} bytes asked for, {free} of {total} free; this program holds \
                         {weights} of weights and {activations} of activations"
                    ),
                    help: Some("lower --mem-budget or --limit, or see with nvidia-smi what else uses this GPU".into()),
                })
            }
            Err(error) => Err(failed(&format!("allocating {bytes} bytes on the GPU"), error)),
        }
    }

    fn allocate(&self, bytes: usize, used: Use) -> Result<Block, DriverError> {
        self.context.bind_to_thread()?;
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: the context is current and the stream belongs to it; `bytes` is above 0; the block is freed once, by `free`.
        let address = unsafe {
            match used {
                Use::Activations if self.context.has_async_alloc() => result::malloc_async(self.compute.cu_stream(), bytes),
                Use::Activations | Use::Weights => result::malloc_sync(bytes),
            }
        }?;
        Ok(Block { address, bytes })
    }

    /// Frees a block that work queued so far on the compute stream may still use (activations), or nothing (weights).
    fn free(&self, block: Block, used: Use) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        if used == Use::Activations && self.context.has_async_alloc() {
            #[expect(unsafe_code, reason = "the driver seam")]
            // SAFETY: the block came from malloc_async of the same stream and nobody has it on loan any more.
            return unsafe { result::free_async(block.address, self.compute.cu_stream()) };
        }
        if used == Use::Activations {
            self.compute.synchronize()?;
        }
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: the block came from malloc_sync, nobody has it on loan, and work that uses it was waited for.
        unsafe {
            result::free_sync(block.address)
        }
    }

    /// Gives memory that is not in use back to the driver, after waiting for the work that may still use it.
    fn release(&self) -> Result<()> {
        self.compute.synchronize().map_err(|e| failed("waiting for the GPU", e))?;
        self.copies.synchronize().map_err(|e| failed("waiting for the GPU", e))?;
        let parked = {
            let mut state = self.state();
            let parked = std::mem::take(&mut state.parked);
            state.weights -= std::mem::take(&mut state.parked_bytes);
            state.kept = state.lent;
            parked
        };
        for (block, _) in parked.into_values().flatten() {
            self.free(block, Use::Weights).map_err(|e| failed("cuMemFree", e))?;
        }
        if self.context.has_async_alloc() {
            #[expect(unsafe_code, reason = "the driver seam")]
            // SAFETY: the device is the context's own, and its default pool always exists.
            let trimmed = unsafe {
                result::device::get_default_mem_pool(self.context.cu_device()).and_then(|pool| result::mem_pool::trim_to(pool, 0))
            };
            trimmed.map_err(|e| failed("cuMemPoolTrimTo", e))?;
        }
        Ok(())
    }

    /// Keeps what is given back from now on: calls that may use it are not queued yet.
    pub(super) fn hold(&self) {
        self.state().held.get_or_insert_default();
    }

    /// They are queued.
    pub(super) fn let_go(&self) {
        let held = self.state().held.take();
        for (block, used) in held.into_iter().flatten() {
            self.give_back(block, used);
        }
    }

    /// Errors are stored by cudarc and returned by the next call.
    fn give_back(&self, block: Block, used: Use) {
        if let Some(held) = &mut self.state().held {
            held.push((block, used));
            return;
        }
        match used {
            Use::Activations => {
                self.state().lent -= block.bytes as u64;
                self.context.record_err(self.free(block, used));
            }
            Use::Weights => match self.compute.record_event(None) {
                Ok(event) => {
                    let mut state = self.state();
                    state.parked_bytes += block.bytes as u64;
                    state.parked.entry(block.bytes).or_default().push_back((block, event));
                }
                Err(error) => {
                    // Without an event nobody would know when the block is free: it is freed after waiting for the GPU.
                    self.context.record_err(Err::<(), _>(error));
                    self.context.record_err(self.compute.synchronize());
                    self.state().weights -= block.bytes as u64;
                    self.context.record_err(self.free(block, used));
                }
            },
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Errors of work that nobody waited for have no reader any more; the memory is given back all the same.
        let _ = self.release();
    }
}
