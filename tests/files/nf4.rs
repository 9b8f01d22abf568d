//! NF4 against what bitsandbytes recorded (`scripts/make-nf4-fixtures`), bit for bit, and its checkpoints, whole and broken.

use crate::support::fixture;
use proptest::prelude::*;
use prunectl::model::{ModelFolder, Weight};
use prunectl::quant::double::MAP;
use prunectl::quant::nf4::{dequantise, quantise};
use prunectl::quant::{CODEBOOK, Nested};
use prunectl::tensor::Dtype;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::Path;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

struct Recorded(Vec<u8>);

impl Recorded {
    fn open() -> Self {
        Self(std::fs::read(fixture("nf4/values.safetensors")).unwrap())
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = self.file();
        let view = file.tensor(name).unwrap();
        let halves = || view.data().as_chunks::<2>().0.iter();
        match view.dtype() {
            safetensors::Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            safetensors::Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            safetensors::Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.file().tensor(name).unwrap().data().to_vec()
    }

    fn cases(&self, ending: &str) -> Vec<String> {
        self.file().names().iter().filter_map(|name| name.strip_suffix(ending)).map(str::to_owned).collect()
    }
}

#[test]
fn codes_and_magnitudes_equal_bitsandbytes() {
    let recorded = Recorded::open();
    let cases = recorded.cases(".values");
    assert!(cases.len() > 30, "{cases:?}");
    for case in cases {
        let values = recorded.floats(&format!("{case}.values"));
        let found = quantise(&values);
        assert_eq!(found.codes, recorded.bytes(&format!("{case}.codes")), "{case}");
        assert_eq!(bits(&found.absmax), bits(&recorded.floats(&format!("{case}.absmax"))), "{case}");
        let expected = recorded.floats(&format!("{case}.dequantised"));
        // All at once, and from the middle of a block and a byte.
        for first in [0, 1, 63, 65] {
            let mut found_values = vec![f32::NAN; values.len().saturating_sub(first)];
            dequantise(&found.codes, &found.absmax, first, &mut found_values);
            assert_eq!(bits(&found_values), bits(&expected[first.min(values.len())..]), "{case} from {first}");
        }
    }
}

#[test]
fn magnitudes_in_eight_bits_equal_bitsandbytes() {
    let recorded = Recorded::open();
    assert_eq!(bits(MAP.as_slice()), bits(&recorded.floats("map")));
    assert_eq!(bits(&CODEBOOK), bits(&recorded.floats("code")));
    let cases = recorded.cases(".magnitudes");
    assert_eq!(cases.len(), 10);
    for case in cases {
        let found = Nested::quantise(&recorded.floats(&format!("{case}.magnitudes")));
        assert_eq!(found.offset.to_bits(), recorded.floats(&format!("{case}.offset"))[0].to_bits(), "{case}: offset");
        assert_eq!(found.codes, recorded.bytes(&format!("{case}.nested_codes")), "{case}");
        assert_eq!(bits(&found.absmax), bits(&recorded.floats(&format!("{case}.nested_absmax"))), "{case}");
        assert_eq!(bits(&found.dequantise()), bits(&recorded.floats(&format!("{case}.restored"))), "{case}");
    }
}

proptest! {
    #[test]
    fn each_number_becomes_the_nearest_value(values in prop::collection::vec(-1e30_f32..1e30, 0..200)) {
        let quantised = quantise(&values);
        let mut found = vec![0.0; values.len()];
        dequantise(&quantised.codes, &quantised.absmax, 0, &mut found);
        for (block, (values, found)) in values.chunks(64).zip(found.chunks(64)).enumerate() {
            let scale = values.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
            prop_assert_eq!(f64::from(quantised.absmax[block]), scale.max(f64::from(if values.len() < 64 { 1e-38_f32 } else { 0.0 })));
            for (v, f) in values.iter().zip(found) {
                let distance = |x: f64| (f64::from(*v) - x).abs();
                let nearest = CODEBOOK.iter().map(|c| distance(f64::from(*c) * scale)).fold(f64::INFINITY, f64::min);
                // A tie may fall either way once the quotient is rounded.
                prop_assert!(distance(f64::from(*f)) <= nearest + 1e-6 * scale, "{v} became {f}");
            }
        }
    }
}

/// Name, dtype, shape and bytes.
type Stored = (String, safetensors::Dtype, Vec<usize>, Vec<u8>);

/// A copy of a recorded checkpoint, its tensors edited.
fn edited(edit: impl FnOnce(&mut Vec<Stored>, &mut Value)) -> tempfile::TempDir {
    let (folder, original) = (tempfile::tempdir().unwrap(), fixture("nf4/double"));
    let bytes = std::fs::read(original.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.iter().map(|(name, t)| (name.to_owned(), t.dtype(), t.shape().to_vec(), t.data().to_vec())).collect();
    let mut config: Value = serde_json::from_slice(&std::fs::read(original.join("config.json")).unwrap()).unwrap();
    edit(&mut tensors, &mut config);
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn message(path: &Path) -> String {
    match ModelFolder::open(path) {
        Ok(_) => "opens".into(),
        Err(error) => {
            assert_eq!(error.exit_code(), 1);
            error.to_string().replace(&path.display().to_string(), "DIR")
        }
    }
}

const NAME: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn quantising_on_loading_equals_the_checkpoint() {
    for (name, double_quant) in [("single", false), ("double", true)] {
        let saved = ModelFolder::open(&fixture("nf4").join(name)).unwrap();
        let mut loaded = ModelFolder::open(&fixture("nf4/base")).unwrap();
        assert_eq!(loaded.nf4().len(), 0);
        let parameters = loaded.parameters();
        loaded.quantise_nf4(double_quant).unwrap();
        assert_eq!(saved.nf4().len(), 14);
        assert_eq!((saved.parameters(), loaded.parameters()), (parameters, parameters));
        assert_eq!((saved.layer_parameters(1), saved.dtypes()), (loaded.layer_parameters(1), loaded.dtypes()));
        for (found, expected) in loaded.nf4().zip(saved.nf4()) {
            assert_eq!((&found.name, found.shape, found.dtype), (&expected.name, expected.shape, Dtype::Bf16));
            assert_eq!(found.codes.as_slice(), expected.codes.as_slice(), "{name} {}", found.name);
            assert_eq!(bits(&found.absmax), bits(&expected.absmax), "{name} {}", found.name);
        }
        assert!(matches!(saved.weight(NAME).unwrap(), Weight::Nf4(_)));
        assert!(matches!(saved.weight("model.embed_tokens.weight").unwrap(), Weight::Dense(_)));
        assert!(saved.weight("model.layers.9.mlp.up_proj.weight").is_err());
    }
}

#[test]
fn a_broken_checkpoint_is_named() {
    assert_eq!(message(edited(|_, _| ()).path()), "opens");
    let without = |suffix: &'static str| edited(move |t, _| t.retain(|(name, ..)| *name != format!("{NAME}{suffix}")));
    for suffix in ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
        assert_eq!(message(without(suffix).path()), format!("DIR/model.safetensors: tensor {NAME}{suffix}: missing"));
    }
    // Without its state it is a tensor of bytes.
    assert!(message(without(".quant_state.bitsandbytes__nf4").path()).contains(&format!("tensor {NAME}")));
    let with = |suffix: &'static str, change: fn(&mut Stored)| {
        let folder = edited(move |t, _| change(t.iter_mut().find(|(name, ..)| *name == format!("{NAME}{suffix}")).unwrap()));
        let text = message(folder.path());
        text.strip_prefix(&format!("DIR/model.safetensors: tensor {NAME}{suffix}: ")).unwrap_or(&text).to_owned()
    };
    let shorten = |t: &mut Stored| {
        t.3.truncate(t.3.len() - t.3.len() / t.2[0]);
        t.2[0] -= 1;
    };
    assert_eq!(with("", shorten), "found 2047 elements, expected 2048 for a matrix of [64, 64]");
    assert_eq!(with(".absmax", shorten), "found 63 elements, expected 64 for a matrix of [64, 64]");
    assert_eq!(with(".nested_quant_map", shorten), "found 255 elements, expected 256 for a matrix of [64, 64]");
    assert_eq!(with(".quant_map", |t| t.3[0] ^= 1), "is not the codebook of NF4");
    assert_eq!(with(".nested_absmax", |t| t.3.copy_from_slice(&f32::NAN.to_le_bytes())), "element 0 is NaN");
    let state = |text: &'static str| {
        let folder = edited(move |t, _| {
            let state = t.iter_mut().find(|(name, ..)| *name == format!("{NAME}.quant_state.bitsandbytes__nf4")).unwrap();
            (state.2, state.3) = (vec![text.len()], text.as_bytes().to_vec());
        });
        let text = message(folder.path());
        text.rsplit_once("__nf4: ").map(|(_, rest)| rest.to_owned()).unwrap_or(text)
    };
    assert!(state("{").starts_with("not a valid quant_state"));
    let of = |kind: &str, size: usize, dtype: &str, shape: &str| -> &'static str {
        let text = format!(r#"{{"quant_type":"{kind}","blocksize":{size},"dtype":"{dtype}","shape":{shape}}}"#);
        Box::leak(text.into_boxed_str())
    };
    assert_eq!(state(of("fp4", 64, "float32", "[64, 64]")), "fp4 in blocks of 64 is not computed; nf4 in blocks of 64 is");
    assert_eq!(state(of("nf4", 128, "float32", "[64, 64]")), "nf4 in blocks of 128 is not computed; nf4 in blocks of 64 is");
    assert_eq!(state(of("nf4", 64, "float8", "[64, 64]")), "dtype float8 is not computed");
    assert_eq!(state(of("nf4", 64, "float32", "[4096]")), "shape [4096] is not that of a matrix");
    assert!(state(of("nf4", 64, "float32", "[9223372036854775807, 4]")).contains("more elements than fit"));
    assert!(message(edited(|t, _| t[0].0 += ".quant_state.bitsandbytes__fp4").path()).contains("fp4 is not computed; nf4 is"));
}

#[test]
fn config_and_tensors_must_agree() {
    let text = message(edited(|_, config| drop(config.as_object_mut().unwrap().remove("quantization_config"))).path());
    assert_eq!(text, "DIR/config.json: key quantization_config: missing");
    for (key, value, problem) in [
        ("bnb_4bit_quant_type", json!("fp4"), "bnb_4bit_quant_type fp4 is not computed; nf4 is"),
        ("bnb_4bit_quant_storage", json!("bfloat16"), "bnb_4bit_quant_storage bfloat16 is not computed; uint8 is"),
        ("quant_method", json!("gptq"), "quant_method gptq is not computed; bitsandbytes with load_in_4bit and nf4 is"),
        ("load_in_4bit", json!(false), "quant_method bitsandbytes is not computed; bitsandbytes with load_in_4bit and nf4 is"),
    ] {
        let text = message(edited(|_, config| config["quantization_config"][key] = value).path());
        assert_eq!(text, format!("DIR/config.json: key quantization_config: {problem}"));
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("nf4/base").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::copy(fixture("nf4/double/config.json"), folder.path().join("config.json")).unwrap();
    assert_eq!(message(folder.path()), "DIR/config.json: key quantization_config: is there, but no tensor is quantised");
}
