//! Damaged model directories: each is refused in one sentence that names the file, without a panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use serde_json::{Value, json};
use soda_models::config;
use soda_models::pipeline::{GenerateConfig, LoadOptions, Pipeline};
use soda_models::unet::UnetConfig;
use soda_models::weights::{self, Checkpoint};
use tempfile::TempDir;

fn toybox() -> PathBuf {
    soda_testing::workspace_path("examples/toybox/base")
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// Copies the bundled model, for a test to damage.
fn copy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in ["scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        fs::create_dir(dir.path().join(part)).unwrap();
        for entry in fs::read_dir(toybox().join(part)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, dir.path().join(part).join(from.file_name().unwrap())).unwrap();
        }
    }
    fs::copy(toybox().join("model_index.json"), dir.path().join("model_index.json")).unwrap();
    dir
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Splits the UNet's weights into two shards with an index and removes the single file.
fn shard(dir: &Path) -> PathBuf {
    let whole = dir.join(UNET);
    let bytes = fs::read(&whole).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let sorted: BTreeMap<_, _> = file.iter().collect();
    let mut map = BTreeMap::new();
    for part in 0..2 {
        let name = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", part + 1);
        let tensors: Vec<_> = sorted.iter().enumerate().filter(|(i, _)| i % 2 == part).collect();
        for (_, (key, _)) in &tensors {
            map.insert((**key).to_owned(), name.clone());
        }
        let views = tensors.into_iter().map(|(_, tensor)| tensor);
        safetensors::serialize_to_file(views, None, &dir.join("unet").join(name)).unwrap();
    }
    fs::remove_file(whole).unwrap();
    let index = dir.join("unet/diffusion_pytorch_model.safetensors.index.json");
    fs::write(&index, json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string())
        .unwrap();
    index
}

