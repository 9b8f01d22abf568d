//! adapter_config.json as PEFT writes it: what we compute is read, what we do not is refused by its name.

use super::CONFIG;
use crate::error::{Error, Result};
use crate::io;
use crate::model::linear_name::LinearName;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What an adapter is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// `r`, the rank of every pair without an entry in `rank_pattern`.
    pub r: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// `use_rslora`: scale is alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// `lora_dropout`, of training only.
    pub dropout: f64,
    /// The linears that `target_modules` lists; `None` where it is a pattern, and what the file holds counts.
    pub targets: Option<Vec<LinearName>>,
    /// `layers_to_transform`: the layers that have pairs, where not all do.
    pub layers: Option<Vec<usize>>,
    /// `base_model_name_or_path`.
    pub base: String,
    /// `rank_pattern`.
    pub ranks: Vec<Pattern>,
    /// `alpha_pattern`.
    pub alphas: Vec<Pattern>,
}

/// A value for the modules whose name, or its end after a dot, a regular expression matches.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    expression: Regex,
    value: f64,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.value == other.value
    }
}

/// Keys that say nothing about the arithmetic of an adapter that is there, only about how it was made or is to be trained.
const SILENT: [&str; 16] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "layers_to_transform",
];

/// Initialisations that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ) change it when the adapter is loaded.
const PLAIN_INIT: [&str; 3] = ["gaussian", "orthogonal", "eva"];

impl AdapterConfig {
    /// Reads and checks the file in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] and [`Error::Unsupported`] naming the key.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        if !path.exists() && folder.is_dir() {
            return Err(Error::data(folder, "", format!("{CONFIG} is missing"))
                .with_help("an adapter is a folder as PEFT saves it, with adapter_config.json and adapter_model.safetensors"));
        }
        match serde_json::from_str(&io::read_text(&path)?) {
            Ok(Value::Object(map)) => Reader { path: &path, map: &map }.read(),
            Ok(_) => Err(Error::data(&path, "", "expected a JSON object")),
            Err(e) => Err(Error::data(&path, "", format!("not valid JSON: {e}"))),
        }
    }

    /// The rank of a module, by `rank_pattern` or `r`. `module`: `model.layers.3.self_attn.q_proj`.
    #[must_use]
    pub fn rank(&self, module: &str) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is small")]
        let r = self.r as f64;
        value_for(&self.ranks, module).unwrap_or(r)
    }

    /// alpha / r, or alpha / sqrt(r) for rsLoRA, of a module; `r` is its rank.
    #[must_use]
    pub fn scale(&self, module: &str, r: usize) -> f32 {
        let alpha = value_for(&self.alphas, module).unwrap_or(self.alpha);
        #[expect(clippy::cast_precision_loss, reason = "a rank is small")]
        let r = r as f64;
        let scale = if self.rslora { alpha / r.sqrt() } else { alpha / r };
        #[expect(clippy::cast_possible_truncation, reason = "PEFT multiplies f32 activations by it: rounded once, here")]
        let scale = scale as f32;
        scale
    }

    /// The file's content, with every key that PEFT has no default for and those that hold for all of ours.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let names =
            |patterns: &[Pattern]| -> Map<String, Value> { patterns.iter().map(|p| (p.text.clone(), number(p.value))).collect() };
        let targets: Vec<&str> = self.targets.as_deref().unwrap_or(&LinearName::ALL).iter().map(|t| t.name()).collect();
        json!({
            "alpha_pattern": names(&self.alphas),
            "auto_mapping": null,
            "base_model_name_or_path": self.base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": self.layers,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": names(&self.ranks),
            "revision": null,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.rslora,
        })
    }
}

/// Whole numbers without a fraction: PEFT declares alpha and ranks as integers.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// The value of the first pattern that matches, as PEFT looks it up.
fn value_for(patterns: &[Pattern], module: &str) -> Option<f64> {
    patterns.iter().find(|p| p.expression.is_match(module)).map(|p| p.value)
}

