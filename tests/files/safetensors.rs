//! safetensors: every lie a header can tell. Files are written by the tests' own writer; the crate `safetensors` is the
//! second reader.

use crate::support::{Folder, Random, Tensor, safetensors, with_header};
use prunectl::Error;
use prunectl::model::ModelFolder;
use prunectl::model::safetensors::{Header, parse};
use std::path::Path;
use std::time::{Duration, Instant};

fn read(file: &[u8]) -> Result<Header, Error> {
    parse(Path::new("m/model.safetensors"), file)
}

#[track_caller]
fn assert_error(file: &[u8], expected: &str) {
    let error = read(file).unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("m/model.safetensors: ") && text.contains(expected), "{text}\n  lacks: {expected}");
}

/// A file of `header` and `data` bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = with_header(header);
    file.resize(file.len() + data, 7);
    file
}

#[test]
fn a_valid_file_reads_as_the_reference_reads_it() {
    let tensors = [
        Tensor::f32("b", &[3, 2]),
        Tensor::f32("empty", &[0, 5]),
        Tensor::f32("a", &[]),
        Tensor { name: "c".into(), dtype: "BF16".into(), shape: vec![5], bytes: (0..10).collect() },
    ];
    let bytes = safetensors(&tensors);
    let header = read(&bytes).unwrap();
    let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(header.tensors.len(), 4);
    assert_eq!(header.metadata, Some(vec![("format".to_owned(), "pt".to_owned())]));
    for t in &header.tensors {
        let theirs = reference.tensor(&t.name).unwrap();
        assert_eq!(theirs.data(), &bytes[t.range.clone()], "{}", t.name);
        assert_eq!(theirs.shape(), t.shape, "{}", t.name);
    }
    // Padding after the header is part of the format, and no metadata is fine.
    assert!(read(&file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}      ", 4)).is_ok());
}

#[test]
fn a_header_length_that_lies() {
    for short in 0..8 {
        assert_error(&[1, 2, 3, 4, 5, 6, 7][..short.min(7)], "too few");
    }
    let good = safetensors(&[Tensor::f32("a", &[4])]);
    for (length, expected) in [
        (u64::MAX, "more than the format's limit"),
        (1 << 40, "more than the format's limit"),
        (99_999_999, "but only"),
        (good.len() as u64 - 7, "but only"),
        (0, "does not begin with '{'"),
    ] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert_error(&bytes, expected);
    }
    // One byte short, one byte too long.
    let length = u64::from_le_bytes(good[..8].try_into().unwrap());
    for lie in [length - 1, length + 1] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&lie.to_le_bytes());
        assert!(read(&bytes).is_err());
    }
}

#[test]
fn a_truncated_file_at_every_length() {
    let good = safetensors(&[Tensor::f32("a", &[4]), Tensor::f32("b", &[2, 3])]);
    assert!(read(&good).is_ok());
    for length in 0..good.len() {
        assert!(read(&good[..length]).is_err(), "{length} of {} bytes were accepted", good.len());
    }
    let mut longer = good;
    longer.push(0);
    assert_error(&longer, "1 bytes after the last tensor belong to no tensor");
}

