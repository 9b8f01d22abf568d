//! Whole folders: every fixture opens, and what does not belong together is named.

use crate::support::{Folder, Tensor, fixture};
use prunectl::Error;
use prunectl::backend::cpu::CpuBackend;
use prunectl::model::{Architecture, Decoder, LayerPlan, ModelFolder, Residency, RopeScaling};
use prunectl::progress::Silent;
use prunectl::tensor::Dtype;
use serde_json::json;

#[test]
fn every_fixture_opens_with_what_its_maker_said() {
    for (name, architecture, parameters) in [
        // Parameters as the safetensors files hold them: bytes of data / 4.
        ("llama", Architecture::Llama, 823_040 / 4),
        ("llama-tied-llama3rope", Architecture::Llama, 756_736 / 4),
        ("qwen2", Architecture::Qwen2, 825_088 / 4),
        ("cohere", Architecture::Cohere, 755_712 / 4),
        ("cohere-qknorm", Architecture::Cohere, 757_248 / 4),
    ] {
        let folder = ModelFolder::open(&fixture(name)).unwrap();
        assert_eq!(folder.config.architecture, architecture, "{name}");
        assert_eq!(folder.config.num_hidden_layers, 4, "{name}");
        assert_eq!(folder.config.head_dim, 16, "{name}");
        assert_eq!(folder.parameters(), parameters, "{name}");
        assert_eq!(folder.bytes(), parameters * 4, "{name}");
        let layers: u64 = (0..4).map(|l| folder.layer_parameters(l)).sum();
        let outer: u64 = folder.tensors().filter(|t| !t.name.starts_with("model.layers.")).map(|t| t.len() as u64).sum();
        assert_eq!(layers + outer, parameters, "{name}");
    }
    let tied = ModelFolder::open(&fixture("llama-tied-llama3rope")).unwrap().config;
    assert!(tied.tie_word_embeddings);
    assert_eq!(
        tied.rope_scaling,
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 32 }
    );
    let qk = ModelFolder::open(&fixture("cohere-qknorm")).unwrap().config;
    assert!(qk.use_qk_norm && qk.tie_word_embeddings && !qk.qkv_bias);
    assert_eq!(qk.logit_scale.to_bits(), 0.0625_f32.to_bits());
}

#[test]
fn layers_are_not_mixed_up_by_the_order_of_their_names() {
    let folder = Folder::tiny_llama(12);
    let model = ModelFolder::open(folder.path()).unwrap();
    let names: Vec<&str> = model.layer_tensors(1).map(|t| t.name.as_str()).collect();
    assert_eq!(names.len(), 9);
    assert!(names.iter().all(|n| n.starts_with("model.layers.1.")), "{names:?}");
    assert_eq!(model.layer_tensors(12).count(), 0);
}

#[test]
fn a_missing_extra_or_misshaped_tensor_is_named() {
    let folder = Folder::tiny_llama(2);
    folder.edit_tensors(|tensors| tensors.retain(|t| t.name != "model.layers.1.mlp.up_proj.weight"));
    assert_error(&folder, "tensor model.layers.1.mlp.up_proj.weight: missing");

    let folder = Folder::tiny_llama(2);
    folder.edit_tensors(|tensors| tensors.retain(|t| t.name != "model.norm.weight"));
    assert_error(&folder, "tensor model.norm.weight: missing");

    let folder = Folder::tiny_llama(2);
    folder.edit_tensors(|tensors| tensors.push(Tensor::f32("model.layers.1.mlp.router.weight", &[2, 8])));
    assert_error(&folder, "tensor model.layers.1.mlp.router.weight: not part of a LlamaForCausalLM");

    let folder = Folder::tiny_llama(3);
    folder.edit_config(|config| config["num_hidden_layers"] = json!(2));
    assert_error(&folder, "config.json says 2 layers, so there is no layer 2 (and 8 more)");

    let folder = Folder::tiny_llama(2);
    folder.edit_config(|config| config["num_hidden_layers"] = json!(16_000));
    assert_error(&folder, "tensor model.layers.2.input_layernorm.weight: missing (and ");

    let folder = Folder::tiny_llama(2);
    folder.edit_tensors(|tensors| {
        let t = tensors.iter_mut().find(|t| t.name.ends_with("0.self_attn.k_proj.weight")).unwrap();
        t.shape.reverse();
    });
    assert_error(&folder, "tensor model.layers.0.self_attn.k_proj.weight: found shape [8, 4], expected [4, 8]");
}