struct Reader<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn read(&self) -> Result<AdapterConfig> {
        match self.text("peft_type")? {
            Some("LORA") => {}
            other => return Err(self.unsupported("peft_type", &format!("{} is not computed; LORA is", other.unwrap_or("none")))),
        }
        self.refuse_what_is_not_computed()?;
        let r = self.map.get("r").and_then(Value::as_u64).and_then(|r| usize::try_from(r).ok()).filter(|&r| r > 0);
        Ok(AdapterConfig {
            r: r.ok_or_else(|| self.bad("r", "expected a whole number above 0"))?,
            alpha: self
                .map
                .get("lora_alpha")
                .and_then(Value::as_f64)
                .ok_or_else(|| self.bad("lora_alpha", "expected a number"))?,
            rslora: self.flag("use_rslora")?,
            dropout: self.map.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
            targets: self.targets()?,
            layers: self.layers()?,
            base: self.text("base_model_name_or_path")?.unwrap_or_default().to_owned(),
            ranks: self.patterns("rank_pattern")?,
            alphas: self.patterns("alpha_pattern")?,
        })
    }

    fn bad(&self, key: &str, problem: &str) -> Error {
        Error::data(self.path, format!("key {key}"), problem)
    }

    fn unsupported(&self, key: &str, problem: &str) -> Error {
        Error::unsupported(self.path, format!("key {key}"), problem)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "expected a text")),
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.bad(key, "expected true or false")),
        }
    }

    fn refuse_what_is_not_computed(&self) -> Result<()> {
        const READ: [&str; 10] = [
            "peft_type",
            "r",
            "lora_alpha",
            "use_rslora",
            "lora_dropout",
            "target_modules",
            "base_model_name_or_path",
            "rank_pattern",
            "alpha_pattern",
            "bias",
        ];
        if let Some(bias) = self.text("bias")?.filter(|&bias| bias != "none") {
            return Err(self.unsupported("bias", &format!("trained biases ({bias}) are not computed")));
        }
        for (key, value) in self.map {
            if READ.contains(&key.as_str()) || SILENT.contains(&key.as_str()) {
                continue;
            }
            if key == "init_lora_weights" {
                match value {
                    Value::Null | Value::Bool(_) => continue,
                    Value::String(name) if PLAIN_INIT.contains(&name.as_str()) => continue,
                    _ => return Err(self.unsupported(key, &format!("{value} changes the weights of the base"))),
                }
            }
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
            };
            if !off {
                return Err(self.unsupported(key, &format!("{value} is not computed")));
            }
        }
        Ok(())
    }

    /// A list of names; `None` for a pattern (PEFT takes a text for a regular expression).
    fn targets(&self) -> Result<Option<Vec<LinearName>>> {
        match self.map.get("target_modules") {
            None | Some(Value::Null | Value::String(_)) => Ok(None),
            Some(Value::Array(items)) => {
                let mut targets = Vec::new();
                for item in items {
                    let name = item.as_str().ok_or_else(|| self.bad("target_modules", "expected names of modules"))?;
                    // PEFT compares ends: a whole name, or one that begins after a dot.
                    let last = name.rsplit('.').next().unwrap_or(name);
                    match LinearName::parse(last) {
                        Some(linear) if last == name => targets.push(linear),
                        // A longer name picks out some layers: what the file holds counts.
                        Some(_) => return Ok(None),
                        None => {
                            let all = LinearName::ALL.map(LinearName::name).join(", ");
                            return Err(self.unsupported("target_modules", &format!("{name}: adapters of {all} are computed")));
                        }
                    }
                }
                targets.sort_unstable();
                targets.dedup();
                Ok(Some(targets))
            }
            Some(_) => Err(self.bad("target_modules", "expected a list of names")),
        }
    }

    fn layers(&self) -> Result<Option<Vec<usize>>> {
        let index = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        let layers: Option<Vec<usize>> = match self.map.get("layers_to_transform") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(items)) => items.iter().map(index).collect(),
            Some(one) => index(one).map(|n| vec![n]),
        };
        layers.map(Some).ok_or_else(|| self.bad("layers_to_transform", "expected layer numbers"))
    }

    fn patterns(&self, key: &str) -> Result<Vec<Pattern>> {
        let Some(Value::Object(entries)) = self.map.get(key) else {
            return match self.map.get(key) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(_) => Err(self.bad(key, "expected an object of patterns and numbers")),
            };
        };
        entries
            .iter()
            .map(|(text, value)| {
                let value = value.as_f64().ok_or_else(|| self.bad(key, &format!("{text}: expected a number")))?;
                // As PEFT: the whole name, or its end after a dot.
                let expression = Regex::new(&format!(r"^(?:.*\.)?(?:{text})$"))
                    .map_err(|_| self.unsupported(key, &format!("{text} is not a regular expression that is understood here")))?;
                Ok(Pattern { text: text.clone(), expression, value })
            })
            .collect()
    }
}
