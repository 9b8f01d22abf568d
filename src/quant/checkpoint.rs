//! NF4 in checkpoints, as transformers and bitsandbytes save it: beside the codes of `NAME` (bytes, [n, 1]) lie
//!
//! | tensor | what |
//! |---|---|
//! | `NAME.absmax` | magnitudes: f32, or 8-bit codes where they are quantised again |
//! | `NAME.quant_map` | the codebook |
//! | `NAME.nested_absmax`, `NAME.nested_quant_map` | magnitudes and map of the 8-bit codes |
//! | `NAME.quant_state.bitsandbytes__nf4` | JSON as bytes: shape, dtype and block sizes |
//!
//! and config.json has a `quantization_config`.

use super::double::{self, Nested};
use super::nf4::{self, CODEBOOK, Quantised};
use super::tensor::Nf4Tensor;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, SharedBytes};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Key of config.json.
pub const CONFIG_KEY: &str = "quantization_config";
/// What follows the matrix's name in the tensor that says how it is quantised.
pub const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// The same for the format that we do not compute.
const STATE_FP4: &str = ".quant_state.bitsandbytes__fp4";
/// What follows the matrix's name in the other tensors.
const BESIDE: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];

/// The matrix that a tensor describes, for the tensor that says how it is quantised.
#[must_use]
pub fn matrix_of_state(name: &str) -> Option<&str> {
    name.strip_suffix(STATE)
}

/// True for the state of a format that is not computed.
#[must_use]
pub fn is_other_state(name: &str) -> bool {
    name.ends_with(STATE_FP4)
}

/// The matrix a tensor lies beside, if its name is that of a part.
#[must_use]
pub fn matrix_of_part(name: &str) -> Option<&str> {
    BESIDE.iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// A tensor of the file, whatever its dtype.
#[derive(Debug, Clone)]
pub struct Stored<'a> {
    /// The file, for messages.
    pub file: &'a Path,
    /// As the header spells it: `U8`.
    pub dtype: &'static str,
    /// Its bytes.
    pub bytes: SharedBytes,
}

/// `quant_state`.
#[derive(Debug, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Reads the matrix `name` from its tensors; `part` finds one by its full name.
///
/// # Errors
/// [`Error::Data`] and [`Error::Unsupported`] naming file and tensor.
pub fn read<'a>(name: &str, part: impl Fn(&str) -> Option<Stored<'a>>) -> Result<Nf4Tensor> {
    Reader { name, part: &part }.read()
}

struct Reader<'r, 'a> {
    name: &'r str,
    part: &'r dyn Fn(&str) -> Option<Stored<'a>>,
}

impl<'a> Reader<'_, 'a> {
    fn tensor(&self, suffix: &str, dtype: &str) -> Result<Stored<'a>> {
        let name = format!("{}{suffix}", self.name);
        let Some(stored) = (self.part)(&name) else {
            let file = (self.part)(&format!("{}{STATE}", self.name)).map(|s| s.file.to_path_buf()).unwrap_or_default();
            return Err(Error::data(file, format!("tensor {name}"), "missing")
                .with_help("the checkpoint is incomplete: each NF4 matrix has its magnitudes and state beside it"));
        };
        if stored.dtype == dtype {
            return Ok(stored);
        }
        Err(Error::data(stored.file, format!("tensor {name}"), format!("found dtype {}, expected {dtype}", stored.dtype)))
    }

    fn bad(&self, stored: &Stored<'_>, suffix: &str, problem: String) -> Error {
        Error::data(stored.file, format!("tensor {}{suffix}", self.name), problem)
    }

    fn floats(&self, suffix: &str) -> Result<(Vec<f32>, Stored<'a>)> {
        let stored = self.tensor(suffix, "F32")?;
        let values: Vec<f32> = stored.bytes.as_slice().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(self.bad(&stored, suffix, format!("element {at} is {}", values[at]))),
            None => Ok((values, stored)),
        }
    }

    fn read(&self) -> Result<Nf4Tensor> {
        let at = self.tensor(STATE, "U8")?;
        let state: State = serde_json::from_slice(at.bytes.as_slice())
            .map_err(|e| self.bad(&at, STATE, format!("not a valid quant_state: {e}")))?;
        let unsupported = |what: String| Error::unsupported(at.file, format!("tensor {}{STATE}", self.name), what);
        if state.quant_type != "nf4" || state.blocksize != nf4::BLOCK {
            let found = format!("{} in blocks of {}", state.quant_type, state.blocksize);
            return Err(unsupported(format!("{found} is not computed; nf4 in blocks of {} is", nf4::BLOCK)));
        }
        let dtype = dtype_of(&state.dtype).ok_or_else(|| unsupported(format!("dtype {} is not computed", state.dtype)))?;
        let &[rows, cols] = state.shape.as_slice() else {
            return Err(self.bad(&at, STATE, format!("shape {:?} is not that of a matrix", state.shape)));
        };
        let elements = rows
            .checked_mul(cols)
            .ok_or_else(|| self.bad(&at, STATE, format!("shape {:?} has more elements than fit", state.shape)))?;
        let codes = self.tensor("", "U8")?;
        self.check_length(&codes, "", codes.bytes.as_slice().len(), elements.div_ceil(2), &state)?;
        let (map, map_at) = self.floats(".quant_map")?;
        if map != CODEBOOK {
            return Err(self.bad(&map_at, ".quant_map", "is not the codebook of NF4".into()));
        }
        let blocks = elements.div_ceil(nf4::BLOCK);
        let absmax = match state.nested_blocksize {
            None => {
                let (absmax, at) = self.floats(".absmax")?;
                self.check_length(&at, ".absmax", absmax.len(), blocks, &state)?;
                absmax
            }
            Some(double::BLOCK) => {
                let at = self.tensor(".absmax", "U8")?;
                let codes = at.bytes.as_slice().to_vec();
                self.check_length(&at, ".absmax", codes.len(), blocks, &state)?;
                let (absmax, at) = self.floats(".nested_absmax")?;
                self.check_length(&at, ".nested_absmax", absmax.len(), blocks.div_ceil(double::BLOCK), &state)?;
                let (map, at) = self.floats(".nested_quant_map")?;
                self.check_length(&at, ".nested_quant_map", map.len(), 256, &state)?;
                #[expect(clippy::cast_possible_truncation, reason = "an f32 that JSON writes as a double")]
                let offset = state.nested_offset.unwrap_or(0.0) as f32;
                let absmax = Nested { codes, absmax, offset, map }.dequantise();
                if absmax.iter().any(|v| !v.is_finite()) {
                    return Err(self.bad(&at, STATE, format!("nested_offset {offset} gives magnitudes that are not finite")));
                }
                absmax
            }
            Some(other) => {
                return Err(unsupported(format!("magnitudes in blocks of {other} are not computed; {} are", double::BLOCK)));
            }
        };
        Ok(Nf4Tensor {
            name: self.name.to_owned(),
            file: codes.file.to_path_buf(),
            shape: [rows, cols],
            dtype,
            codes: codes.bytes,
            absmax: absmax.into(),
        })
    }

    fn check_length(&self, stored: &Stored<'_>, suffix: &str, found: usize, expected: usize, state: &State) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let problem = format!("found {found} elements, expected {expected} for a matrix of {:?}", state.shape);
        Err(self.bad(stored, suffix, problem))
    }
}

