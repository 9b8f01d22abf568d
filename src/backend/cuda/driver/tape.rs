//! Steps that repeat. A token is decoded by hundreds of short launches, nearly all of them those of the token before: the same
//! kernels on the same memory. What a step does is noted, call by call, and compared with the step before. After some that were
//! equal the calls are captured into a CUDA graph; from then on a step that makes the same calls again only compares them, and
//! one launch of the graph does them all. The first call that differs (a sequence ended, the cache grew) is preceded by those
//! that were put off, and the noting begins anew: whoever makes the calls sees no difference.
//!
//! For calls to be equal their memory must be: what is allocated within a step comes from blocks that the steps share, in the
//! order of the allocations, unless somebody still holds the block of a step before. Arrays that the host writes (positions, page
//! tables) lie in one buffer that each step fills again, by one copy where a graph follows.

use super::launch::Geometry;
use super::pool::Buffer;
use crate::backend::cuda::kernels::Kernel;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaGraph, DeviceRepr};
use std::fmt;
use std::sync::Arc;

/// Equal steps before a graph is made of them: making one costs about as much as a few steps.
const EQUAL_STEPS: usize = 2;

/// Arrays of the host begin at multiples of this, and take a power of two of bytes: those that grow a little stay in place.
const INPUT_BYTES: usize = 256;

/// A parameter of a kernel, as many of its first bytes as the kernel's has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Parameter(pub(super) [u64; 16]);

#[expect(unsafe_code, reason = "the driver seam")]
// SAFETY: plain bytes, which may be copied to a kernel. That they are what its parameter means is the business of `Gpu::launch`.
unsafe impl DeviceRepr for Parameter {}

impl Parameter {
    /// A pointer.
    pub(super) const fn address(address: CUdeviceptr) -> Self {
        let mut words = [0; 16];
        words[0] = address;
        Self(words)
    }

    /// A struct's bytes; `None` where there are more than 128.
    pub(super) fn bytes(bytes: &[u8]) -> Option<Self> {
        let mut words = [0_u64; 16];
        bytemuck::bytes_of_mut(&mut words).get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self(words))
    }
}

/// Something that the compute stream does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Call {
    Launch { kernel: Kernel, geometry: Geometry, parameters: Vec<Parameter> },
    Copy { to: CUdeviceptr, from: CUdeviceptr, bytes: usize },
    Clear { address: CUdeviceptr, bytes: usize },
}

/// The captured calls.
pub(super) struct Graph(pub(super) CudaGraph);

#[expect(unsafe_code, reason = "the driver seam")]
// SAFETY: the driver's functions on a graph may be called from any thread, one at a time: it lies in the tape, which is locked.
unsafe impl Send for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}

/// What becomes of a call.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is to be done now.
    Now,
    /// The graph will do it.
    PutOff,
    /// It is to be done now, after those that were put off.
    NowAfter(Vec<Call>),
}

/// What the step before did, and how far this one did the same.
#[derive(Debug, Default)]
pub(super) struct Tape {
    /// Within a step.
    running: bool,
    calls: Vec<Call>,
    /// Calls of this step so far, all equal to the first of `calls`.
    position: usize,
    /// This step is not the one before.
    changed: bool,
    /// Steps in a row that were equal.
    equal: usize,
    /// Within a step: its calls are put off until it turns out that they are the graph's.
    graph: Option<Graph>,
    /// Blocks that the steps share, in the order of allocations; those that this step has had.
    blocks: Vec<Arc<Buffer>>,
    had: usize,
    /// Where the host's arrays lie, their bytes, how many this step has, and how many a step wanted.
    inputs: Option<Arc<Buffer>>,
    staged: Vec<u8>,
    used: usize,
    wanted: usize,
    /// Steps that were replayed.
    pub(super) replayed: u64,
}

impl Tape {
    pub(super) const fn running(&self) -> bool {
        self.running
    }

    /// Whether this step's calls are put off.
    pub(super) const fn puts_off(&self) -> bool {
        self.graph.is_some()
    }

