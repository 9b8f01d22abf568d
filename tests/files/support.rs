//! Small model folders made on the spot, and a safetensors writer of the tests' own, so that hostile files can be
//! written and the product's reader is not judged by the product's writer.

use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// splitmix64: one line, seeded, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    /// Values that differ from tensor to tensor and from element to element.
    pub(crate) fn f32(name: &str, shape: &[usize]) -> Self {
        let seed = name.bytes().fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let mut random = Random(seed);
        let n: usize = shape.iter().product();
        let bytes = (0..n)
            .flat_map(|_| {
                let unit = f32::from(u16::try_from(random.next() >> 48).unwrap()) / 65536.0;
                ((unit - 0.5) * 0.2).to_le_bytes()
            })
            .collect();
        Self { name: name.into(), dtype: "F32".into(), shape: shape.to_vec(), bytes }
    }
}

/// A safetensors file with `tensors` one after another.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for t in tensors {
        let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [end, end + t.bytes.len()]});
        assert!(header.insert(t.name.clone(), entry).is_none());
        end += t.bytes.len();
    }
    let mut file = with_header(&Value::Object(header).to_string());
    file.extend(tensors.iter().flat_map(|t| &t.bytes));
    file
}

/// Length and header, without any tensor's bytes.
pub(crate) fn with_header(header: &str) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file
}

/// A model folder that goes away with this value.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    tensors: RefCell<Vec<Tensor>>,
}

impl Folder {
    /// Hidden 8, 4 query and 2 key heads of width 2, MLP 12, vocabulary 11; untied.
    pub(crate) fn tiny_llama(layers: usize) -> Self {
        let mut tensors = vec![
            Tensor::f32("model.embed_tokens.weight", &[11, 8]),
            Tensor::f32("model.norm.weight", &[8]),
            Tensor::f32("lm_head.weight", &[11, 8]),
        ];
        for layer in 0..layers {
            for (name, shape) in [
                ("input_layernorm", &[8][..]),
                ("post_attention_layernorm", &[8]),
                ("self_attn.q_proj", &[8, 8]),
                ("self_attn.k_proj", &[4, 8]),
                ("self_attn.v_proj", &[4, 8]),
                ("self_attn.o_proj", &[8, 8]),
                ("mlp.gate_proj", &[12, 8]),
                ("mlp.up_proj", &[12, 8]),
                ("mlp.down_proj", &[8, 12]),
            ] {
                tensors.push(Tensor::f32(&format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        Self::new(tiny_config(layers), tensors)
    }

    /// One weight file, config.json, nothing else.
    pub(crate) fn new(config: Map<String, Value>, tensors: Vec<Tensor>) -> Self {
        let folder = Self { folder: tempfile::tempdir().unwrap(), tensors: RefCell::new(tensors) };
        std::fs::write(folder.path().join("config.json"), Value::Object(config).to_string()).unwrap();
        folder.edit_tensors(|_| {});
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Changes the tensors and writes them as one file.
    pub(crate) fn edit_tensors(&self, edit: impl FnOnce(&mut Vec<Tensor>)) {
        let mut tensors = self.tensors.borrow_mut();
        edit(&mut tensors);
        std::fs::write(self.path().join("model.safetensors"), safetensors(&tensors)).unwrap();
    }

    /// Writes the tensors as `count` shards with an index, dealt out in turn, instead of as one file.
    pub(crate) fn shard(&self, count: usize) {
        self.shard_by(count, |number, _| number % count);
    }

    /// The same, each tensor to the shard that `place` says of its number and name.
    pub(crate) fn shard_by(&self, count: usize, place: impl Fn(usize, &str) -> usize) {
        let tensors = self.tensors.borrow();
        let mut shards = vec![Vec::new(); count];
        for (number, tensor) in tensors.iter().enumerate() {
            shards[place(number, &tensor.name)].push(tensor.clone());
        }
        let mut weight_map = Map::new();
        for (shard, part) in shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", shard + 1);
            weight_map.extend(part.iter().map(|t| (t.name.clone(), json!(name))));
            std::fs::write(self.path().join(name), safetensors(part)).unwrap();
        }
        let total: usize = tensors.iter().map(|t| t.bytes.len()).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        std::fs::write(self.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        std::fs::remove_file(self.path().join("model.safetensors")).unwrap();
    }

    /// Changes config.json.
    pub(crate) fn edit_config(&self, edit: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.path().join("config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        std::fs::write(path, Value::Object(config).to_string()).unwrap();
    }
}

/// config.json of [`Folder::tiny_llama`], in the spelling of transformers 4.
pub(crate) fn tiny_config(layers: usize) -> Map<String, Value> {
    let Value::Object(config) = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 11,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
        "hidden_act": "silu",
    }) else {
        unreachable!()
    };
    config
}
