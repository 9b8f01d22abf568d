//! `--race`: greedy removal needs only the winner, so candidates that cannot win are dropped early.
//!
//! Records are walked in one seeded random order, a chunk at a time. After each chunk every remaining candidate is compared
//! with the leader on the records both have been scored on (paired differences d of the sums a record adds). A candidate is
//! dropped when the lower confidence bound of its total difference over *all* records is above zero.
//!
//! The records are a finite population drawn without replacement, so with n of N seen and m, s the mean and standard
//! deviation of d, the mean over all N lies within t s / sqrt(n) * sqrt(1 - n / N) of m (Cochran, Sampling Techniques, 2.8:
//! the finite population correction), t being the Student quantile with n - 1 degrees of freedom. The error probability P of
//! the round (`--race-delta`) is divided by the number of comparisons the round can make, candidates times looks (Bonferroni), so no
//! candidate that would win is dropped with a probability above P as far as the t approximation holds; unlike
//! empirical-Bernstein bounds (Maurer and Pontil 2009) it assumes that chunk means are near normal, which is why no look is
//! taken before [`FIRST_LOOK`] records. What survives is scored exactly on all records.

/// Records scored before the first look.
pub const FIRST_LOOK: usize = 16;
/// Records between looks.
pub const CHUNK: usize = 8;

/// The order in which a race walks `records` records.
#[must_use]
pub fn order(records: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..records).collect();
    crate::random::shuffle(&mut order, seed);
    order
}

/// Looks that a race over `records` records can take.
#[must_use]
pub fn looks(records: usize) -> usize {
    records.saturating_sub(FIRST_LOOK).div_ceil(CHUNK).max(1)
}

/// Mean and standard error (with the finite population correction) of paired differences, `differences.len()` of `records` seen.
#[must_use]
pub fn mean_and_error(differences: &[f64], records: usize) -> (f64, f64) {
    #[expect(clippy::cast_precision_loss, reason = "numbers of records are small")]
    let (n, all) = (differences.len() as f64, records as f64);
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n * (1.0 - n / all)).max(0.0).sqrt())
}

/// True when a candidate with these differences to the leader (positive: worse) cannot win, at error probability `delta` a
/// comparison.
#[must_use]
pub fn hopeless(differences: &[f64], records: usize, delta: f64) -> bool {
    if differences.len() < FIRST_LOOK {
        return false;
    }
    let (mean, error) = mean_and_error(differences, records);
    mean > student_quantile(delta, differences.len() - 1) * error
}

/// t with P(T > t) = `upper` for `freedom` degrees of freedom: the normal quantile with the Cornish-Fisher terms of
/// Abramowitz and Stegun 26.7.5 (error below 2 % from 15 degrees on, at the tails used here).
#[must_use]
pub fn student_quantile(upper: f64, freedom: usize) -> f64 {
    let z = normal_quantile(upper);
    #[expect(clippy::cast_precision_loss, reason = "numbers of records are small")]
    let v = freedom.max(1) as f64;
    let z2 = z * z;
    let g1 = (z2 + 1.0) * z / 4.0;
    let g2 = ((5.0 * z2 + 16.0) * z2 + 3.0) * z / 96.0;
    let g3 = (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) * z / 384.0;
    let g4 = ((((79.0 * z2 + 776.0) * z2 + 1482.0) * z2 - 1920.0) * z2 - 945.0) * z / 92160.0;
    z + g1 / v + g2 / v.powi(2) + g3 / v.powi(3) + g4 / v.powi(4)
}

/// z with P(Z > z) = `upper`, by bisection on the complementary error function (to 1e-12).
fn normal_quantile(upper: f64) -> f64 {
    let (mut low, mut high) = (-40.0_f64, 40.0_f64);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if upper_tail(middle) > upper { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// P(Z > z): continued fraction in the tail (Abramowitz and Stegun 26.2.14), series near zero (26.2.10).
fn upper_tail(z: f64) -> f64 {
    let a = z.abs();
    let density = (-a * a / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let tail = if a > 3.0 {
        let mut fraction = a;
        for k in (1..=60).rev() {
            fraction = a + f64::from(k) / fraction;
        }
        density / fraction
    } else {
        let (mut term, mut sum) = (a, a);
        for k in 1..100 {
            term *= a * a / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 - density * sum
    };
    if z >= 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::{hopeless, looks, mean_and_error, normal_quantile, order, student_quantile};

    #[test]
    fn quantiles_agree_with_published_tables() {
        for (upper, z) in
            [(0.025, 1.959_963_985), (0.001, 3.090_232_306), (1e-6, 4.753_424_309), (0.5, 0.0), (0.975, -1.959_963_985)]
        {
            assert!((normal_quantile(upper) - z).abs() < 1e-8, "{upper}: {}", normal_quantile(upper));
        }
        for (upper, freedom, t) in
            [(0.025, 15, 2.131_450), (0.001, 20, 3.551_808), (0.0005, 30, 3.645_959), (0.025, 100, 1.983_972)]
        {
            let found = student_quantile(upper, freedom);
            assert!((found - t).abs() < 2e-3 * t, "{upper} {freedom}: {found}");
        }
    }

    #[test]
    fn the_order_is_a_permutation_that_never_changes() {
        let mut sorted = order(100, 1);
        assert_ne!(sorted, order(100, 2));
        assert_eq!(sorted, order(100, 1));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order(0, 0), Vec::<usize>::new());
    }

    #[test]
    fn a_seen_population_leaves_no_doubt() {
        let (mean, error) = mean_and_error(&[1.0, 2.0, 3.0], 3);
        assert_eq!((mean, error), (2.0, 0.0));
        assert_eq!(looks(200), 23);
    }

    /// The promise itself: over many shuffled populations in which the candidate would win by a hair, it is dropped less often
    /// than the error probability allows.
    #[test]
    fn a_winner_is_hardly_ever_dropped() {
        let records = 200;
        let comparison = 0.01 / looks(records) as f64;
        let mut wrong = 0;
        for trial in 0..500 {
            let raw: Vec<f64> = order(records, 1000 + trial).iter().map(|&i| (i as f64 / 100.0 - 0.995).powi(3)).collect();
            let bias = raw.iter().sum::<f64>() / records as f64 + 1e-9;
            let differences: Vec<f64> = raw.iter().map(|d| d - bias).collect();
            let dropped =
                (super::FIRST_LOOK..records).step_by(super::CHUNK).any(|n| hopeless(&differences[..n], records, comparison));
            wrong += usize::from(dropped);
        }
        assert!(wrong <= 5, "{wrong} of 500 at 1 %");
    }

    #[test]
    fn a_clear_loser_goes_at_the_first_look() {
        let differences: Vec<f64> = (0..16).map(|i| 1.0 + f64::from(i % 3) * 0.1).collect();
        assert!(hopeless(&differences, 200, 1e-6));
        assert!(!hopeless(&differences[..15], 200, 1e-6));
    }
}
