use crate::compare::{chain, close, same};
use crate::data::{floats, indices};
use crate::everywhere::{everywhere, stored_as_bf16};
use crate::harness::{best, pick};
use prunectl::ops::cases::HEADS;
use prunectl::ops::{Device, Rope, RopeArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["rope"];

#[test]
fn against_f64_with_the_rest_untouched() {
    let max_positions = 23;
    for case in HEADS {
        let half = case.head_dim / 2;
        let rotated = case.heads * case.head_dim;
        let cols = rotated + case.behind;
        let x = floats(1, case.rows * cols);
        let (cos, sin) = (floats(2, max_positions * half), floats(3, max_positions * half));
        let positions = indices(4, case.rows, max_positions);
        for interleaved in [false, true] {
            let what = format!("{case:?} interleaved {interleaved}");
            let outcomes = everywhere(&what, case.rows, cols, |backend, picked| {
                let mut x = backend.upload(picked.len(), cols, &pick(&x, cols, picked)).unwrap();
                let cos = backend.upload(max_positions, half, &cos).unwrap();
                let sin = backend.upload(max_positions, half, &sin).unwrap();
                let positions: Vec<u32> = picked.iter().map(|&r| positions[r]).collect();
                let args = RopeArgs { x: &mut x, heads: case.heads, cos: &cos, sin: &sin, positions: &positions, interleaved };
                backend.rope(args).unwrap();
                backend.download(&x).unwrap()
            });
            let rows =
                outcomes.iter().flat_map(|o| o.y.chunks(cols).zip(x.chunks(cols)).zip(&positions).map(move |row| (o, row)));
            for (outcome, ((y, x), &position)) in rows {
                same("behind the heads", &y[rotated..], &x[rotated..]);
                let mut expected = vec![0.0; rotated];
                for head in 0..case.heads {
                    for i in 0..half {
                        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                        let (a, b) = (head * case.head_dim + a, head * case.head_dim + b);
                        let (cos, sin) =
                            (f64::from(cos[position as usize * half + i]), f64::from(sin[position as usize * half + i]));
                        expected[a] = f64::from(x[a]) * cos - f64::from(x[b]) * sin;
                        expected[b] = f64::from(x[b]) * cos + f64::from(x[a]) * sin;
                    }
                }
                close(&outcome.what, &y[..rotated], &expected, &vec![2.0; rotated], chain(3));
            }
        }
    }
}

#[test]
fn stored_in_bf16() {
    for case in HEADS {
        let half = case.head_dim / 2;
        let cols = case.heads * case.head_dim + case.behind;
        let x = floats(5, case.rows * cols);
        let (cos, sin) = (floats(6, 11 * half), floats(7, 11 * half));
        let positions = indices(8, case.rows, 11);
        for interleaved in [false, true] {
            stored_as_bf16(&format!("{case:?} {interleaved}"), case.rows, cols, 0.0, |backend, round, picked| {
                let mut x = backend.upload(picked.len(), cols, &round(&pick(&x, cols, picked))).unwrap();
                let cos = backend.upload(11, half, &round(&cos)).unwrap();
                let sin = backend.upload(11, half, &round(&sin)).unwrap();
                let positions: Vec<u32> = picked.iter().map(|&r| positions[r]).collect();
                let args = RopeArgs { x: &mut x, heads: case.heads, cos: &cos, sin: &sin, positions: &positions, interleaved };
                backend.rope(args).unwrap();
                backend.download(&x).unwrap()
            });
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let (cos, sin) = (backend.zeros(5, 4).unwrap(), backend.zeros(5, 4).unwrap());
    let mut x = backend.zeros(1, 15).unwrap();
    let args = RopeArgs { x: &mut x, heads: 2, cos: &cos, sin: &sin, positions: &[0], interleaved: false };
    assert_eq!(backend.rope(args).unwrap_err().to_string(), "rope: x has shape [1, 15], expected [1, 16]");
    let args = RopeArgs { x: &mut x, heads: 1, cos: &cos, sin: &sin, positions: &[5], interleaved: false };
    assert_eq!(backend.rope(args).unwrap_err().to_string(), "rope: positions has shape [5], expected [5]");
}
