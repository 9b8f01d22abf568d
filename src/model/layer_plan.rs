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
        let gone = marked(layers, removed)?;
        let kept: Vec<usize> = (0..layers).filter(|&l| !gone[l]).collect();
        if kept.is_empty() {
            return Err(Error::request(format!("nothing left to keep: all {layers} layers would be removed")));
        }
        Ok(Self { layers, kept })
    }

    /// Only the layers `kept`, in ascending order however they are named.
    ///
    /// # Errors
    /// [`Error::Request`] for a layer that does not exist or is named twice, and when there is none.
    pub fn keeping(layers: usize, kept: &[usize]) -> Result<Self> {
        let stays = marked(layers, kept)?;
        let kept: Vec<usize> = (0..layers).filter(|&l| stays[l]).collect();
        if kept.is_empty() {
            return Err(Error::request("nothing left to keep: no layer is named"));
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

/// Which of `layers` layers are named, each at most once.
fn marked(layers: usize, named: &[usize]) -> Result<Vec<bool>> {
    let mut marked = vec![false; layers];
    for &layer in named {
        match marked.get_mut(layer) {
            None => {
                let last = layers.saturating_sub(1);
                return Err(Error::request(format!("layer {layer} does not exist: the model has layers 0-{last}")));
            }
            Some(true) => return Err(Error::request(format!("layer {layer} is named twice"))),
            Some(slot) => *slot = true,
        }
    }
    Ok(marked)
}
