//! Rotary embedding: `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).

use super::keys::{Keys, shown};
use super::{Architecture, RopeScaling, limit};
use crate::error::Result;
use serde_json::Value;

/// What the supported types read. Any other key announces a computation that we do not have (`mrope_section`,
/// `attention_factor`, `long_factor`, a set of parameters for each layer type).
const KNOWN: [&str; 8] = [
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

/// Largest base: f32 angles keep meaning.
const THETA: f64 = 1e15;

pub(super) fn read(keys: &Keys<'_>, architecture: Architecture) -> Result<(f64, RopeScaling)> {
    let key = match (keys.get("rope_parameters"), keys.get("rope_scaling")) {
        (Some(new), Some(old)) if new != old => {
            return Err(keys.bad("rope_parameters", "contradicts rope_scaling; expected one of the two"));
        }
        (Some(_), _) => "rope_parameters",
        (None, _) => "rope_scaling",
    };
    let inner = match keys.get(key) {
        None => None,
        Some(Value::Object(map)) => Some(keys.inner(key, map)),
        Some(other) => return Err(keys.wrong(key, other, "an object or null")),
    };
    let theta = theta(keys, inner.as_ref(), architecture)?;
    let Some(inner) = inner else { return Ok((theta, RopeScaling::Default)) };
    if let Some(unknown) = inner.names().find(|name| !KNOWN.contains(name)) {
        return Err(inner.unsupported(unknown, "this rotary option is not computed"));
    }
    if let Some(value) = inner.get("partial_rotary_factor")
        && value.as_f64() != Some(1.0)
    {
        return Err(inner.unsupported("partial_rotary_factor", format!("{} is not computed; only 1 is", shown(value))));
    }
    let kind = match (inner.text("rope_type")?, inner.text("type")?) {
        (Some(a), Some(b)) if a != b => return Err(inner.bad("rope_type", format!("found {a:?}, but type says {b:?}"))),
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => "default",
    };
    let factor = || inner.factor("factor", None, 1e6);
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "llama3" => {
            let low_freq_factor = inner.factor("low_freq_factor", None, 1e6)?;
            let high_freq_factor = inner.factor("high_freq_factor", None, 1e6)?;
            if high_freq_factor <= low_freq_factor {
                return Err(inner.bad(
                    "high_freq_factor",
                    format!("found {high_freq_factor}, expected more than low_freq_factor, which is {low_freq_factor}"),
                ));
            }
            RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: inner.size("original_max_position_embeddings", limit::POSITIONS)?,
            }
        }
        other => {
            let key = if inner.present("rope_type") { "rope_type" } else { "type" };
            return Err(inner.unsupported(key, format!("{other:?} is not computed; default, linear and llama3 are")));
        }
    };
    Ok((theta, scaling))
}

/// The base of the frequencies. Newer files have it in `rope_parameters`, older ones at the top.
fn theta(keys: &Keys<'_>, inner: Option<&Keys<'_>>, architecture: Architecture) -> Result<f64> {
    let outside = keys.present("rope_theta").then(|| keys.factor("rope_theta", None, THETA)).transpose()?;
    let inside = match inner {
        Some(inner) if inner.present("rope_theta") => Some(inner.factor("rope_theta", None, THETA)?),
        _ => None,
    };
    match (outside, inside) {
        (Some(a), Some(b)) if a.to_bits() != b.to_bits() => {
            Err(keys.bad("rope_theta", format!("found {a}, but the rope parameters say {b}")))
        }
        (Some(theta), _) | (None, Some(theta)) => Ok(theta),
        (None, None) => match architecture {
            Architecture::Llama | Architecture::Qwen2 => Ok(10_000.0),
            Architecture::Cohere => Err(keys
                .bad("rope_theta", "missing, and transformers 4 and 5 disagree on the default (10000 and 500000)")
                .with_help("add rope_theta with the value the model was trained with")),
        },
    }
}
