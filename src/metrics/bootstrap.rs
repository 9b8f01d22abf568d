//! Paired bootstrap resampling (Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004):
//! how far the difference of two systems on one data set would move had other records been drawn.

use crate::random::SplitMix64;

/// The 95 % percentile interval of a difference of two corpus scores over resampled data sets.
///
/// Each of `resamples` times, `records` indices are drawn from `0..records` with replacement and `difference` gives the
/// difference of the two systems' corpus scores on exactly those records (both on the same: that is what pairs them). The
/// lowest and the highest 2.5 % of the differences are cut off. The same seed gives the same interval on every machine.
///
/// Without records or resamples there is no interval: `[NaN, NaN]`.
#[must_use]
pub fn paired_interval(seed: u64, resamples: usize, records: usize, difference: impl Fn(&[u32]) -> f64) -> [f64; 2] {
    let Ok(bound) = u32::try_from(records) else { return [f64::NAN; 2] };
    if bound == 0 || resamples == 0 {
        return [f64::NAN; 2];
    }
    let mut random = SplitMix64::new(seed);
    let mut sample = vec![0u32; records];
    let mut differences: Vec<f64> = (0..resamples)
        .map(|_| {
            sample.fill_with(|| u32::try_from(random.below(bound.into())).unwrap_or(0));
            difference(&sample)
        })
        .collect();
    differences.sort_unstable_by(f64::total_cmp);
    let cut = resamples / 40;
    [differences[cut], differences[resamples - 1 - cut]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generator's published first outputs for seed 1234567.
    #[test]
    fn generator_is_splitmix64() {
        let mut random = SplitMix64::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn indices_are_uniform() {
        let mut random = SplitMix64::new(7);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[usize::try_from(random.below(10)).unwrap()] += 1;
        }
        // Each count is binomial with mean 10 000 and standard deviation 95; 5 of them.
        assert!(counts.iter().all(|&n| n.abs_diff(10_000) < 475), "{counts:?}");
    }

    /// Mean of n paired differences: the interval is mean ± 1.96 s / sqrt(n) for large n.
    #[test]
    fn mean_agrees_with_the_normal_approximation() {
        let mut random = SplitMix64::new(3);
        // A sum of 12 uniforms minus 6 is close to a standard normal.
        let mut normal = || (0..12).map(|_| random.below(1 << 30) as f64 / f64::from(1 << 30)).sum::<f64>() - 6.0;
        let differences: Vec<f64> = (0..400).map(|_| 0.3 + 2.0 * normal()).collect();
        let n = 400.0;
        let mean = differences.iter().sum::<f64>() / n;
        let deviation = (differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n).sqrt();
        let half = 1.96 * deviation / f64::sqrt(n);
        let mean_of = |sample: &[u32]| sample.iter().map(|&i| differences[i as usize]).sum::<f64>() / n;
        let [low, high] = paired_interval(11, 4000, 400, mean_of);
        // A 2.5 % quantile of 4000 draws has standard error sqrt(.025*.975/4000)/phi(1.96) = 0.042 deviations of the mean.
        let tolerance = 4.0 * 0.042 * half / 1.96;
        assert!((low - (mean - half)).abs() < tolerance, "{low} against {}", mean - half);
        assert!((high - (mean + half)).abs() < tolerance, "{high} against {}", mean + half);
    }

    /// A ratio of sums (token-weighted nll): the delta method's variance of sum(d)/sum(t).
    #[test]
    fn token_weighted_mean_agrees_with_the_delta_method() {
        let mut random = SplitMix64::new(5);
        let records: Vec<(f64, f64)> = (0..500)
            .map(|_| {
                let tokens = (10 + random.below(90)) as f64;
                (tokens * (random.below(1000) as f64 / 1000.0 - 0.4), tokens)
            })
            .collect();
        let n = 500.0;
        let total: f64 = records.iter().map(|r| r.1).sum();
        let ratio = records.iter().map(|r| r.0).sum::<f64>() / total;
        let variance = records.iter().map(|(d, t)| (d - ratio * t).powi(2)).sum::<f64>() / n;
        let half = 1.96 * variance.sqrt() / (f64::sqrt(n) * total / n);
        let [low, high] = paired_interval(1, 4000, 500, |sample| {
            let (d, t) = sample.iter().map(|&i| records[i as usize]).fold((0.0, 0.0), |a, r| (a.0 + r.0, a.1 + r.1));
            d / t
        });
        let tolerance = 4.0 * 0.042 * half / 1.96;
        assert!((low - (ratio - half)).abs() < tolerance, "{low} against {}", ratio - half);
        assert!((high - (ratio + half)).abs() < tolerance, "{high} against {}", ratio + half);
    }

    #[test]
    fn same_seed_same_interval_and_edges() {
        let f = |sample: &[u32]| sample.iter().map(|&i| f64::from(i)).sum::<f64>();
        assert_eq!(paired_interval(9, 1000, 40, f), paired_interval(9, 1000, 40, f));
        assert_ne!(paired_interval(9, 1000, 40, f), paired_interval(10, 1000, 40, f));
        assert_eq!(paired_interval(9, 1000, 1, |_| 2.5), [2.5, 2.5]);
        assert_eq!(paired_interval(9, 1, 3, |_| 1.0), [1.0, 1.0]);
        assert!(paired_interval(9, 1000, 0, |_| 0.0)[0].is_nan());
        assert!(paired_interval(9, 0, 5, |_| 0.0)[1].is_nan());
    }
}
