use crate::any::{Any, Stored};
use crate::compare::same;
use crate::data::{floats, indices, rounded};
use crate::everywhere::{backends, gpu, poisoned};
use crate::harness::{best, pick};
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{Device, GatherRowsArgs, Rows, ScatterRowsArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["gather_rows", "scatter_rows"];

/// Backends with the dtype their tensors have.
fn stores() -> Vec<(Any, Dtype)> {
    let plain = backends(Dtype::F32).into_iter().map(|backend| (backend, Dtype::F32));
    plain.chain(gpu(Dtype::Bf16, Stored::Scratch).map(|backend| (backend, Dtype::Bf16))).collect()
}

#[test]
fn gather_picks_rows() {
    for (backend, dtype) in stores() {
        for &RowsCase { rows, cols } in ROWS {
            let x = rounded(&floats(1, 11 * cols), dtype);
            let picked = indices(2, rows, 11);
            let mut y = poisoned(&backend, rows, cols);
            let x_tensor = backend.upload(11, cols, &x).unwrap();
            backend.gather_rows(GatherRowsArgs { y: &mut y, x: &x_tensor, rows: &picked }).unwrap();
            let expected: Vec<usize> = picked.iter().map(|&r| r as usize).collect();
            let what = format!("{rows} x {cols} on {}", backend.name());
            same(&what, &backend.download(&y).unwrap(), &pick(&x, cols, &expected));
        }
    }
}

#[test]
fn scatter_puts_them_back_and_leaves_the_others() {
    for (backend, dtype) in stores() {
        for &RowsCase { rows, cols } in ROWS {
            let all = 2 * rows + 1;
            let (x, y) = (rounded(&floats(1, rows * cols), dtype), rounded(&floats(2, all * cols), dtype));
            // Every other row, backwards.
            let places: Vec<u32> = (0..u32::try_from(rows).unwrap()).rev().map(|r| 2 * r + 1).collect();
            let mut y_tensor = backend.upload(all, cols, &y).unwrap();
            let x_tensor = backend.upload(rows, cols, &x).unwrap();
            backend.scatter_rows(ScatterRowsArgs { y: &mut y_tensor, x: &x_tensor, rows: &places }).unwrap();
            let mut expected = y;
            for (row, &place) in places.iter().enumerate() {
                expected[place as usize * cols..][..cols].copy_from_slice(&x[row * cols..][..cols]);
            }
            let what = format!("{rows} x {cols} on {}", backend.name());
            same(&what, &backend.download(&y_tensor).unwrap(), &expected);
        }
    }
}

#[test]
fn copies_and_resizes() {
    for backend in backends(Dtype::F32) {
        let values = floats(3, 700 * 300);
        let x = backend.upload(700, 300, &values).unwrap();
        let mut y = backend.zeros(2, 2).unwrap();
        assert_eq!(backend.download(&y).unwrap(), [0.0; 4]);
        assert!(backend.copy(&mut y, &x).is_err());
        backend.resize(&mut y, 700, 300).unwrap();
        backend.copy(&mut y, &x).unwrap();
        same("the copy", &backend.download(&y).unwrap(), &values);
        backend.resize(&mut y, 5, 7).unwrap();
        assert_eq!(backend.download(&y).unwrap().len(), 35);
        assert!(backend.zeros(usize::MAX / 8, 3).is_err(), "more memory than there is");
        assert!(backend.upload(2, 2, &[0.0; 3]).is_err());
    }
}

/// From the residual stream to what lives within a layer and back: one rounding to nearest even, then none.
#[test]
fn conversions_round_once() {
    let Some(backend) = gpu(Dtype::Bf16, Stored::Plain) else { return };
    for &RowsCase { rows, cols } in ROWS {
        let values = floats(4, rows * cols);
        let wide = backend.upload(rows, cols, &values).unwrap();
        let mut narrow = backend.scratch(rows, cols).unwrap();
        backend.copy(&mut narrow, &wide).unwrap();
        let mut back = poisoned(&backend, rows, cols);
        backend.copy(&mut back, &narrow).unwrap();
        same(&format!("{rows} x {cols}"), &backend.download(&back).unwrap(), &rounded(&values, Dtype::Bf16));
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let (x, mut y) = (backend.zeros(3, 2).unwrap(), backend.zeros(2, 2).unwrap());
    let error = backend.gather_rows(GatherRowsArgs { y: &mut y, x: &x, rows: &[0, 3] }).unwrap_err();
    assert_eq!(error.to_string(), "gather_rows: rows has shape [3], expected [3]");
    let error = backend.scatter_rows(ScatterRowsArgs { y: &mut y, x: &x, rows: &[0, 1] }).unwrap_err();
    assert_eq!(error.to_string(), "scatter_rows: x has shape [3, 2], expected [2, 2]");
}
