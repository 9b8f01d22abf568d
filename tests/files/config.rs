//! config.json: both spellings, the defaults of transformers' classes, and every value that is wrong or not computed.
//! Defaults are those of `configuration_{llama,qwen2,cohere}.py` in transformers 4.57 and 5.

use crate::support::{Random, fixture, tiny_config};
use prunectl::Error;
use prunectl::model::{Architecture, DecoderConfig, RopeScaling};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn parse(config: &Map<String, Value>) -> Result<DecoderConfig, Error> {
    DecoderConfig::from_json(Path::new("model/config.json"), config)
}

/// The tiny config with some keys set (`null` sets null).
fn with(pairs: &[(&str, Value)]) -> Map<String, Value> {
    let mut config = tiny_config(4);
    for (key, value) in pairs {
        config.insert((*key).to_owned(), value.clone());
    }
    config
}

fn without(key: &str) -> Map<String, Value> {
    let mut config = tiny_config(4);
    config.remove(key);
    config
}

#[track_caller]
fn assert_data(config: &Map<String, Value>, key: &str, problem: &str) {
    let error = parse(config).unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("model/config.json: key {key}: ")), "{text}");
    assert!(text.contains(problem), "{text}\n  lacks: {problem}");
}

#[track_caller]
fn assert_unsupported(config: &Map<String, Value>, key: &str) {
    let error = parse(config).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().starts_with(&format!("model/config.json: key {key}: ")), "{error}");
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let mut config = Map::new();
    for (key, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(64)),
        ("intermediate_size", json!(160)),
        ("num_hidden_layers", json!(2)),
        ("num_attention_heads", json!(4)),
        ("vocab_size", json!(99)),
    ] {
        config.insert(key.into(), value);
    }
    let llama = parse(&config).unwrap();
    assert_eq!(llama.num_key_value_heads, 4);
    assert_eq!(llama.head_dim, 16);
    assert_eq!(llama.max_position_embeddings, 2048);
    assert_eq!(llama.norm_eps.to_bits(), 1e-6_f32.to_bits());
    assert_eq!(llama.rope_theta.to_bits(), 10_000.0_f64.to_bits());
    assert_eq!(llama.rope_scaling, RopeScaling::Default);
    assert!(!llama.tie_word_embeddings && !llama.qkv_bias && !llama.o_bias && !llama.mlp_bias);
    assert_eq!(llama.logit_scale.to_bits(), 1.0_f32.to_bits());

    config.insert("model_type".into(), json!("qwen2"));
    config.insert("num_attention_heads".into(), json!(32));
    let qwen = parse(&config).unwrap();
    assert_eq!(qwen.num_key_value_heads, 32);
    assert_eq!(qwen.max_position_embeddings, 32768);
    assert!(qwen.qkv_bias && !qwen.o_bias && !qwen.tie_word_embeddings);

    config.insert("model_type".into(), json!("cohere"));
    let error = parse(&config).unwrap_err();
    assert!(error.to_string().contains("rope_theta: missing"), "{error}");
    config.insert("rope_theta".into(), json!(8e6));
    let cohere = parse(&config).unwrap();
    assert_eq!(cohere.max_position_embeddings, 8192);
    assert_eq!(cohere.norm_eps.to_bits(), 1e-5_f32.to_bits());
    assert_eq!(cohere.logit_scale.to_bits(), 0.0625_f32.to_bits());
    assert!(cohere.tie_word_embeddings && !cohere.use_qk_norm && !cohere.qkv_bias);
}

#[test]
fn both_spellings_of_rotary_parameters_mean_the_same() {
    let llama3 = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let mut inside = llama3.clone();
    inside["rope_theta"] = json!(500_000.0);
    let mut newer = with(&[("rope_parameters", inside), ("dtype", json!("bfloat16"))]);
    for key in ["rope_theta", "rope_scaling", "torch_dtype"] {
        newer.remove(key);
    }
    let older = with(&[("rope_scaling", llama3.clone()), ("rope_theta", json!(500_000)), ("torch_dtype", json!("bfloat16"))]);
    assert_eq!(parse(&older).unwrap(), parse(&newer).unwrap());
    let mut legacy = llama3.as_object().unwrap().clone();
    legacy.remove("rope_type");
    legacy.insert("type".into(), json!("llama3"));
    let legacy = with(&[("rope_scaling", Value::Object(legacy)), ("rope_theta", json!(500_000))]);
    assert_eq!(parse(&older).unwrap(), parse(&legacy).unwrap());

    let linear = parse(&with(&[("rope_scaling", json!({"type": "linear", "factor": 2}))])).unwrap();
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn sizes_that_are_missing_zero_negative_huge_fractional_or_of_another_type() {
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        assert_data(&without(key), key, "missing, expected a whole number from 1 to");
        for wrong in [json!(0), json!(-8), json!(8.5), json!(8.0), json!("8"), json!(true), json!([8]), json!({}), json!(null)] {
            assert_data(&with(&[(key, wrong.clone())]), key, &format!("found {wrong}, expected a whole number from 1 to"));
        }
        assert_data(&with(&[(key, json!(u64::MAX))]), key, "found 18446744073709551615");
        assert_data(&with(&[(key, json!(1e300))]), key, "found 1e+300");
    }
    for key in ["num_key_value_heads", "head_dim", "max_position_embeddings"] {
        for wrong in [json!(0), json!(-8), json!(8.5), json!("8"), json!(u64::MAX)] {
            assert_data(&with(&[(key, wrong)]), key, "expected a whole number from 1 to");
        }
    }
    for key in ["rms_norm_eps", "rope_theta"] {
        for wrong in [json!(0), json!(-1.0), json!(1e300), json!("1e-5"), json!([1])] {
            assert_data(&with(&[(key, wrong)]), key, "expected a number above 0");
        }
    }
    assert_data(&with(&[("rms_norm_eps", json!(1e-300))]), "rms_norm_eps", "0 in f32");
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias"] {
        for wrong in [json!(1), json!("true"), json!([])] {
            assert_data(&with(&[(key, wrong)]), key, "expected true or false");
        }
    }
    let cohere = |pair: (&str, Value)| with(&[("model_type", json!("cohere")), ("architectures", json!(null)), pair]);
    for wrong in [json!(0), json!(-0.5), json!("x"), json!(null)] {
        assert_data(&cohere(("logit_scale", wrong)), "logit_scale", "expected a number above 0");
    }
    assert_data(&cohere(("use_qk_norm", json!(1))), "use_qk_norm", "expected true or false");
}

