//! Shard indices: what they may name, and that index and shards agree.

use crate::support::{Folder, Random};
use prunectl::Error;
use prunectl::model::ModelFolder;
use prunectl::model::shard_index::ShardIndex;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const INDEX: &str = "model.safetensors.index.json";

#[track_caller]
fn assert_error(folder: &Path, expected: &[&str]) {
    let error = ModelFolder::open(folder).unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error:?}");
    for part in expected {
        assert!(error.to_string().contains(part), "{error}\n  lacks: {part}");
    }
}

fn edit_index(folder: &Folder, edit: impl FnOnce(&mut Value)) {
    let path = folder.path().join(INDEX);
    let mut index = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    fs::write(path, index.to_string()).unwrap();
}

#[test]
fn shards_are_one_model() {
    let single = Folder::tiny_llama(3);
    let sharded = Folder::tiny_llama(3);
    sharded.shard(3);
    let (a, b) = (ModelFolder::open(single.path()).unwrap(), ModelFolder::open(sharded.path()).unwrap());
    assert_eq!(b.files().shards.len(), 3);
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (x, y) in a.tensors().zip(b.tensors()) {
        assert_eq!((&x.name, x.bytes.as_slice()), (&y.name, y.bytes.as_slice()));
    }
}

#[test]
fn an_index_that_points_outside_the_folder() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("secret.safetensors"), b"secret").unwrap();
    let absolute = secret.path().join("secret.safetensors").to_str().unwrap().to_owned();
    for name in [
        "../secret.safetensors",
        "..",
        ".",
        "",
        "/etc/passwd",
        absolute.as_str(),
        "sub/model.safetensors",
        "sub/../../secret.safetensors",
        "./model-00001-of-00002.safetensors",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "a\u{0}.safetensors",
        "model-00001-of-00002.safetensors/",
    ] {
        let folder = Folder::tiny_llama(2);
        folder.shard(2);
        edit_index(&folder, |index| index["weight_map"]["model.norm.weight"] = json!(name));
        assert_error(folder.path(), &[INDEX, "tensor model.norm.weight", "outside the folder"]);
    }
    let folder = Folder::tiny_llama(2);
    folder.shard(2);
    edit_index(&folder, |index| index["weight_map"]["model.norm.weight"] = json!("config.json"));
    assert_error(folder.path(), &["tensor model.norm.weight", "expected a .safetensors file"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_within_the_folder_and_in_the_cache_layout_only() {
    use std::os::unix::fs::symlink;
    let shard = "model-00002-of-00002.safetensors";
    let move_and_link = |folder: &Folder, to: &Path| {
        let from = folder.path().join(shard);
        fs::rename(&from, to).unwrap();
        symlink(to, from).unwrap();
    };

    let outside = tempfile::tempdir().unwrap();
    let folder = Folder::tiny_llama(2);
    folder.shard(2);
    move_and_link(&folder, &outside.path().join("x.safetensors"));
    assert_error(folder.path(), &[shard, "is a link out of the folder"]);

    let folder = Folder::tiny_llama(2);
    folder.shard(2);
    move_and_link(&folder, &folder.path().join("the-bytes"));
    ModelFolder::open(folder.path()).unwrap();

    // A link to nothing counts as missing.
    fs::remove_file(folder.path().join("the-bytes")).unwrap();
    assert_error(folder.path(), &[INDEX, shard, "missing"]);

    // models--x/snapshots/REVISION/FILE -> ../../blobs/HASH, as Hugging Face's cache has it.
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--x");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0a1b"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let folder = Folder::tiny_llama(2);
    folder.shard(2);
    for (i, entry) in fs::read_dir(folder.path()).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), blobs.join(i.to_string())).unwrap();
        symlink(format!("../../blobs/{i}"), snapshot.join(entry.file_name())).unwrap();
    }
    ModelFolder::open(&snapshot).unwrap();
    // The folder itself may be reached by a link.
    let alias = cache.path().join("alias");
    symlink(&snapshot, &alias).unwrap();
    ModelFolder::open(&alias).unwrap();
    // But not to somewhere else in the repository.
    fs::create_dir(repository.join("other")).unwrap();
    fs::copy(snapshot.join(shard), repository.join("other/0")).unwrap();
    fs::remove_file(snapshot.join(shard)).unwrap();
    symlink("../../other/0", snapshot.join(shard)).unwrap();
    assert_error(&snapshot, &[shard, "is a link out of the folder"]);
}

