use crate::any::Stored;
use crate::compare::same;
use crate::data::floats;
use crate::data::rounded;
use crate::everywhere::{backends, everywhere, gpu, stored_as_bf16};
use crate::harness::{best, pick};
use prunectl::ops::cases::{COLS, ColsCase};
use prunectl::ops::{AddColsArgs, Cols, Device, TakeColsArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["add_cols", "take_cols"];

#[test]
fn columns_are_added_to() {
    for &ColsCase { rows, cols, first_col, behind } in COLS {
        let wide = first_col + cols + behind;
        let (x, y) = (floats(1, rows * cols), floats(2, rows * wide));
        let scale = 0.3;
        let outcomes = everywhere(&format!("{rows} x {cols} at {first_col}"), rows, wide, |backend, picked| {
            let x = backend.upload(picked.len(), cols, &pick(&x, cols, picked)).unwrap();
            let mut y = backend.upload(picked.len(), wide, &pick(&y, wide, picked)).unwrap();
            backend.add_cols(AddColsArgs { y: &mut y, x: &x, first_col, scale }).unwrap();
            backend.download(&y).unwrap()
        });
        // A product of two f32 is exact in f64; so is nearly every sum, and where it is not the rounding may differ.
        for (i, (found, y)) in outcomes.iter().flat_map(|o| o.y.iter().zip(&y).enumerate()) {
            let (row, col) = (i / wide, i % wide);
            let inside = (first_col..first_col + cols).contains(&col);
            let add = if inside { f64::from(scale) * f64::from(x[row * cols + col - first_col]) } else { 0.0 };
            let expected = f64::from(*y) + add;
            let error = (f64::from(*found) - expected).abs();
            let allowed = if inside { 0.51 * f64::from(f32::EPSILON) * expected.abs() } else { 0.0 };
            assert!(error <= allowed, "row {row}, column {col}: {found} instead of {expected}");
        }
    }
}

#[test]
fn columns_are_taken() {
    let plain = backends(Dtype::F32).into_iter().map(|backend| (backend, Dtype::F32));
    for (backend, dtype) in plain.chain(gpu(Dtype::Bf16, Stored::Scratch).map(|backend| (backend, Dtype::Bf16))) {
        for &ColsCase { rows, cols, first_col, behind } in COLS {
            let wide = first_col + cols + behind;
            let x = rounded(&floats(3, rows * wide), dtype);
            let x_tensor = backend.upload(rows, wide, &x).unwrap();
            let mut y = backend.upload(rows, cols, &floats(4, rows * cols)).unwrap();
            backend.take_cols(TakeColsArgs { y: &mut y, x: &x_tensor, first_col }).unwrap();
            let expected: Vec<f32> = (0..rows).flat_map(|r| x[r * wide + first_col..][..cols].to_vec()).collect();
            let what = format!("{rows} x {cols} at {first_col} on {}", backend.name());
            same(&what, &backend.download(&y).unwrap(), &expected);
        }
    }
}

#[test]
fn stored_in_bf16() {
    for &ColsCase { rows, cols, first_col, behind } in COLS {
        let wide = first_col + cols + behind;
        let (x, y) = (floats(5, rows * cols), floats(6, rows * wide));
        stored_as_bf16(&format!("{rows} x {cols} at {first_col}"), rows, wide, 0.0, |backend, round, picked| {
            let x = backend.upload(picked.len(), cols, &round(&pick(&x, cols, picked))).unwrap();
            let mut y = backend.upload(picked.len(), wide, &round(&pick(&y, wide, picked))).unwrap();
            backend.add_cols(AddColsArgs { y: &mut y, x: &x, first_col, scale: 0.3 }).unwrap();
            backend.download(&y).unwrap()
        });
    }
}

#[test]
fn columns_outside_are_named() {
    let backend = best(Dtype::F32);
    let (mut y, mut x) = (backend.zeros(2, 5).unwrap(), backend.zeros(2, 3).unwrap());
    let error = backend.add_cols(AddColsArgs { y: &mut y, x: &x, first_col: 3, scale: 1.0 }).unwrap_err();
    assert_eq!(error.to_string(), "add_cols: first_col has shape [6], expected [5]");
    let error = backend.take_cols(TakeColsArgs { y: &mut x, x: &y, first_col: usize::MAX }).unwrap_err();
    assert_eq!(error.to_string(), format!("take_cols: first_col has shape [{}], expected [5]", usize::MAX));
    let three = backend.zeros(3, 3).unwrap();
    assert!(backend.add_cols(AddColsArgs { y: &mut y, x: &three, first_col: 0, scale: 1.0 }).is_err());
}