fn dtype_of(name: &str) -> Option<Dtype> {
    match name {
        "float32" => Some(Dtype::F32),
        "float16" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::Bf16),
        _ => None,
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Its name.
    pub name: String,
    /// As the header spells it: `U8` or `F32`.
    pub dtype: &'static str,
    /// Extents.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The tensors of a matrix, in the order bitsandbytes saves them. `dtype`: what it was quantised from.
///
/// # Errors
/// [`Error::Data`] if the state cannot be put as JSON.
pub fn written(name: &str, shape: [usize; 2], dtype: Dtype, quantised: Quantised, double_quant: bool) -> Result<Vec<Written>> {
    let Quantised { codes, absmax } = quantised;
    let floats = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let tensor = |suffix: &str, dtype: &'static str, shape: Vec<usize>, bytes: Vec<u8>| Written {
        name: format!("{name}{suffix}"),
        dtype,
        shape,
        bytes,
    };
    // json.dumps puts a space after each comma and colon.
    let mut state = format!(
        r#"{{"quant_type": "nf4", "blocksize": {}, "dtype": "{}", "shape": [{}, {}]"#,
        nf4::BLOCK,
        dtype_name(dtype),
        shape[0],
        shape[1]
    );
    let mut tensors = vec![tensor("", "U8", vec![codes.len(), 1], codes)];
    let map = tensor(".quant_map", "F32", vec![CODEBOOK.len()], floats(&CODEBOOK));
    if double_quant {
        let nested = Nested::quantise(&absmax);
        let offset =
            serde_json::to_string(&f64::from(nested.offset)).map_err(|e| Error::data(name, "nested_offset", e.to_string()))?;
        state += &format!(r#", "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {offset}"#, double::BLOCK);
        tensors.extend([
            tensor(".absmax", "U8", vec![nested.codes.len()], nested.codes),
            map,
            tensor(".nested_absmax", "F32", vec![nested.absmax.len()], floats(&nested.absmax)),
            tensor(".nested_quant_map", "F32", vec![nested.map.len()], floats(&nested.map)),
        ]);
    } else {
        tensors.extend([tensor(".absmax", "F32", vec![absmax.len()], floats(&absmax)), map]);
    }
    state.push('}');
    tensors.push(tensor(STATE, "U8", vec![state.len()], state.into_bytes()));
    Ok(tensors)
}

/// `quantization_config` for config.json, as transformers writes it.
#[must_use]
pub fn config(dtype: Dtype, double_quant: bool) -> Value {
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": dtype_name(dtype),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

/// What in a `quantization_config` is not computed, if anything.
#[must_use]
pub fn not_computed(config: &Value) -> Option<String> {
    let Value::Object(config) = config else { return Some("expected an object".into()) };
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let method = text("quant_method").unwrap_or("none");
    if method != "bitsandbytes" || !flag(config, "load_in_4bit") {
        return Some(format!("quant_method {method} is not computed; bitsandbytes with load_in_4bit and nf4 is"));
    }
    match (text("bnb_4bit_quant_type"), text("bnb_4bit_quant_storage").unwrap_or("uint8")) {
        (Some("nf4"), "uint8") => None,
        (Some("nf4"), other) => Some(format!("bnb_4bit_quant_storage {other} is not computed; uint8 is")),
        // The default of transformers is fp4.
        (other, _) => Some(format!("bnb_4bit_quant_type {} is not computed; nf4 is", other.unwrap_or("fp4"))),
    }
}

fn flag(config: &Map<String, Value>, key: &str) -> bool {
    config.get(key).and_then(Value::as_bool).unwrap_or(false)
}
