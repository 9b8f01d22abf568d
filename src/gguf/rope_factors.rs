//! Llama 3's rotary scaling, back from the factors that GGUF keeps of it.
//!
//! llama.cpp stores one divisor a frequency (`rope_freqs.weight`) where config.json has four parameters. The parameters
//! are recovered and then held against every factor: what does not reproduce them is refused.

use std::f64::consts::TAU;

/// `rope_scaling` of type `llama3` in config.json.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// original_max_position_embeddings / low_freq_factor is the wavelength from which on `factor` applies in full.
    pub low_freq_factor: f64,
    /// original_max_position_embeddings / high_freq_factor is the wavelength up to which nothing is divided.
    pub high_freq_factor: f64,
    /// Context length before scaling.
    pub original_max_position_embeddings: f64,
}

/// Relative error that f32 arithmetic leaves in a stored factor: it is computed from a power, a quotient and a
/// difference, each good to 6e-8, and the difference cancels up to two digits.
const TOLERANCE: f64 = 1e-5;

impl Llama3 {
    /// The divisor of the frequency `1 / theta^exponent`.
    fn divisor(&self, theta: f64, exponent: f64) -> f64 {
        let wavelength = TAU * theta.powf(exponent);
        let Self { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original } = *self;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    }

    fn reproduces(&self, theta: f64, factors: &[f32]) -> bool {
        exponents(factors).all(|(exponent, found)| {
            let expected = self.divisor(theta, exponent);
            (expected - found).abs() <= TOLERANCE * expected
        })
    }

    /// The parameters that give `factors` (one a pair of rotary dimensions, highest frequency first) with `rope_theta`;
    /// `None` if none do. Only ratios to `low_freq_factor` matter, so that is 1, as every released model has it.
    #[must_use]
    pub fn from_factors(theta: f64, factors: &[f32]) -> Option<Self> {
        let factor = f64::from(*factors.last()?);
        let with = |high_freq_factor, original_max_position_embeddings| Self {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor,
            original_max_position_embeddings,
        };
        // Between the plateaus, smooth is linear in 1 / wavelength: two points give both parameters.
        let smooth: Vec<(f64, f64)> = exponents(factors)
            .filter(|(_, found)| *found > 1.0 && *found < factor)
            .map(|(exponent, found)| (1.0 / (TAU * theta.powf(exponent)), (1.0 / found - 1.0 / factor) / (1.0 - 1.0 / factor)))
            .collect();
        let fitted = match (smooth.first(), smooth.last()) {
            (Some((x, y)), Some((v, w))) if x > v => {
                let slope = (y - w) / (x - v);
                let intercept = y - slope * x;
                let high = 1.0 - 1.0 / intercept;
                Some(with(high.round(), (slope * (high - 1.0)).round()))
            }
            _ => None,
        };
        // With fewer than two such points many parameters fit: take what released models have.
        let usual = (5..=20).map(|power| with(4.0, 2.0_f64.powi(power)));
        fitted.into_iter().chain(usual).find(|candidate| {
            candidate.high_freq_factor > 1.0
                && candidate.original_max_position_embeddings >= 1.0
                && candidate.factor >= 1.0
                && candidate.reproduces(theta, factors)
        })
    }
}

/// Pairs of (exponent of theta, factor): exponents are 0, 2/d, 4/d, … for d = 2 x the number of factors.
fn exponents(factors: &[f32]) -> impl Iterator<Item = (f64, f64)> {
    let count = u32::try_from(factors.len()).unwrap_or(u32::MAX);
    (0..count).zip(factors).map(move |(i, found)| (f64::from(i) / f64::from(count), f64::from(*found)))
}