#[test]
fn a_header_that_is_not_what_it_should_be() {
    assert_error(&file("[1,2]", 0), "does not begin with '{'");
    assert_error(&file("{\"a\":", 0), "not valid JSON");
    assert_error(&file("{} x", 0), "not valid JSON");
    let mut bytes = file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    bytes[11] = 0xFF;
    assert_error(&bytes, "not valid UTF-8");
    assert_error(&file(&"{\"a\":".repeat(5000), 0), "not valid JSON");
    assert_error(&file(r#"{"__metadata__":{"a":1}}"#, 0), "__metadata__");
    assert_error(&file(r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, 4), "tensor a: header entry: missing field `dtype`");
    assert_error(&file(r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 4), "missing field `shape`");
    assert_error(&file(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4), "missing field `data_offsets`");
    assert_error(&file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4), "tensor a: header entry: invalid value");
    assert_error(&file(r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4), "tensor a: header entry");
    assert_error(&file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, 4), "tensor a: header entry");
    assert_error(&file(r#"{"a":7}"#, 4), "tensor a: header entry");
    assert_error(&file(r#"{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}"#, 4), "tensor a: unknown dtype \"Q4\"");
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert_error(&file(twice, 8), "\"a\" is named twice");
}

#[test]
fn offsets_that_lie() {
    let two = |a: [usize; 2], b: [usize; 2]| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}},"b":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}}}}"#,
            a[0], a[1], b[0], b[1]
        )
    };
    assert!(read(&file(&two([0, 8], [8, 16]), 16)).is_ok());
    assert!(read(&file(&two([8, 16], [0, 8]), 16)).is_ok(), "any order of names");
    assert_error(&file(&two([0, 8], [4, 12]), 12), "tensor b: its bytes begin at 4, within another tensor");
    assert_error(&file(&two([0, 8], [0, 8]), 8), "within another tensor");
    assert_error(&file(&two([0, 8], [12, 20]), 20), "tensor b: 4 bytes before it belong to no tensor");
    assert_error(&file(&two([4, 12], [12, 20]), 20), "tensor a: 4 bytes before it belong to no tensor");
    assert_error(&file(&two([0, 8], [8, 24]), 16), "tensor b: data_offsets are [8, 24], but the file holds 16 bytes");
    assert_error(&file(&two([0, 8], [16, 8]), 16), "tensor b: data_offsets are [16, 8]: the end lies before the begin");
    assert_error(&file(&two([0, 8], [8, usize::MAX]), 16), "the file holds 16 bytes");
    assert_error(&file(&two([0, 4], [4, 12]), 12), "tensor a: F32 of shape [2] takes 8 bytes, but data_offsets [0, 4] give it 4");
}