#[test]
fn sizes_that_do_not_divide() {
    assert_data(
        &with(&[("hidden_size", json!(10))]),
        "hidden_size",
        "found 10, expected a multiple of num_attention_heads, which is 4",
    );
    assert_data(
        &with(&[("num_key_value_heads", json!(3))]),
        "num_key_value_heads",
        "found 3, expected a divisor of num_attention_heads",
    );
    assert_data(&with(&[("num_key_value_heads", json!(8))]), "num_key_value_heads", "found 8, expected a divisor");
    // Where head_dim says it, hidden_size need not divide.
    assert_eq!(parse(&with(&[("hidden_size", json!(10)), ("head_dim", json!(4))])).unwrap().head_dim, 4);
    assert_unsupported(&with(&[("head_dim", json!(3))]), "head_dim");
    assert_unsupported(&with(&[("hidden_size", json!(4))]), "head_dim");
}

#[test]
fn rotary_parameters_that_are_wrong() {
    let rope = |value: Value| with(&[("rope_scaling", value)]);
    assert_data(&rope(json!(2.0)), "rope_scaling", "expected an object or null");
    assert_data(&rope(json!({"rope_type": "linear"})), "rope_scaling.factor", "missing");
    assert_data(&rope(json!({"rope_type": "linear", "factor": 0})), "rope_scaling.factor", "found 0");
    assert_data(&rope(json!({"rope_type": "linear", "factor": -2})), "rope_scaling.factor", "found -2");
    assert_data(&rope(json!({"rope_type": "linear", "type": "llama3", "factor": 2})), "rope_scaling.rope_type", "type says");
    assert_data(&rope(json!({"rope_type": 3})), "rope_scaling.rope_type", "expected a text");
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64});
    assert!(parse(&rope(llama3.clone())).is_ok());
    for key in ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"] {
        let mut lacking = llama3.as_object().unwrap().clone();
        lacking.remove(key);
        assert_data(&rope(Value::Object(lacking)), &format!("rope_scaling.{key}"), "missing");
    }
    let mut equal = llama3;
    equal["high_freq_factor"] = json!(1);
    assert_data(&rope(equal), "rope_scaling.high_freq_factor", "expected more than low_freq_factor");
    assert_data(&with(&[("rope_parameters", json!({"rope_theta": 5.0}))]), "rope_theta", "the rope parameters say 5");
    let both =
        with(&[("rope_parameters", json!({"rope_type": "default"})), ("rope_scaling", json!({"type": "linear", "factor": 2}))]);
    assert_data(&both, "rope_parameters", "contradicts rope_scaling");
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    for kind in ["yarn", "dynamic", "longrope", "su", "mrope", "ntk", "proportional", "anything"] {
        assert_unsupported(&with(&[("rope_scaling", json!({"rope_type": kind, "factor": 2.0}))]), "rope_scaling.rope_type");
        assert_unsupported(&with(&[("rope_scaling", json!({"type": kind, "factor": 2.0}))]), "rope_scaling.type");
    }
    let sectioned = json!({"type": "default", "mrope_section": [16, 24, 24]});
    assert_unsupported(&with(&[("rope_scaling", sectioned)]), "rope_scaling.mrope_section");
    let by_kind = json!({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}});
    assert_unsupported(&with(&[("rope_parameters", by_kind)]), "rope_parameters.full_attention");
    let part = json!({"rope_type": "default", "partial_rotary_factor": 0.5});
    assert_unsupported(&with(&[("rope_parameters", part)]), "rope_parameters.partial_rotary_factor");
    for (key, value) in [
        ("model_type", json!("mixtral")),
        ("model_type", json!("qwen3")),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("architectures", json!(["MistralForCausalLM"])),
        ("hidden_act", json!("gelu")),
        ("hidden_act", json!("relu")),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("num_local_experts", json!(8)),
        ("num_experts", json!(4)),
        ("moe_intermediate_size", json!(64)),
        ("pretraining_tp", json!(2)),
        ("partial_rotary_factor", json!(0.75)),
        ("sliding_window", json!(4096)),
        ("layer_types", json!(["full_attention", "sliding_attention", "full_attention", "full_attention"])),
        ("auto_map", json!({"AutoModelForCausalLM": "modeling_x.XForCausalLM"})),
        ("is_encoder_decoder", json!(true)),
        ("add_cross_attention", json!(true)),
        ("final_logit_softcapping", json!(30.0)),
        ("torch_dtype", json!("float64")),
        ("dtype", json!("float8_e4m3fn")),
    ] {
        assert_unsupported(&with(&[(key, value)]), key);
    }
    // The same keys with the value that says "not used".
    for (key, value) in [
        ("quantization_config", json!(null)),
        ("num_local_experts", json!(0)),
        ("pretraining_tp", json!(1)),
        ("partial_rotary_factor", json!(1.0)),
        ("sliding_window", json!(null)),
        ("layer_types", json!(["full_attention", "full_attention", "full_attention", "full_attention"])),
        ("auto_map", json!({"AutoConfig": "x.Y"})),
        ("is_encoder_decoder", json!(false)),
        ("hidden_act", json!("silu")),
        ("torch_dtype", json!("float16")),
        ("rope_scaling", json!({"rope_type": "default"})),
    ] {
        assert!(parse(&with(&[(key, value)])).is_ok(), "{key}");
    }
    assert_data(&with(&[("layer_types", json!(["full_attention"]))]), "layer_types", "found 1 entries, expected 4");
    assert_data(&with(&[("layer_types", json!("full"))]), "layer_types", "expected a list");
    assert_data(&without("model_type"), "model_type", "missing");
}

