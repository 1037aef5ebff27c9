//! The checks on weight files, which must be complete, finite and of the right shapes; and a round trip
//! without loss.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use soda_models::unet::{Unet, UnetConfig};
use soda_models::{ConfigError, ModelError, WeightsError};
use soda_models::{config, weights};
use tempfile::TempDir;

fn unet_dir() -> PathBuf {
    soda_testing::workspace_path("examples/toybox/base/unet")
}

fn unet_file() -> PathBuf {
    unet_dir().join("diffusion_pytorch_model.safetensors")
}

fn unet() -> Unet {
    let config: UnetConfig = config::read(&unet_dir().join("config.json")).unwrap();
    config.init(&Device::default())
}

/// A tensor as it is in the file.
#[derive(Clone, Debug, PartialEq)]
struct Raw {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn read(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(key, view)| {
            let raw = Raw {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            (key.to_string(), raw)
        })
        .collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views = tensors.iter().map(|(key, raw)| {
        (key, TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Loads the UNet from a copy of its file that `damage` has changed, and returns the error.
fn load_damaged(damage: impl FnOnce(&mut BTreeMap<String, Raw>)) -> ModelError {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("damaged.safetensors");
    let mut tensors = read(&unet_file());
    damage(&mut tensors);
    write(&path, &tensors);
    weights::load(unet(), &path).unwrap_err()
}

const CONV: &str = "conv_in.weight";
const NORM: &str = "down_blocks.0.resnets.0.norm1.weight";
const LINEAR: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";

#[test]
fn a_round_trip_keeps_every_key_and_bit() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("copy.safetensors");
    let loaded = weights::load(unet(), &unet_file()).unwrap();
    weights::save(&loaded, &path, FloatDType::F16).unwrap();
    assert_eq!(read(&path), read(&unet_file()));
    // No other file is left in the directory.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    weights::save(&loaded, &path, FloatDType::F32).unwrap();
    assert!(read(&path).values().all(|raw| raw.dtype == Dtype::F32));
    assert!(weights::load(unet(), &path).is_ok());
}

#[test]
fn missing_keys_are_named() {
    for key in [CONV, NORM, LINEAR] {
        let error = load_damaged(|tensors| drop(tensors.remove(key)));
        let ModelError::Weights(WeightsError::MissingKeys { keys, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(keys, &[key]);
        assert!(error.to_string().contains(key));
    }
}

#[test]
fn unused_keys_are_named() {
    let error = load_damaged(|tensors| {
        let extra = tensors[CONV].clone();
        tensors.insert("controlnet.weight".to_string(), extra);
    });
    let ModelError::Weights(WeightsError::UnusedKeys { keys, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(keys, &["controlnet.weight"]);
}

#[test]
fn wrong_shapes_are_named_as_in_the_file() {
    let error = load_damaged(|tensors| {
        let raw = tensors.get_mut(LINEAR).unwrap();
        raw.shape[0] -= 1;
        raw.bytes.truncate(raw.shape[0] * raw.shape[1] * 2);
    });
    let ModelError::Weights(WeightsError::Shape { key, expected, found, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (key.as_str(), expected.as_slice(), found.as_slice()),
        (LINEAR, &[64, 160][..], &[63, 160][..])
    );
}

#[test]
fn weights_that_are_not_finite_are_named() {
    // NaN and both infinities as f16.
    for bits in [0x7e00u16, 0x7c00, 0xfc00] {
        let error = load_damaged(|tensors| {
            let bytes = &mut tensors.get_mut(NORM).unwrap().bytes;
            bytes[6..8].copy_from_slice(&bits.to_le_bytes());
        });
        let ModelError::Weights(WeightsError::NonFinite { key, index: 3, value, .. }) = &error
        else {
            panic!("{error}")
        };
        assert_eq!(key, NORM);
        assert!(!value.is_finite());
    }
}

#[test]
fn integer_weights_are_named() {
    let error = load_damaged(|tensors| tensors.get_mut(NORM).unwrap().dtype = Dtype::I16);
    let ModelError::Weights(WeightsError::DType { key, .. }) = &error else { panic!("{error}") };
    assert_eq!(key, NORM);
}

#[test]
fn files_that_are_not_safetensors_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(unet_file()).unwrap();
    let text = b"<html>404 not found</html>".to_vec();
    for bytes in [whole[..whole.len() - 1].to_vec(), whole[..100].to_vec(), text, Vec::new()] {
        std::fs::write(&path, &bytes).unwrap();
        let error = weights::load(unet(), &path).unwrap_err();
        assert!(
            matches!(error, ModelError::Weights(WeightsError::Safetensors { .. })),
            "{} bytes: {error}",
            bytes.len()
        );
    }
    std::fs::remove_file(&path).unwrap();
    let error = weights::load(unet(), &path).unwrap_err();
    assert!(matches!(error, ModelError::Missing { .. }), "{error}");
}

/// A later version of diffusers writes an argument that this one does not know, and that was not given.
#[test]
fn an_unknown_config_field_that_is_unset_is_passed_over() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(unet_dir().join("config.json")).unwrap();
    let expected: UnetConfig = config::read(&unet_dir().join("config.json")).unwrap();
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    for field in ["invented_in_2027", "invented_in_2028"] {
        json.insert(field.to_owned(), serde_json::Value::Null);
    }
    std::fs::write(&path, serde_json::to_string(&json).unwrap()).unwrap();
    let found: UnetConfig = config::read(&path).unwrap();
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    for value in [serde_json::json!(false), serde_json::json!([])] {
        json.insert("invented_in_2028".to_owned(), value);
        std::fs::write(&path, serde_json::to_string(&json).unwrap()).unwrap();
        let error = config::read::<UnetConfig>(&path).unwrap_err().to_string();
        assert!(error.contains("invented_in_2028"), "{error}");
    }
}

#[test]
fn config_fields_are_honoured_or_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(unet_dir().join("config.json")).unwrap();
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let check = |field: &str, value: serde_json::Value| {
        let mut json = json.clone();
        json.insert(field.to_string(), value);
        std::fs::write(&path, serde_json::to_string(&json).unwrap()).unwrap();
        let error = config::read::<UnetConfig>(&path).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        error
    };
    for (field, value) in [
        ("class_embed_type", "timestep".into()),
        ("num_attention_heads", 8.into()),
        ("projection_class_embeddings_input_dim", 2816.into()),
        ("transformer_layers_per_block", vec![1, 2].into()),
        ("mid_block_scale_factor", 2.into()),
        ("norm_num_groups", 7.into()),
        ("attention_head_dim", 3.into()),
        ("norm_eps", 0.0.into()),
        ("norm_eps", (-1e-5).into()),
        // Half the first width: a division by zero.
        ("freq_shift", 32.0.into()),
        ("freq_shift", (-1.0).into()),
    ] {
        let error = check(field, value);
        assert!(
            matches!(error, ModelError::Config(ConfigError::UnsupportedField { .. })),
            "{error}"
        );
    }
    for (field, value) in [
        ("invented_in_2027", 1.into()),
        ("layers_per_block", "two".into()),
        ("addition_embed_type", "text".into()),
    ] {
        assert!(matches!(check(field, value), ModelError::Config(ConfigError::Field { .. })));
    }
}

#[test]
fn a_file_has_the_sha256_that_sha256sum_prints() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("abc");
    std::fs::write(&path, "abc").unwrap();
    assert_eq!(
        weights::sha256(&path).unwrap(),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

/// A header of 640 bytes begins with the bytes of a pickle.
#[test]
fn a_header_whose_length_looks_like_a_pickle_is_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = 640u64.to_le_bytes().to_vec();
    bytes.extend(format!("{header:640}").into_bytes());
    bytes.extend(1f32.to_le_bytes());
    assert_eq!(bytes[..2], *b"\x80\x02");
    std::fs::write(&path, &bytes).unwrap();
    weights::Checkpoint::open(&path).unwrap();

    bytes[8] = b'c';
    std::fs::write(&path, &bytes).unwrap();
    let error = weights::Checkpoint::open(&path).unwrap_err();
    assert!(matches!(error, ModelError::Weights(WeightsError::Pickle { .. })), "{error}");
}