    /// Begins a step. Returns the bytes of a new buffer for the inputs where one is needed: there is none, it is too small, or
    /// somebody still holds a part of it.
    pub(super) fn begin(&mut self) -> Option<usize> {
        self.running = true;
        (self.position, self.changed, self.had, self.used) = (0, false, 0, 0);
        let there = self.inputs.as_ref().filter(|inputs| Arc::strong_count(inputs) == 1).map_or(0, |inputs| inputs.len());
        let wanted = self.wanted.max(1 << 16).next_power_of_two();
        (there < wanted).then_some(wanted)
    }

    pub(super) fn set_inputs(&mut self, buffer: Buffer) {
        self.staged = vec![0; buffer.len()];
        self.inputs = Some(Arc::new(buffer));
    }

    /// Notes a call of the running step.
    pub(super) fn note(&mut self, call: &Call) -> Verdict {
        if self.calls.get(self.position) == Some(call) {
            self.position += 1;
            return if self.puts_off() { Verdict::PutOff } else { Verdict::Now };
        }
        let before = self.diverge();
        self.calls.push(call.clone());
        self.position += 1;
        before.map_or(Verdict::Now, Verdict::NowAfter)
    }

    /// The step goes another way than the one before, or does what no graph holds. Returns the calls that were put off.
    pub(super) fn diverge(&mut self) -> Option<Vec<Call>> {
        self.changed = true;
        self.calls.truncate(self.position);
        self.graph.take().map(|_| self.calls.clone())
    }

    /// Calls of the step before that this one has not made.
    pub(super) fn unmade(&self) -> bool {
        self.position < self.calls.len()
    }

    /// The graph, whose calls were all put off and are to be done now.
    pub(super) const fn replay(&self) -> Option<&Graph> {
        self.graph.as_ref()
    }

    /// Ends a step. Returns the calls of which a graph should be made.
    pub(super) fn end(&mut self) -> Option<&[Call]> {
        self.equal = if self.changed { 0 } else { self.equal + 1 };
        (self.equal >= EQUAL_STEPS && self.graph.is_none() && !self.calls.is_empty()).then_some(&self.calls)
    }

    pub(super) fn set_graph(&mut self, graph: Graph) {
        self.graph = Some(graph);
    }

    /// Everything but the count of replayed steps.
    pub(super) fn forget(&mut self) {
        *self = Self { replayed: self.replayed, ..Self::default() };
    }

    pub(super) fn leave(&mut self) {
        self.running = false;
    }

    /// The block for this step's next allocation, if it has that length and nobody holds it.
    pub(super) fn block(&mut self, len: usize) -> Option<Buffer> {
        let block = self.blocks.get(self.had)?;
        if block.len() != len || Arc::strong_count(block) > 1 {
            return None;
        }
        self.had += 1;
        Some(Buffer::lend(block, 0, len))
    }

    /// Keeps a new block for the allocation that found none, and lends it.
    pub(super) fn keep(&mut self, buffer: Buffer) -> Buffer {
        let block = Arc::new(buffer);
        let lent = Buffer::lend(&block, 0, block.len());
        match self.blocks.get_mut(self.had) {
            Some(place) => *place = block,
            None => self.blocks.push(block),
        }
        self.had += 1;
        lent
    }

    /// Room for an array of the host, and where it has to be copied to now; `None` where there is no room.
    pub(super) fn input(&mut self, bytes: &[u8]) -> Option<(Buffer, bool)> {
        let start = self.used;
        let end = start + bytes.len().next_power_of_two().max(INPUT_BYTES);
        self.wanted = self.wanted.max(end);
        let inputs = self.inputs.as_ref().filter(|inputs| end <= inputs.len())?;
        self.used = end;
        self.staged[start..start + bytes.len()].copy_from_slice(bytes);
        Some((Buffer::lend(inputs, start, bytes.len()), !self.puts_off()))
    }

    /// The arrays of this step so far, and the buffer they belong to.
    pub(super) fn staged(&self) -> Option<(&Buffer, &[u8])> {
        self.inputs.as_ref().filter(|_| self.used > 0).map(|inputs| (&**inputs, &self.staged[..self.used]))
    }
}