#[test]
fn shapes_that_overflow_or_do_not_fit_their_bytes() {
    let one = |dtype: &str, shape: &str, bytes: usize| {
        file(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#), bytes)
    };
    assert_error(&one("F32", "[18446744073709551615]", 4), "more elements than fit");
    assert_error(&one("F32", "[4294967296,4294967296]", 4), "more elements than fit");
    assert_error(&one("F32", "[4611686018427387904]", 4), "more elements than fit");
    assert_error(&one("F32", "[0,9223372036854775807,9223372036854775807]", 0), "more elements than fit");
    assert_error(&one("F32", "[99999999999999999999]", 4), "header entry");
    assert_error(&one("BF16", "[3]", 7), "BF16 of shape [3] takes 6 bytes");
    assert_error(&one("F4", "[3]", 2), "F4 of shape [3]");
    assert!(read(&one("F4", "[4]", 2)).is_ok());
    assert!(read(&one("F32", "[0]", 0)).is_ok());
    assert!(read(&one("F32", "[]", 4)).is_ok());
    let many = format!("[{}]", vec!["1"; 100_000].join(","));
    assert!(read(&one("F32", &many, 4)).is_ok());
}

#[test]
fn hostile_names_do_not_reach_the_terminal_as_they_are() {
    let name = format!("a\\u001b[2J\\n{}", "x".repeat(100_000));
    let error = read(&file(&format!(r#"{{"{name}":{{"dtype":"?","shape":[1],"data_offsets":[0,4]}}}}"#), 4)).unwrap_err();
    let text = error.to_string();
    assert!(text.len() < 500 && !text.contains(['\u{1b}', '\n']), "{text:?}");
}

#[test]
fn an_empty_or_unreadable_file_is_named() {
    let folder = Folder::tiny_llama(1);
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, b"").unwrap();
    let error = ModelFolder::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: the file is empty"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = ModelFolder::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("neither model.safetensors nor model.safetensors.index.json"), "{error}");
    std::fs::create_dir(&path).unwrap();
    let error = ModelFolder::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn a_weight_that_is_not_a_number_is_named_with_its_place() {
    // The bit patterns of IEEE 754 and bfloat16: exponent all ones; mantissa zero is infinite, else NaN.
    let largest: [(&str, &[u8]); 3] = [("F32", &[0xFF, 0xFF, 0x7F, 0x7F]), ("F16", &[0xFF, 0x7B]), ("BF16", &[0x7F, 0x7F])];
    let bad: [(&str, &[u8], &str); 6] = [
        ("F32", &[1, 0, 0x80, 0x7F], "NaN"),
        ("F32", &[0, 0, 0x80, 0xFF], "infinite"),
        ("F16", &[1, 0x7E], "NaN"),
        ("F16", &[0, 0xFC], "infinite"),
        ("BF16", &[0xC0, 0xFF], "NaN"),
        ("BF16", &[0x80, 0x7F], "infinite"),
    ];
    let put = |dtype: &str, element: &[u8]| {
        let folder = Folder::tiny_llama(2);
        folder.edit_tensors(|tensors| {
            let t = tensors.iter_mut().find(|t| t.name == "model.layers.1.mlp.up_proj.weight").unwrap();
            t.dtype = dtype.into();
            t.bytes = vec![0; 12 * 8 * element.len()];
            let at = (5 * 8 + 3) * element.len();
            t.bytes[at..at + element.len()].copy_from_slice(element);
        });
        ModelFolder::open(folder.path()).unwrap().check_finite().map_err(|e| e.to_string())
    };
    for (dtype, element) in largest {
        assert_eq!(put(dtype, element), Ok(()), "{dtype}");
    }
    for (dtype, element, kind) in bad {
        let error = put(dtype, element).unwrap_err();
        let expected = format!("tensor model.layers.1.mlp.up_proj.weight: element [5, 3] is {kind}");
        assert!(error.contains(&expected), "{dtype}: {error}");
    }
}

#[test]
fn a_fingerprint_tells_models_apart() {
    let a = Folder::tiny_llama(2);
    let print = |folder: &Folder| ModelFolder::open(folder.path()).unwrap().fingerprint();
    let first = print(&a);
    assert_eq!(first.len(), 64);
    assert_eq!(first, print(&a));
    assert_eq!(first, print(&Folder::tiny_llama(2)), "the place does not count");
    a.edit_tensors(|tensors| tensors[0].bytes[0] ^= 1);
    assert_ne!(first, print(&a));
    let b = Folder::tiny_llama(2);
    b.edit_config(|config| config["rope_theta"] = serde_json::json!(10001.0));
    assert_ne!(first, print(&b));
}

/// Seeded mutations of a valid file: an error, or ranges that lie in the file; and never more lenient than the reference.
#[test]
fn mutated_files_never_panic() {
    let mut random = Random(0x5AFE);
    let good = safetensors(&[Tensor::f32("model.norm.weight", &[4]), Tensor::f32("b", &[2, 3]), Tensor::f32("e", &[0])]);
    let header = usize::try_from(u64::from_le_bytes(good[..8].try_into().unwrap())).unwrap();
    let words =
        ["0", "-1", "18446744073709551615", "[", "]", "{", "}", ",", "\"F16\"", "\"BOOL\"", "[]", "null", "1e9", "\\u0000", "\""];
    let end = Instant::now() + Duration::from_secs(3);
    let (mut runs, mut accepted) = (0_u32, 0_u32);
    while Instant::now() < end {
        let mut bytes = good.clone();
        match random.below(4) {
            0 => {
                for _ in 0..=random.below(3) {
                    let at = random.below(8 + header);
                    bytes[at] = u8::try_from(random.below(256)).unwrap();
                }
            }
            1 => bytes.truncate(random.below(bytes.len() + 1)),
            2 => bytes.extend((0..random.below(9)).map(|i| u8::try_from(i).unwrap())),
            _ => {}
        }
        if random.below(2) == 0 && bytes.len() >= 8 + header {
            // A word in the header, and the length made right, so that what follows is reached.
            let mut text = bytes[8..8 + header].to_vec();
            let at = random.below(text.len());
            let to = (at + random.below(4)).min(text.len());
            text.splice(at..to, words[random.below(words.len())].bytes());
            let mut new = (text.len() as u64).to_le_bytes().to_vec();
            new.extend(text);
            new.extend(&bytes[8 + header..]);
            bytes = new;
        }
        runs += 1;
        if let Ok(header) = read(&bytes) {
            accepted += 1;
            assert!(header.tensors.iter().all(|t| t.range.start <= t.range.end && t.range.end <= bytes.len()));
            assert!(::safetensors::SafeTensors::deserialize(&bytes).is_ok(), "accepted what the reference refuses: {bytes:?}");
        }
    }
    assert!(runs > 1000 && accepted > 50, "{runs} runs, {accepted} accepted: the mutations miss their aim");
}
