//! Layer lists on the command line: `13,12`, `0-11,14-31`, and what `--protect` takes.

use crate::error::{Error, Result};
use std::str::FromStr;

/// Layers in the order they were named. An alias, so that clap's derive takes the list for one value.
pub type LayerList = Vec<usize>;

/// No model has more; a range like `0-99999999999` must not cost memory.
const MOST: usize = 1 << 14;

/// Reads `13,12` or `0-11,14-31`. Whether the layers exist, and none is named twice, is the layer plan's business.
///
/// # Errors
/// What is wrong and where, for clap to print.
pub fn parse_layers(text: &str) -> Result<LayerList, String> {
    let mut layers = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = match part.split_once('-') {
            None => (layer(part)?, layer(part)?),
            Some((first, last)) => (layer(first.trim())?, layer(last.trim())?),
        };
        if last < first {
            return Err(format!("range {part:?} runs backwards"));
        }
        if last - first >= MOST - layers.len().min(MOST) {
            return Err(format!("more than {MOST} layers"));
        }
        layers.extend(first..=last);
    }
    Ok(layers)
}

fn layer(text: &str) -> Result<usize, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| format!("{text:?} is not a layer; expected a list like 13,12 or 0-11,14-31"))
}

/// Layers that a scan must not remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protect {
    /// `none`.
    None,
    /// `first,last`, or numbers, or both.
    These(Vec<Protected>),
}

/// One item of [`Protect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protected {
    /// Layer 0.
    First,
    /// The model's last layer.
    Last,
    /// A layer by its number.
    Layer(usize),
}

impl FromStr for Protect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "none" {
            return Ok(Self::None);
        }
        let mut items = Vec::new();
        for part in text.split(',').map(str::trim) {
            match part {
                "first" => items.push(Protected::First),
                "last" => items.push(Protected::Last),
                _ => items.extend(
                    parse_layers(part).map_err(|e| format!("{e}; or first, last, none"))?.into_iter().map(Protected::Layer),
                ),
            }
        }
        Ok(Self::These(items))
    }
}

impl Protect {
    /// The layers meant in a model of `layers` layers, ascending, each once.
    ///
    /// # Errors
    /// [`Error::Request`] for a layer that does not exist.
    pub fn resolve(&self, layers: usize) -> Result<Vec<usize>> {
        let last = layers.saturating_sub(1);
        let mut protected = match self {
            Self::None => Vec::new(),
            Self::These(items) => items
                .iter()
                .map(|item| match *item {
                    Protected::First => Ok(0),
                    Protected::Last => Ok(last),
                    Protected::Layer(layer) if layer <= last => Ok(layer),
                    Protected::Layer(layer) => {
                        Err(Error::request(format!("--protect: layer {layer} does not exist: the model has layers 0-{last}")))
                    }
                })
                .collect::<Result<Vec<_>>>()?,
        };
        protected.sort_unstable();
        protected.dedup();
        Ok(protected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        assert_eq!(parse_layers("13,12"), Ok(vec![13, 12]));
        assert_eq!(parse_layers("0-2, 5 ,7-7"), Ok(vec![0, 1, 2, 5, 7]));
        for bad in ["", ",", "1,", "-1", "1-", "3-1", "a", "1.5", "+1", "0-99999999999", "99999999999999999999999", "1--2", "٣"]
        {
            assert!(parse_layers(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_layers("0-16383").map(|l| l.len()), Ok(16384));
        assert!(parse_layers("0-16384").is_err());
        assert!(parse_layers("0-16383,0").is_err());
    }

    #[test]
    fn protect() {
        let resolve = |text: &str| text.parse::<Protect>().map(|p| p.resolve(4).map_err(|e| e.to_string()));
        assert_eq!(resolve("first,last"), Ok(Ok(vec![0, 3])));
        assert_eq!(resolve("none"), Ok(Ok(vec![])));
        assert_eq!(resolve("last,2-3,1"), Ok(Ok(vec![1, 2, 3])));
        assert!(resolve("4").is_ok_and(|r| r.is_err()));
        assert!(resolve("none,1").is_err());
        assert!(resolve("middle").is_err());
    }
}
