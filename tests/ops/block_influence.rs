use crate::data::{floats, wide};
use crate::everywhere::everywhere;
use crate::harness::{best, pick};
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{BlockInfluence, BlockInfluenceArgs, Device};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["block_influence"];

#[test]
fn against_f64() {
    for &RowsCase { rows, cols } in ROWS {
        let mut before = floats(1, rows * cols);
        before.chunks_mut(cols).take(1).flatten().for_each(|x| *x = 0.0);
        let after: Vec<f32> = floats(2, rows * cols).iter().zip(&before).map(|(d, x)| x + 0.1 * d).collect();
        let what = format!("{rows} x {cols}");
        // The two halves of each f64, as two f32, so that all of its bits are compared.
        let outcomes = everywhere(&what, rows, 2, |backend, picked| {
            let before = backend.upload(picked.len(), cols, &pick(&before, cols, picked)).unwrap();
            let after = backend.upload(picked.len(), cols, &pick(&after, cols, picked)).unwrap();
            let cosines = backend.block_influence(BlockInfluenceArgs { before: &before, after: &after }).unwrap();
            let halves = |c: f64| {
                let bits = c.to_bits();
                [f32::from_bits(u32::try_from(bits >> 32).unwrap()), f32::from_bits(u32::try_from(bits & 0xffff_ffff).unwrap())]
            };
            cosines.into_iter().flat_map(halves).collect()
        });
        for (row, halves) in outcomes.iter().flat_map(|o| o.y.chunks(2).enumerate()) {
            let cosine = f64::from_bits(u64::from(halves[0].to_bits()) << 32 | u64::from(halves[1].to_bits()));
            let (a, b) = (wide(&before[row * cols..][..cols]), wide(&after[row * cols..][..cols]));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let expected = if row == 0 { 0.0 } else { dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt() };
            assert!((cosine - expected).abs() <= 1e-13, "{what} row {row}: {cosine}, expected {expected}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let (before, after) = (backend.zeros(2, 3).unwrap(), backend.zeros(2, 4).unwrap());
    let error = backend.block_influence(BlockInfluenceArgs { before: &before, after: &after }).unwrap_err();
    assert_eq!(error.to_string(), "block_influence: after has shape [2, 4], expected [2, 3]");
}
