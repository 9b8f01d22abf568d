//! The way of weights to a GPU: two pieces of page-locked memory, one written by the host while the GPU copies from the other.

use super::failed;
use super::pool::Block;
use crate::error::{Error, Result};
use cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a piece: copies of this size reach the bus's full speed.
const PIECE: usize = 16 << 20;

#[derive(Debug)]
struct Piece {
    memory: PinnedHostSlice<u8>,
    /// End of the last copy out of it.
    copied: CudaEvent,
}

/// Both pieces, allocated when they are first needed.
#[derive(Debug)]
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    pieces: Vec<Piece>,
    next: usize,
}

impl Staging {
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, pieces: Vec::new(), next: 0 }
    }

    /// Bytes of a piece, a multiple of `unit`: at most 16 MiB, unless one unit is larger.
    pub(super) fn piece(&mut self, unit: usize) -> Result<usize> {
        let unit = unit.max(1);
        let wanted = (PIECE / unit).max(1) * unit;
        if self.pieces.first().is_none_or(|p| p.memory.len() < wanted) {
            self.pieces.clear();
            for _ in 0..2 {
                let context = self.stream.context();
                #[expect(unsafe_code, reason = "the driver seam")]
                // SAFETY: any bytes are a valid u8; `copy` writes what it copies from.
                let memory = unsafe { context.alloc_pinned::<u8>(wanted.max(PIECE)) };
                let memory = memory.map_err(|e| failed(&format!("allocating {wanted} bytes of page-locked memory"), e))?;
                let copied = self.stream.record_event(None).map_err(|e| failed("cuEventRecord", e))?;
                self.pieces.push(Piece { memory, copied });
            }
        }
        Ok(wanted)
    }

    /// Lets `fill` write the bytes for `range` of a block and starts copying them. `range` is at most a piece long.
    pub(super) fn copy(&mut self, to: Block, range: Range<usize>, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        self.next = (self.next + 1) % self.pieces.len().max(1);
        let piece = self.pieces.get_mut(self.next).filter(|p| range.len() <= p.memory.len() && range.end <= to.bytes);
        let Some(piece) = piece else {
            return Err(Error::shape("upload_weights", "range", &[PIECE, to.bytes], &[range.len(), range.end]));
        };
        piece.copied.synchronize().map_err(|e| failed("waiting for a copy to the GPU", e))?;
        let memory = piece.memory.as_mut_slice().map_err(|e| failed("waiting for a copy to the GPU", e))?;
        let bytes = &mut memory[..range.len()];
        fill(bytes)?;
        let address = to.address + range.start as u64;
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: `range` lies in the block. The bytes stay as they are until the copy is done: the next use of this piece
        // waits for `copied`, and dropping it frees memory only after the stream's work (`Drop` below).
        let started = unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) };
        started.map_err(|e| failed(&format!("copying {} bytes to the GPU", range.len()), e))?;
        piece.copied.record(&self.stream).map_err(|e| failed("cuEventRecord", e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.stream.context().record_err(self.stream.synchronize());
    }
}
