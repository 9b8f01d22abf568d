use crate::compare::same;
use crate::data::{floats, indices};
use crate::harness::{best, pick};
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{Device, GatherRowsArgs, Rows, ScatterRowsArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["gather_rows", "scatter_rows"];

#[test]
fn gather_picks_rows() {
    let backend = best(Dtype::F32);
    for &RowsCase { rows, cols } in ROWS {
        let x = floats(1, 11 * cols);
        let picked = indices(2, rows, 11);
        let mut y = backend.zeros(rows, cols).unwrap();
        let x_tensor = backend.upload(11, cols, &x).unwrap();
        backend.gather_rows(GatherRowsArgs { y: &mut y, x: &x_tensor, rows: &picked }).unwrap();
        let expected: Vec<usize> = picked.iter().map(|&r| r as usize).collect();
        same(&format!("{rows} x {cols}"), &backend.download(&y).unwrap(), &pick(&x, cols, &expected));
    }
}

#[test]
fn scatter_puts_them_back_and_leaves_the_others() {
    let backend = best(Dtype::F32);
    for &RowsCase { rows, cols } in ROWS {
        let all = 2 * rows + 1;
        let (x, y) = (floats(1, rows * cols), floats(2, all * cols));
        // Every other row, backwards.
        let places: Vec<u32> = (0..u32::try_from(rows).unwrap()).rev().map(|r| 2 * r + 1).collect();
        let mut y_tensor = backend.upload(all, cols, &y).unwrap();
        let x_tensor = backend.upload(rows, cols, &x).unwrap();
        backend.scatter_rows(ScatterRowsArgs { y: &mut y_tensor, x: &x_tensor, rows: &places }).unwrap();
        let mut expected = y;
        for (row, &place) in places.iter().enumerate() {
            expected[place as usize * cols..][..cols].copy_from_slice(&x[row * cols..][..cols]);
        }
        same(&format!("{rows} x {cols}"), &backend.download(&y_tensor).unwrap(), &expected);
    }
}

#[test]
fn copies_and_resizes() {
    let backend = best(Dtype::F32);
    let values = floats(3, 700 * 300);
    let x = backend.upload(700, 300, &values).unwrap();
    let mut y = backend.zeros(2, 2).unwrap();
    assert!(backend.copy(&mut y, &x).is_err());
    backend.resize(&mut y, 700, 300).unwrap();
    backend.copy(&mut y, &x).unwrap();
    same("the copy", &backend.download(&y).unwrap(), &values);
    assert!(backend.zeros(usize::MAX / 8, 3).is_err(), "more memory than there is");
    assert!(backend.upload(2, 2, &[0.0; 3]).is_err());
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
