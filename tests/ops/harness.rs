//! The invariances that hold for every op, as one check.

use crate::compare::same;
use prunectl::backend::cpu::{CpuBackend, Isa};
use prunectl::ops::Device;
use prunectl::tensor::Dtype;

/// A backend with two threads on this machine's best instruction set.
pub(crate) fn best(dtype: Dtype) -> CpuBackend {
    CpuBackend::new(dtype, Some(2)).unwrap()
}

/// Every instruction set of this machine.
pub(crate) fn levels() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available()).collect()
}

/// `op` gives one result of `cols` values for each of the rows asked for. Those values must not depend on the rows beside,
/// the threads, or (f32) the instruction set. Returns them for all rows, as the best level in f32 gives them.
pub(crate) fn invariant(what: &str, rows: usize, cols: usize, op: impl Fn(&CpuBackend, &[usize]) -> Vec<f32>) -> Vec<f32> {
    let every: Vec<usize> = (0..rows).collect();
    let expected = op(&best(Dtype::F32), &every);
    assert_eq!(expected.len(), rows * cols, "{what}: number of elements");
    for isa in levels() {
        let found = op(&CpuBackend::with_isa(Dtype::F32, Some(2), isa).unwrap(), &every);
        same(&format!("{what} on {}", isa.name()), &found, &expected);
    }
    batches(what, &best(Dtype::F32), &expected, rows, cols, &op);
    expected
}

/// The same for bf16 arithmetic, where each instruction set may have its own bits: `check` gets each level's.
pub(crate) fn invariant_bf16(
    what: &str,
    rows: usize,
    cols: usize,
    op: impl Fn(&CpuBackend, &[usize]) -> Vec<f32>,
    check: impl Fn(&str, &[f32]),
) {
    let every: Vec<usize> = (0..rows).collect();
    for isa in levels() {
        let backend = CpuBackend::with_isa(Dtype::Bf16, Some(2), isa).unwrap();
        let what = format!("{what} in bf16 on {}", isa.name());
        let expected = op(&backend, &every);
        check(&what, &expected);
        batches(&what, &backend, &expected, rows, cols, &op);
    }
}

fn batches(
    what: &str,
    backend: &CpuBackend,
    expected: &[f32],
    rows: usize,
    cols: usize,
    op: &impl Fn(&CpuBackend, &[usize]) -> Vec<f32>,
) {
    let every: Vec<usize> = (0..rows).collect();
    for threads in [1, 3] {
        let other = CpuBackend::with_isa(backend.compute_dtype(), Some(threads), backend.isa()).unwrap();
        same(&format!("{what} with {threads} threads"), &op(&other, &every), expected);
    }
    // A row alone, a few, and a ragged part.
    let mut groups: Vec<Vec<usize>> =
        [0, rows / 2, rows.wrapping_sub(1)].into_iter().filter(|&r| r < rows).map(|r| vec![r]).collect();
    groups.push((0..rows).step_by(3).collect());
    groups.push((rows / 3..rows).collect());
    for group in groups {
        let found = op(backend, &group);
        let alone: Vec<f32> = group.iter().flat_map(|&r| expected[r * cols..][..cols].iter().copied()).collect();
        same(&format!("{what}, rows {group:?} alone"), &found, &alone);
    }
}

/// The rows `rows` of `x` ([_, cols]).
pub(crate) fn pick(x: &[f32], cols: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&r| x[r * cols..][..cols].iter().copied()).collect()
}