#[test]
fn qwen2_slides_only_where_it_says_so() {
    let qwen = |pairs: &[(&str, Value)]| {
        let mut all = vec![("model_type", json!("qwen2")), ("architectures", json!(["Qwen2ForCausalLM"]))];
        all.extend(pairs.iter().cloned());
        with(&all)
    };
    let (on, window) = (("use_sliding_window", json!(true)), ("sliding_window", json!(32)));
    assert!(parse(&qwen(std::slice::from_ref(&window))).is_ok());
    assert!(parse(&qwen(&[on.clone(), window.clone(), ("max_window_layers", json!(4))])).is_ok());
    assert!(parse(&qwen(&[on.clone(), ("sliding_window", json!(null)), ("max_window_layers", json!(0))])).is_ok());
    for first in [0, 3] {
        assert_unsupported(&qwen(&[on.clone(), window.clone(), ("max_window_layers", json!(first))]), "use_sliding_window");
    }
    // Absent, the window is 4096 in transformers' class, and layers slide from 28 on: none of these four.
    assert!(parse(&qwen(std::slice::from_ref(&on))).is_ok());
    let error = parse(&qwen(&[on, ("max_window_layers", json!(2))])).unwrap_err();
    assert!(error.to_string().contains("from layer 2"), "{error}");
    assert_eq!(parse(&qwen(&[])).unwrap().architecture, Architecture::Qwen2);
}

/// Seeded mutations of valid files, by bytes and by values: an answer or an error, never a panic, in bounded time.
#[test]
fn mutated_configs_never_panic() {
    let mut random = Random(0xC0F1);
    let originals: Vec<Vec<u8>> = ["llama", "llama-tied-llama3rope", "qwen2", "cohere", "cohere-qknorm"]
        .iter()
        .map(|name| std::fs::read(fixture(name).join("config.json")).unwrap())
        .collect();
    let nasty = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(0.5),
        json!(""),
        json!("linear"),
        json!([]),
        json!({}),
        json!([[]]),
        json!(true),
        json!(3),
        json!({"rope_type": "llama3"}),
    ];
    let end = Instant::now() + Duration::from_secs(2);
    let (mut parsed, mut accepted) = (0_u32, 0_u32);
    while Instant::now() < end {
        let mut bytes = originals[random.below(originals.len())].clone();
        if random.below(2) == 0 {
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
        }
        let Ok(Value::Object(mut config)) = serde_json::from_slice(&bytes) else { continue };
        for _ in 0..random.below(3) {
            let key = config.keys().nth(random.below(config.len())).unwrap().clone();
            config.insert(key, nasty[random.below(nasty.len())].clone());
        }
        parsed += 1;
        if let Ok(config) = parse(&config) {
            accepted += 1;
            assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
            assert!(config.head_dim % 2 == 0 && config.head_dim > 0 && config.norm_eps > 0.0 && config.rope_theta > 0.0);
        }
    }
    assert!(parsed > 1000 && accepted > 100, "{parsed} parsed, {accepted} accepted: the mutations miss their aim");
}
