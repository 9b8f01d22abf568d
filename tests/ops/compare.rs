//! The one comparator, and the tolerance policy:
//! - copies and integers: equal bits;
//! - the same op with other rows beside it, other threads, or (f32) another instruction set: equal bits;
//! - against f64: an f32 result may err by [`chain`] of the number of operations in its chain, relative to the sum of the
//!   magnitudes that went into it (not to a result that may have cancelled to nothing). Rounding errors of a chain of n
//!   operations behave like a random walk, so the bound grows with the root of n; 4 of its steps are never seen by chance.
//! - bf16 arithmetic: the reference gets the same rounded inputs, so the f32 bound holds unchanged.

/// Relative tolerance of a chain of `n` f32 operations.
pub(crate) fn chain(n: usize) -> f64 {
    4.0 * f64::from(f32::EPSILON) / 2.0 * ((n + 4) as f64).sqrt()
}

/// Passes only where |found - expected| <= tolerance * magnitude; NaN must meet NaN, infinities must be equal.
pub(crate) fn close(what: &str, found: &[f32], expected: &[f64], magnitudes: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    let mut worst = (0.0, 0);
    for (i, ((&f, &e), &m)) in found.iter().zip(expected).zip(magnitudes).enumerate() {
        let f = f64::from(f);
        if e.is_nan() || e.is_infinite() {
            assert!(f == e || (f.is_nan() && e.is_nan()), "{what}: element {i} is {f}, expected {e}");
            continue;
        }
        // Denormal results cannot be better than the smallest step of f32.
        let error = ((f - e).abs() - f64::from(f32::from_bits(1))).max(0.0) / m.max(f64::MIN_POSITIVE);
        assert!(!error.is_nan(), "{what}: element {i} is {f}, expected {e}");
        if error > worst.0 {
            worst = (error, i);
        }
    }
    let (error, i) = worst;
    assert!(
        error <= tolerance,
        "{what}: element {i} is {}, expected {}: error {error:e} of its magnitude, {tolerance:e} allowed",
        found[i],
        expected[i]
    );
}

/// Equal bits; NaN payloads count as equal.
pub(crate) fn same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let equal = f.to_bits() == e.to_bits() || (f.is_nan() && e.is_nan());
        assert!(equal, "{what}: element {i} is {f:e} ({:08x}), expected {e:e} ({:08x})", f.to_bits(), e.to_bits());
    }
}