/// The name of a case, the damage, and the words that the message must contain.
type Break = (&'static str, fn(&Path), &'static [&'static str]);

const BREAKS: &[Break] = &[
    ("no directory", |dir| fs::remove_dir_all(dir).unwrap(), &["does not exist"]),
    ("no weights", |dir| fs::remove_file(dir.join(UNET)).unwrap(), &["unet", "does not exist"]),
    (
        "a directory for a file",
        |dir| {
            fs::remove_file(dir.join(UNET)).unwrap();
            fs::create_dir(dir.join(UNET)).unwrap();
        },
        &["unet"],
    ),
    ("an empty file", |dir| fs::write(dir.join(UNET), "").unwrap(), &["0 bytes"]),
    (
        "truncated",
        |dir| {
            let bytes = fs::read(dir.join(UNET)).unwrap();
            fs::write(dir.join(UNET), &bytes[..bytes.len() - 2]).unwrap();
        },
        &["diffusion_pytorch_model", "claims the bytes"],
    ),
    (
        "more than it says",
        |dir| {
            let mut bytes = fs::read(dir.join(UNET)).unwrap();
            bytes.push(0);
            fs::write(dir.join(UNET), bytes).unwrap();
        },
        &["it holds"],
    ),
    (
        "a header of 4 GB",
        |dir| {
            let mut bytes = (4u64 << 30).to_le_bytes().to_vec();
            bytes.extend(b"{}");
            fs::write(dir.join(UNET), bytes).unwrap();
        },
        &["header", "4294967296"],
    ),
    (
        "a header of 2^64 bytes",
        |dir| fs::write(dir.join(UNET), [255; 64]).unwrap(),
        &["not a safetensors"],
    ),
    (
        "a shape that overflows",
        |dir| {
            let header = format!(
                r#"{{"a":{{"dtype":"F32","shape":[{0},{0},4],"data_offsets":[0,0]}}}}"#,
                u32::MAX
            );
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            fs::write(dir.join(UNET), bytes).unwrap();
        },
        &["claims the shape"],
    ),
    (
        "a page of a web server",
        |dir| fs::write(dir.join(UNET), "<html>404</html>").unwrap(),
        &["it is a web page", "download"],
    ),
    (
        "a pointer of Git LFS",
        |dir| {
            let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
            fs::write(dir.join(UNET), pointer).unwrap();
        },
        &["Git LFS", "git lfs pull"],
    ),
    (
        "a pickle under another name",
        |dir| {
            fs::write(dir.join(UNET), b"PK\x03\x04 and so on, for a while").unwrap();
        },
        &["pickle", "convert"],
    ),
    (
        "only a pickle",
        |dir| {
            fs::rename(dir.join(UNET), dir.join("unet/diffusion_pytorch_model.bin")).unwrap();
        },
        &[".bin", "pickle", "convert"],
    ),
    (
        "two variants",
        |dir| {
            let unet = dir.join("unet");
            fs::copy(dir.join(UNET), unet.join("diffusion_pytorch_model.fp16.safetensors"))
                .unwrap();
            let other = unet.join("diffusion_pytorch_model.ema.safetensors");
            fs::rename(dir.join(UNET), other).unwrap();
        },
        &["variant", "ema", "fp16"],
    ),
    (
        "a missing shard",
        |dir| {
            shard(dir);
            let name = "unet/diffusion_pytorch_model-00002-of-00002.safetensors";
            fs::remove_file(dir.join(name)).unwrap();
        },
        &["00002-of-00002", "does not exist"],
    ),
    (
        "an index into another folder",
        |dir| {
            edit_json(&shard(dir), |index| {
                index["weight_map"]["conv_in.weight"] = "../vae/secret.safetensors".into();
            });
        },
        &["index.json", "../vae/secret"],
    ),
    (
        "an index to the root",
        |dir| {
            edit_json(&shard(dir), |index| {
                index["weight_map"]["conv_in.weight"] = "/etc/passwd".into()
            });
        },
        &["index.json", "/etc/passwd"],
    ),
    (
        "an index that lies",
        |dir| {
            edit_json(&shard(dir), |index| {
                let map = index["weight_map"].as_object().unwrap();
                let other = map.values().find(|file| **file != map["conv_in.weight"]);
                let other = other.unwrap().clone();
                index["weight_map"]["conv_in.weight"] = other;
            });
        },
        &["conv_in.weight", "but it is not"],
    ),
    ("an index that is no index", |dir| fs::write(shard(dir), "[]").unwrap(), &["index.json"]),
    (
        "no config",
        |dir| fs::remove_file(dir.join("unet/config.json")).unwrap(),
        &["config.json", "does not exist"],
    ),
    (
        "half a config",
        |dir| fs::write(dir.join("unet/config.json"), "{\"act_fn\":").unwrap(),
        &["config.json"],
    ),
    (
        "an unknown field",
        |dir| {
            edit_json(&dir.join("unet/config.json"), |config| {
                config["invented_in_2027"] = 1.into()
            });
        },
        &["invented_in_2027"],
    ),
    (
        "blocks without width",
        |dir| {
            edit_json(&dir.join("unet/config.json"), |config| {
                config["block_out_channels"] = json!([]);
            });
        },
        &["block_out_channels"],
    ),
    (
        "a text of another width",
        |dir| {
            edit_json(&dir.join("unet/config.json"), |config| {
                config["cross_attention_dim"] = 768.into()
            });
        },
        &["cross_attention_dim", "768", "text encoder"],
    ),
    (
        "SDXL's UNet alone",
        |dir| {
            edit_json(&dir.join("unet/config.json"), |config| {
                config["addition_embed_type"] = "text_time".into();
                config["addition_time_embed_dim"] = 8.into();
                config["projection_class_embeddings_input_dim"] = 64.into();
            });
        },
        &["text_encoder_2", "does not exist"],
    ),
    (
        "an autoencoder of other latents",
        |dir| {
            edit_json(&dir.join("vae/config.json"), |config| config["latent_channels"] = 16.into());
        },
        &["out_channels", "16"],
    ),
    (
        "a sampler nobody knows",
        |dir| {
            edit_json(&dir.join("scheduler/scheduler_config.json"), |config| {
                config["_class_name"] = "MagicScheduler".into();
            });
        },
        &["_class_name", "MagicScheduler"],
    ),
    (
        "a tokenizer without merges",
        |dir| {
            fs::remove_file(dir.join("tokenizer/tokenizer.json")).unwrap();
            fs::remove_file(dir.join("tokenizer/merges.txt")).unwrap();
        },
        &["merges.txt"],
    ),
    (
        "merges of nonsense",
        |dir| {
            fs::remove_file(dir.join("tokenizer/tokenizer.json")).unwrap();
            fs::write(dir.join("tokenizer/merges.txt"), "one\ntwo three four\n").unwrap();
        },
        &["tokenizer"],
    ),
    (
        "a tokenizer larger than its encoder",
        |dir| {
            edit_json(&dir.join("text_encoder/config.json"), |config| {
                config["vocab_size"] = 100.into()
            });
        },
        &["tokenizer", "100 tokens"],
    ),
    (
        "a tokenizer longer than its encoder",
        |dir| {
            edit_json(&dir.join("tokenizer/tokenizer_config.json"), |config| {
                config["model_max_length"] = 512.into();
            });
        },
        &["512", "positions"],
    ),
    (
        "no table of contents",
        |dir| fs::remove_file(dir.join("model_index.json")).unwrap(),
        &["model_index.json"],
    ),
];

#[test]
fn every_damage_is_reported_in_one_sentence() {
    let device = Device::default();
    for (name, damage, named) in BREAKS {
        let dir = copy();
        damage(dir.path());
        let Err(error) = Pipeline::load(dir.path(), &device) else { panic!("{name} was accepted") };
        let error = error.to_string();
        assert!(!error.contains('\n'), "{name}: {error}");
        // The path of the copy contains no words of the message.
        let said = error.replace(dir.path().to_str().unwrap(), "");
        assert!(named.iter().all(|word| said.contains(word)), "{name}: {error}");
    }
}

#[test]
fn shards_variants_and_dtypes_load_the_same_model() {
    let device = Device::default();
    let dir = copy();
    let whole = Pipeline::load(dir.path(), &device).unwrap();
    let config = GenerateConfig {
        prompts: vec!["a red mug".to_owned()],
        steps: 2,
        ..GenerateConfig::default()
    };
    let generate = |pipeline: &Pipeline| pipeline.generate(&config, &mut |_, _| {}).unwrap();
    let expected = generate(&whole);

    // The file is found as the only variant, and as the requested one.
    let vae = dir.path().join("vae/diffusion_pytorch_model.safetensors");
    fs::rename(&vae, dir.path().join("vae/diffusion_pytorch_model.fp16.safetensors")).unwrap();
    assert_eq!(generate(&Pipeline::load(dir.path(), &device).unwrap()), expected);
    shard(dir.path());
    assert_eq!(generate(&Pipeline::load(dir.path(), &device).unwrap()), expected);
    // The other parts are read from their plain files, as in diffusers, and a warning names them.
    let load = |variant: &str| {
        let options = LoadOptions { variant: Some(variant.to_owned()), ..LoadOptions::default() };
        Pipeline::load_with(dir.path(), &options, &device)
    };
    let mixed = load("fp16").unwrap();
    assert_eq!(generate(&mixed), expected);
    let [warning] = &mixed.warnings[..] else { panic!("{:?}", mixed.warnings) };
    assert!(warning.to_string().contains("text_encoder, unet"), "{warning}");
    let error = load("bf16").unwrap_err().to_string();
    assert!(error.contains("bf16"), "{error}");
    let options = LoadOptions { variant: Some("bf16".to_owned()), ..LoadOptions::default() };
    let error = Pipeline::load_with(copy().path(), &options, &device).unwrap_err().to_string();
    assert!(error.contains("bf16") && error.contains("no part"), "{error}");

    // Several files of the only variant are found by their index.
    let unet = dir.path().join("unet");
    let index = unet.join("diffusion_pytorch_model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap().replace("model-0000", "model.fp16-0000");
    fs::remove_file(&index).unwrap();
    fs::write(unet.join("diffusion_pytorch_model.safetensors.index.fp16.json"), text).unwrap();
    for part in 1..=2 {
        let name =
            |variant| format!("diffusion_pytorch_model{variant}-0000{part}-of-00002.safetensors");
        fs::rename(unet.join(name("")), unet.join(name(".fp16"))).unwrap();
    }
    let only = Pipeline::load(dir.path(), &device).unwrap();
    assert_eq!(generate(&only), expected);
    assert_eq!(only.warnings.len(), 2, "{:?}", only.warnings);

    // Half precision gives a close image. The bounds are mean errors in grey levels.
    for (dtype, levels) in [(FloatDType::F16, 2.0), (FloatDType::BF16, 8.0)] {
        if !device.supports_dtype(dtype) {
            continue;
        }
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let half = generate(&Pipeline::load_with(dir.path(), &options, &device).unwrap());
        let (a, b) = (&half[0], &expected[0]);
        let sum: f64 = a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        let mean = sum / a.len() as f64;
        assert!(mean > 0.0 && mean < levels, "{dtype:?}: {mean}");
    }
}

#[test]
fn old_keys_of_the_autoencoder_are_read() {
    let dir = copy();
    let path = dir.path().join("vae/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let old = |key: &str| {
        let names = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value.")];
        let key = names.iter().fold(key.to_owned(), |key, (new, old)| key.replace(new, old));
        key.replace(".to_out.0.", ".proj_attn.")
    };
    let views: Vec<_> = file.iter().map(|(key, view)| (old(key), view)).collect();
    assert!(views.iter().any(|(key, _)| key.contains("mid_block.attentions.0.query.weight")));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    Pipeline::load(dir.path(), &Device::default()).unwrap();
}

/// The file is truncated after its header was read.
#[test]
fn a_file_truncated_after_it_was_opened_is_an_error() {
    let dir = copy();
    let file = Checkpoint::open(&dir.path().join(UNET)).unwrap();
    // The header now promises bytes that are no longer there.
    let length = fs::metadata(dir.path().join(UNET)).unwrap().len();
    let open = fs::OpenOptions::new().write(true).open(dir.path().join(UNET)).unwrap();
    open.set_len(length / 2).unwrap();
    let config: UnetConfig = config::read(&dir.path().join("unet/config.json")).unwrap();
    let error = file.load_into(config.init(&Device::default()), FloatDType::F32).unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
    assert!(weights::load(config.init(&Device::default()), &dir.path().join(UNET)).is_err());
}
