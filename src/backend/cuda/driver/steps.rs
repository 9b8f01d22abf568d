//! Running a step: what tape.rs decides, done.

use super::failed;
use super::gpu::Gpu;
use super::pool::Buffer;
use super::tape::{Call, Graph, Tape, Verdict};
use crate::error::{Error, Result};
use cudarc::driver::DriverError;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, cudaError_enum};
use std::sync::{MutexGuard, PoisonError};

impl Gpu {
    pub(super) fn tape(&self) -> MutexGuard<'_, Tape> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps that one launch of a graph did.
    #[must_use]
    pub fn replayed_steps(&self) -> u64 {
        self.tape().replayed
    }

    /// Runs `work`, one of many steps in a row that mostly make the same calls: those that repeat are replayed as a CUDA graph.
    /// Not within another step.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Device`].
    pub fn step(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        match self.begin_step().and_then(|()| work()).and_then(|()| self.end_step()) {
            Ok(()) => {
                self.tape().leave();
                Ok(())
            }
            Err(error) => self.forget(error),
        }
    }

    fn begin_step(&self) -> Result<()> {
        let mut tape = self.tape();
        if let Some(bytes) = tape.begin() {
            let buffer = self.pool.activations(bytes)?;
            tape.set_inputs(buffer);
        }
        if tape.puts_off() {
            self.pool.hold();
        }
        Ok(())
    }

    /// After a failure nothing is known of the step before, and its memory is given back.
    fn forget(&self, error: Error) -> Result<()> {
        self.tape().forget();
        self.pool.let_go();
        Err(error)
    }

    fn end_step(&self) -> Result<()> {
        let mut tape = self.tape();
        if tape.unmade() {
            let before = tape.diverge();
            self.catch_up(&tape, before)?;
        } else if let Some(graph) = tape.replay() {
            self.write_staged(&tape)?;
            let launched = graph.0.launch().and_then(|()| self.settle());
            launched.map_err(|e| failed("launching a CUDA graph", e))?;
            tape.replayed += 1;
            self.pool.let_go();
        }
        if let Some(calls) = tape.end() {
            let graph = self.capture(calls).map_err(|e| failed("capturing a CUDA graph", e))?;
            tape.set_graph(graph);
        }
        Ok(())
    }

    /// Queues a call, or leaves it to the graph that does the step.
    pub(super) fn perform(&self, call: &Call, what: &dyn Fn() -> String) -> Result<()> {
        let mut tape = self.tape();
        if tape.running() {
            match tape.note(call) {
                Verdict::PutOff => return Ok(()),
                Verdict::Now => {}
                Verdict::NowAfter(before) => self.catch_up(&tape, Some(before))?,
            }
        }
        self.queue(call).and_then(|()| self.settle()).map_err(|e| failed(&what(), e))
    }

    /// What no graph holds comes next: what was put off is done before it.
    pub(super) fn interrupt(&self) -> Result<()> {
        let mut tape = self.tape();
        if !tape.running() {
            return Ok(());
        }
        let before = tape.diverge();
        self.catch_up(&tape, before)
    }

    /// An array of the host in a step's shared buffer; `None` outside of steps, and where there is no room: memory of its own is
    /// then written at once, before calls that were put off, none of which uses it.
    pub(super) fn step_input(&self, bytes: &[u8]) -> Result<Option<Buffer>> {
        let mut tape = self.tape();
        if !tape.running() {
            return Ok(None);
        }
        let Some((buffer, now)) = tape.input(bytes) else { return Ok(None) };
        if now {
            self.write(&buffer, bytes)?;
        }
        Ok(Some(buffer))
    }

    fn catch_up(&self, tape: &Tape, before: Option<Vec<Call>>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        self.write_staged(tape)?;
        for call in &before {
            self.queue(call).and_then(|()| self.settle()).map_err(|e| failed(&format!("{call:?}"), e))?;
        }
        self.pool.let_go();
        Ok(())
    }

    fn write_staged(&self, tape: &Tape) -> Result<()> {
        tape.staged().map_or(Ok(()), |(buffer, bytes)| self.write(buffer, bytes))
    }

    fn capture(&self, calls: &[Call]) -> Result<Graph, DriverError> {
        self.compute.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let queued = calls.iter().try_for_each(|call| self.queue(call));
        // Ended whatever happened: the stream is of no use before.
        let graph = self.compute.end_capture(CUgraphInstantiate_flags(0));
        queued?;
        graph?.map(Graph).ok_or(DriverError(cudaError_enum::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED))
    }
}
