//! kernels/rms_norm.cu against the formula in f64. Runs where a GPU and kernels are, else says that it was skipped.

use half::bf16;
use prunectl::backend::cuda::driver::{Gpu, devices};
use prunectl::backend::cuda::{kernels, rms_norm::rms_norm};

/// (rows, hidden): models' widths, 1, primes, multiples of 4 but not of 8, one below and above what a block reads in a
/// step (256 and 2048).
const SHAPES: [(usize, usize); 14] = [
    (1, 1),
    (3, 7),
    (5, 12),
    (3, 2044),
    (5, 255),
    (2, 257),
    (4, 576),
    (7, 2047),
    (3, 2048),
    (2, 2049),
    (9, 2056),
    (33, 4096),
    (2, 4097),
    (1, 8192),
];

/// Fixed pseudo-random values around zero (xorshift), rounded to bf16, some of them large.
fn values(seed: u64, n: usize) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let unit = (state >> 40) as f64 / f64::from(1 << 24) - 0.5;
            bf16::from_f64(unit * if i % 97 == 13 { 300.0 } else { 4.0 })
        })
        .collect()
}

fn reference(x: &[bf16], weight: &[bf16], eps: f64) -> Vec<f64> {
    x.chunks(weight.len())
        .flat_map(|row| {
            let mean = row.iter().map(|v| v.to_f64().powi(2)).sum::<f64>() / weight.len() as f64;
            let scale = 1.0 / (mean + eps).sqrt();
            row.iter().zip(weight).map(move |(v, w)| v.to_f64() * scale * w.to_f64()).collect::<Vec<_>>()
        })
        .collect()
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn gpu() -> Option<Gpu> {
    if kernels::CUDA_KERNELS.is_none() || devices().map_or(0, |d| d.len()) == 0 {
        eprintln!("skipped: no GPU or no CUDA kernels in this build");
        return None;
    }
    Some(Gpu::open(0).unwrap())
}

#[test]
fn equals_the_formula() {
    let Some(gpu) = gpu() else { return };
    for (case, (rows, hidden)) in (1..).zip(SHAPES) {
        // Every other eps is so large that leaving it out shows.
        let eps = if case % 2 == 0 { 0.75_f32 } else { 1e-5 };
        let (x, weight) = (values(case, rows * hidden), values(case + 100, hidden));
        let poison = vec![bf16::NAN; rows * hidden];
        let mut y = gpu.upload(&poison).unwrap();
        rms_norm(&gpu, &mut y, &gpu.upload(&x).unwrap(), &gpu.upload(&weight).unwrap(), eps).unwrap();
        let y = gpu.download(&y).unwrap();
        for (i, (found, expected)) in y.iter().zip(reference(&x, &weight, f64::from(eps))).enumerate() {
            // One rounding to bf16 (8 bits: at most 2^-8 relative), and a thousandth of that for f32 sums of 32 terms a thread.
            let tolerance = expected.abs() * (1.0 / 256.0) * 1.001 + 1e-30;
            let error = (found.to_f64() - expected).abs();
            assert!(
                error <= tolerance,
                "[{rows}, {hidden}] element {i}: {found} for {expected}, off by {error:e} > {tolerance:e}"
            );
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let Some(gpu) = gpu() else { return };
    let hidden = 576;
    let (x, weight) = (values(7, 5 * hidden), gpu.upload(&values(8, hidden)).unwrap());
    let run = |rows: &[bf16]| {
        let mut y = gpu.allocate(rows.len()).unwrap();
        rms_norm(&gpu, &mut y, &gpu.upload(rows).unwrap(), &weight, 1e-6).unwrap();
        gpu.download(&y).unwrap()
    };
    let together = run(&x);
    let apart: Vec<bf16> = x.chunks(hidden).flat_map(run).collect();
    assert!(together.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn no_rows_do_nothing_and_wrong_lengths_are_refused() {
    let Some(gpu) = gpu() else { return };
    let weight = gpu.upload(&values(1, 8)).unwrap();
    let mut none = gpu.upload::<bf16>(&[]).unwrap();
    rms_norm(&gpu, &mut none, &gpu.upload(&[]).unwrap(), &weight, 1e-5).unwrap();
    assert!(gpu.download(&none).unwrap().is_empty());
    let x = gpu.upload(&values(2, 17)).unwrap();
    let mut y = gpu.upload(&values(3, 16)).unwrap();
    assert!(rms_norm(&gpu, &mut y, &x, &weight, 1e-5).unwrap_err().to_string().starts_with("rms_norm: x has shape"));
    let x = gpu.upload(&values(2, 24)).unwrap();
    assert!(rms_norm(&gpu, &mut y, &x, &weight, 1e-5).unwrap_err().to_string().starts_with("rms_norm: y has shape"));
}

#[test]
fn a_missing_gpu_is_an_error_that_says_so() {
    let number = devices().map_or(0, |d| d.len());
    let error = Gpu::open(number).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.help().is_some_and(|help| !help.is_empty()), "{error}");
}