#[test]
fn known_harmless_extras_are_tolerated_and_not_counted() {
    let folder = Folder::tiny_llama(2);
    let plain = ModelFolder::open(folder.path()).unwrap().parameters();
    folder.edit_tensors(|tensors| tensors.push(Tensor::f32("model.layers.0.self_attn.rotary_emb.inv_freq", &[2])));
    let with_buffer = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(with_buffer.parameters(), plain);
    assert!(with_buffer.is_unused("model.layers.0.self_attn.rotary_emb.inv_freq"));
}

#[test]
fn a_head_beside_a_tied_embedding_must_equal_it() {
    let folder = Folder::tiny_llama(2);
    folder.edit_config(|config| config["tie_word_embeddings"] = json!(true));
    assert_error(&folder, "tensor lm_head.weight: differs from model.embed_tokens.weight");
    folder.edit_tensors(|tensors| {
        let embedding = tensors.iter().find(|t| t.name == "model.embed_tokens.weight").unwrap().bytes.clone();
        tensors.iter_mut().find(|t| t.name == "lm_head.weight").unwrap().bytes = embedding;
    });
    let model = ModelFolder::open(folder.path()).unwrap();
    assert!(model.is_unused("lm_head.weight"));
}

#[test]
fn a_dtype_we_do_not_compute_is_refused_by_name() {
    let folder = Folder::tiny_llama(2);
    folder.edit_tensors(|tensors| {
        let t = tensors.iter_mut().find(|t| t.name == "model.norm.weight").unwrap();
        t.dtype = "F64".into();
        t.bytes = vec![0; 8 * 8];
    });
    let error = ModelFolder::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains("tensor model.norm.weight: dtype F64"), "{error}");
}

#[test]
fn an_absent_folder_or_config_is_an_io_error_that_names_the_file() {
    let folder = Folder::tiny_llama(1);
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let error = ModelFolder::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("config.json"), "{error}");
    for (text, expected) in [("[]", "expected a JSON object"), ("{\"a\":", "not valid JSON"), ("", "not valid JSON")] {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        assert_error(&folder, expected);
    }
}

#[track_caller]
fn assert_error(folder: &Folder, expected: &str) {
    let error = ModelFolder::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error:?}");
    assert!(error.to_string().contains(expected), "{error}\n  lacks: {expected}");
}

#[test]
fn making_ready_reads_the_weights_that_will_run_and_no_others() {
    let folder = Folder::tiny_llama(3);
    folder.edit_tensors(|tensors| {
        let t = tensors.iter_mut().find(|t| t.name == "model.layers.1.mlp.down_proj.weight").unwrap();
        t.bytes[4 * 14..4 * 15].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let make_ready = |residency, skip: &[usize]| {
        let backend = CpuBackend::new(Dtype::F32, Some(1)).unwrap();
        let decoder = Decoder::new(backend, ModelFolder::open(folder.path()).unwrap(), residency, 4).unwrap();
        decoder.make_ready(LayerPlan::without(3, skip).unwrap().kept(), &Silent, "")
    };
    make_ready(Residency::Resident, &[1]).unwrap();
    make_ready(Residency::Streamed, &[]).unwrap();
    let problem = make_ready(Residency::Resident, &[]).unwrap_err().to_string();
    assert!(problem.contains("model.layers.1.mlp.down_proj.weight"), "{problem}");
}
