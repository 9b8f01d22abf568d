//! Which layers run, in order. An argument of the forward pass: skipping a layer copies nothing.

use crate::error::{Error, Result};

/// The kept layers of a model, ascending, by their numbers in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    layers: usize,
    kept: Vec<usize>,
}

impl LayerPlan {
    /// All of `layers` layers.
    #[must_use]
    pub fn full(layers: usize) -> Self {
        Self { layers, kept: (0..layers).collect() }
    }

    /// All layers but `removed`.
    ///
    /// # Errors
    /// [`Error::Request`] for a layer that does not exist or is named twice, and when none is left.
    pub fn without(layers: usize, removed: &[usize]) -> Result<Self> {
        let mut gone = vec![false; layers];
        for &layer in removed {
            match gone.get_mut(layer) {
                None => {
                    return Err(Error::request(format!(
                        "layer {layer} does not exist: the model has layers 0-{}",
                        layers.saturating_sub(1)
                    )));
                }
                Some(true) => return Err(Error::request(format!("layer {layer} is named twice"))),
                Some(slot) => *slot = true,
            }
        }
        let kept: Vec<usize> = (0..layers).filter(|&l| !gone[l]).collect();
        if kept.is_empty() {
            return Err(Error::request(format!("nothing left to keep: all {layers} layers would be removed")));
        }
        Ok(Self { layers, kept })
    }

    /// The kept layers, ascending.
    #[must_use]
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// The removed layers, ascending.
    #[must_use]
    pub fn removed(&self) -> Vec<usize> {
        (0..self.layers).filter(|&l| !self.keeps(l)).collect()
    }

    /// Layers of the unpruned model.
    #[must_use]
    pub fn num_hidden_layers(&self) -> usize {
        self.layers
    }

    /// True if layer `layer` runs.
    #[must_use]
    pub fn keeps(&self, layer: usize) -> bool {
        self.kept.binary_search(&layer).is_ok()
    }
}
