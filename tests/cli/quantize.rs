//! `prunectl quantize`: what is written is what transformers with bitsandbytes writes; what is refused.

use crate::util::{Dir, Ran, fixture};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, t)| (name.to_owned(), (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn quantize(dir: &Dir, model: &Path, args: &[&str]) -> Ran {
    dir.prunectl().arg("quantize").arg(model).args(args).run()
}

#[test]
fn every_tensor_has_the_bytes_that_transformers_writes() {
    for (name, args) in [("single", &["--out", "out", "--json"][..]), ("double", &["--out", "out", "--json", "--double-quant"])] {
        let dir = Dir::new();
        let report = quantize(&dir, &fixture("nf4/base"), args).code(0).no_err().json();
        assert_eq!((&report["matrices"], &report["weights"]), (&json!(14), &json!(98304)));
        let (ours, theirs) = (dir.path().join("out"), fixture("nf4").join(name));
        assert_eq!(tensors(&ours.join("model.safetensors")), tensors(&theirs.join("model.safetensors")), "{name}");
        let config = |folder: &Path| -> Value {
            let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
            // What transformers multiplies in is the reader's choice: ours is the model's own dtype.
            config["quantization_config"].as_object_mut().unwrap().remove("bnb_4bit_compute_dtype");
            config["transformers_version"] = Value::Null;
            config
        };
        assert_eq!(config(&ours), config(&theirs));
        let provenance: Value = serde_json::from_slice(&std::fs::read(ours.join("prunectl.json")).unwrap()).unwrap();
        assert_eq!(provenance["command"], "quantize");
        assert!(ours.join("generation_config.json").exists());

        // And it is a model like any other here: shown, and made shallower.
        let shown = dir.prunectl().args(["inspect", "out", "--json"]).run().code(0).json();
        assert_eq!((&shown["parameters"], &shown["supported"]), (&json!(111_040), &json!(true)));
        dir.prunectl().args(["prune", "out", "--remove", "0", "--out", "pruned"]).run().code(0);
        let pruned = tensors(&dir.path().join("pruned/model.safetensors"));
        let all = tensors(&ours.join("model.safetensors"));
        let part = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight.absmax");
        assert_eq!(pruned[&part(0)], all[&part(1)]);
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    let dir = Dir::new();
    quantize(&dir, &fixture("nf4/double"), &["--out", "out"]).code(2).err("is in four bits already");
    dir.write("model/config.json", std::fs::read(fixture("nf4/base/config.json")).unwrap());
    let mut bytes = std::fs::read(fixture("nf4/base/model.safetensors")).unwrap();
    // The last weight of the file becomes NaN.
    let last = bytes.len() - 2;
    bytes[last..].copy_from_slice(&[0xff, 0x7f]);
    dir.write("model/model.safetensors", &bytes);
    let name =
        SafeTensors::deserialize(&bytes).unwrap().iter().max_by_key(|(_, t)| t.data().as_ptr() as usize).unwrap().0.to_owned();
    let ran = quantize(&dir, &dir.path().join("model"), &["--out", "out"]);
    if name.contains("_proj") {
        ran.code(1).err(&format!("tensor {name}: element")).err("is NaN");
        assert!(!dir.path().join("out").exists());
    }
    quantize(&dir, &fixture("nf4/base"), &["--out", "twice"]).code(0);
    quantize(&dir, &fixture("nf4/base"), &["--out", "twice"]).code(2).err("twice exists").err("--force");
    quantize(&dir, &fixture("nf4/base"), &["--out", "twice", "--force"]).code(0);
    dir.prunectl().args(["quantize", "model", "--out", ".", "--force"]).run().code(2).err("would replace model, which is read");
}
