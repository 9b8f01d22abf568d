//! One op on every backend there is: the CPU's instruction sets, and the GPU (or the emulated one, see emulator/README.md)
//! where the driver finds one.

use crate::any::{Any, Stored};
use crate::compare::same;
use crate::data::rounded;
use crate::harness;
use prunectl::backend::cpu::CpuBackend;
use prunectl::backend::cuda::driver::devices;
use prunectl::backend::cuda::{CudaBackend, kernels};
use prunectl::ops::{Device, Shaped};
use prunectl::tensor::Dtype;

/// The GPU, or `None` where there is none or no kernels: then a test covers the CPU only, and says so. Where
/// PRUNECTL_TEST_DEVICE names one (scripts/test does) there must be one.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn gpu(dtype: Dtype, stored: Stored) -> Option<Any> {
    let found = kernels::CUDA_KERNELS.is_some() && devices().is_ok_and(|d| !d.is_empty());
    if found {
        return Some(Any::Cuda(Box::new(CudaBackend::new(dtype, 0).unwrap()), stored));
    }
    assert!(std::env::var_os("PRUNECTL_TEST_DEVICE").is_none(), "PRUNECTL_TEST_DEVICE is set, and there is no GPU");
    eprintln!("not on a GPU: there is none, or no CUDA kernels in this build");
    None
}

/// The CPU, and the GPU where there is one.
pub(crate) fn backends(dtype: Dtype) -> Vec<Any> {
    let cpu = Any::Cpu(harness::best(dtype));
    std::iter::once(cpu).chain(gpu(dtype, Stored::Plain)).collect()
}

/// What a backend computed, for comparison with the formula.
pub(crate) struct Outcome {
    pub(crate) what: String,
    pub(crate) y: Vec<f32>,
}

/// `op` gives one result of `cols` values for each of the rows asked for, in f32 arithmetic. Checks on each backend that they
/// do not depend on the rows beside, and returns the values of all rows.
pub(crate) fn everywhere(what: &str, rows: usize, cols: usize, op: impl Fn(&Any, &[usize]) -> Vec<f32>) -> Vec<Outcome> {
    let y = harness::invariant(what, rows, cols, |backend, rows| op(&lend(backend), rows));
    let mut outcomes = vec![Outcome { what: what.to_owned(), y }];
    if let Some(gpu) = gpu(Dtype::F32, Stored::Plain) {
        let y = op(&gpu, &(0..rows).collect::<Vec<_>>());
        outcomes.push(of_gpu(what, &gpu, y, rows, cols, &op));
    }
    outcomes
}

/// The same in bf16 arithmetic, where each instruction set may have its own bits.
pub(crate) fn everywhere_bf16(
    what: &str,
    rows: usize,
    cols: usize,
    op: impl Fn(&Any, &[usize]) -> Vec<f32>,
    check: impl Fn(&str, &[f32]),
) {
    harness::invariant_bf16(what, rows, cols, |backend, rows| op(&lend(backend), rows), &check);
    if let Some(gpu) = gpu(Dtype::Bf16, Stored::Plain) {
        let y = op(&gpu, &(0..rows).collect::<Vec<_>>());
        let outcome = of_gpu(&format!("{what} in bf16"), &gpu, y, rows, cols, &op);
        check(&outcome.what, &outcome.y);
    }
}

/// `op` on tensors that the GPU stores in bf16, against the CPU in f32 on the same rounded inputs (which the other checks hold
/// to f64). Each result was rounded to bf16 once: half a step of 2^-7, at most 2^-8 of it. `inside`: further error, as a part of the largest
/// value of the row, for ops that round on the way.
pub(crate) fn stored_as_bf16(what: &str, rows: usize, cols: usize, inside: f32, op: impl Fn(&Any, &Round, &[usize]) -> Vec<f32>) {
    let Some(gpu) = gpu(Dtype::Bf16, Stored::Scratch) else { return };
    if rows * cols == 0 {
        // Nothing to compute, which must not fail either.
        op(&gpu, &|values: &[f32]| values.to_vec(), &[]);
        return;
    }
    let every: Vec<usize> = (0..rows).collect();
    let round = |values: &[f32]| rounded(values, Dtype::Bf16);
    let expected = op(&Any::Cpu(harness::best(Dtype::F32)), &round, &every);
    let found = op(&gpu, &round, &every);
    let outcome =
        of_gpu(&format!("{what} stored as bf16"), &gpu, found, rows, cols, &|b: &Any, rows: &[usize]| op(b, &round, rows));
    for (row, (found, expected)) in outcome.y.chunks(cols).zip(expected.chunks(cols)).enumerate() {
        let largest = expected.iter().fold(0.0_f32, |m, y| m.max(y.abs()));
        for (col, (f, e)) in found.iter().zip(expected).enumerate() {
            let allowed = e.abs() * (1.01 / 256.0) + largest * (inside + 1e-6) + 1e-37;
            assert!((f - e).abs() <= allowed, "{}: row {row}, column {col} is {f}, expected {e} +- {allowed:e}", outcome.what);
        }
    }
}

/// Rounds a test's inputs to what both sides will see.
pub(crate) type Round<'a> = dyn Fn(&[f32]) -> Vec<f32> + 'a;

fn of_gpu(what: &str, gpu: &Any, y: Vec<f32>, rows: usize, cols: usize, op: &impl Fn(&Any, &[usize]) -> Vec<f32>) -> Outcome {
    let what = format!("{what} on {}", gpu.name());
    assert_eq!(y.len(), rows * cols, "{what}: number of elements");
    // A row alone, and a ragged part.
    let mut groups: Vec<Vec<usize>> = [rows / 2].into_iter().filter(|&r| r < rows).map(|r| vec![r]).collect();
    groups.push((0..rows).step_by(3).collect());
    for group in groups {
        let found = op(gpu, &group);
        same(&format!("{what}, rows {group:?} alone"), &found, &harness::pick(&y, cols, &group));
    }
    Outcome { what, y }
}

/// The same CPU backend behind the type that stands for all: options, not state, so a new one computes the same.
fn lend(backend: &CpuBackend) -> Any {
    Any::Cpu(CpuBackend::with_isa(backend.compute_dtype(), Some(backend.threads()), backend.isa()).unwrap())
}

/// A tensor of NaN: what an op leaves unwritten shows.
pub(crate) fn poisoned(backend: &Any, rows: usize, cols: usize) -> <Any as Device>::Tensor {
    let tensor = backend.upload(rows, cols, &vec![f32::NAN; rows * cols]).unwrap();
    assert_eq!((tensor.rows(), tensor.cols()), (rows, cols));
    tensor
}