#[test]
fn index_and_shards_that_do_not_agree() {
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let fresh = || {
        let folder = Folder::tiny_llama(2);
        folder.shard(2);
        folder
    };
    let folder = fresh();
    fs::remove_file(folder.path().join(shards[1])).unwrap();
    assert_error(folder.path(), &[INDEX, shards[1], "missing"]);

    let folder = fresh();
    edit_index(&folder, |index| index["weight_map"]["model.layers.9.x"] = json!(shards[0]));
    assert_error(folder.path(), &[INDEX, "tensor model.layers.9.x", shards[0], "lacks it"]);

    let folder = fresh();
    edit_index(&folder, |index| {
        index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    });
    assert_error(folder.path(), &["tensor model.norm.weight", "not named in", INDEX]);

    let folder = fresh();
    edit_index(&folder, |index| {
        let place = &mut index["weight_map"]["model.norm.weight"];
        *place = json!(if place == shards[0] { shards[1] } else { shards[0] });
    });
    assert_error(folder.path(), &["tensor model.norm.weight", "should be in"]);

    let folder = fresh();
    fs::copy(folder.path().join(shards[0]), folder.path().join(shards[1])).unwrap();
    assert_error(folder.path(), &["is in", "too"]);

    let folder = fresh();
    fs::write(folder.path().join("model.safetensors"), b"left over").unwrap();
    assert_error(folder.path(), &["holds both"]);

    for (text, expected) in [
        ("", "not a valid index"),
        ("[]", "not a valid index"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":[]}"#, "not a valid index"),
        (r#"{"weight_map":{}}"#, "key weight_map: names no tensors"),
        (r#"{"weight_map":{"a":1}}"#, "not a valid index"),
        (r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#, "\"a\" is named twice"),
        (r#"{"metadata":7,"weight_map":{"a":"x.safetensors"}}"#, "not a valid index"),
    ] {
        let folder = fresh();
        fs::write(folder.path().join(INDEX), text).unwrap();
        assert_error(folder.path(), &[INDEX, expected]);
    }
    let folder = fresh();
    fs::write(folder.path().join(INDEX), b"{\"weight_map\":{\"\xFF\":\"x\"}}").unwrap();
    assert_error(folder.path(), &[INDEX, "not valid UTF-8"]);
}

/// Seeded mutations of a valid index: an error, or plain names only; never a panic.
#[test]
fn mutated_indices_never_panic_and_never_leave_the_folder() {
    let mut random = Random(0x1DE5);
    let folder = Folder::tiny_llama(2);
    folder.shard(2);
    let good = fs::read(folder.path().join(INDEX)).unwrap();
    let words = ["../", "/", "..", "\\\\", "\\u0000", "\"", "{", "}", ":", ",", "null", "0", "\\ud800", "C:"];
    let end = Instant::now() + Duration::from_secs(2);
    let (mut runs, mut accepted) = (0_u32, 0_u32);
    while Instant::now() < end {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            if random.below(2) == 0 {
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            } else {
                bytes.splice(at..at, words[random.below(words.len())].bytes());
            }
        }
        runs += 1;
        if let Ok(index) = ShardIndex::parse(Path::new(INDEX), &bytes) {
            accepted += 1;
            for (_, file) in &index.weight_map {
                assert!(!file.contains(['/', '\\', '\0']) && file != ".." && file.ends_with(".safetensors"), "{file:?}");
            }
        }
    }
    assert!(runs > 1000 && accepted > 50, "{runs} runs, {accepted} accepted: the mutations miss their aim");
}
