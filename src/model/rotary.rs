//! Cosines and sines of rotary positions, from `rope_theta` and the scaling of config.json.

use super::config::{DecoderConfig, RopeScaling};
use crate::error::Result;
use crate::ops::Device;

/// Tables on a device: [max_positions, head_dim / 2] each.
#[derive(Debug)]
pub struct RotaryTables<T> {
    /// Cosines.
    pub cos: T,
    /// Sines.
    pub sin: T,
}

impl<T> RotaryTables<T> {
    /// Tables for positions 0 .. `positions`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when memory is short.
    pub fn new<B: Device<Tensor = T>>(backend: &B, config: &DecoderConfig, positions: usize) -> Result<Self> {
        let frequencies = inverse_frequencies(config);
        let half = frequencies.len();
        let mut cos = Vec::with_capacity(positions * half);
        let mut sin = Vec::with_capacity(positions * half);
        for position in 0..positions {
            for &frequency in &frequencies {
                // The angle is rounded to f32 as transformers has it; its cosine is taken in f64 and rounded once.
                let angle = f64::from(position as f32 * frequency);
                #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
                {
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        Ok(Self { cos: backend.upload(positions, half, &cos)?, sin: backend.upload(positions, half, &sin)? })
    }
}

/// Radians a position of each rotated pair: theta^(-2i / head_dim), scaled as `rope_scaling` says (Llama 3.1:
/// `rope_type` llama3).
#[must_use]
pub fn inverse_frequencies(config: &DecoderConfig) -> Vec<f32> {
    (0..config.head_dim / 2)
        .map(|i| {
            #[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
            let exponent = (2 * i) as f64 / config.head_dim as f64;
            scaled(1.0 / config.rope_theta.powf(exponent), config.rope_scaling)
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "rounding to f32 is meant")]
fn scaled(frequency: f64, scaling: RopeScaling) -> f32 {
    let scaled = match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings as f64;
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength > original / low_freq_factor {
                frequency / factor
            } else if wavelength < original / high_freq_factor {
                frequency
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    };
    scaled as f32
}
