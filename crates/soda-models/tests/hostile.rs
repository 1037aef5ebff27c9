//! Models of a stranger: absurd numbers, huge and endless files, and weights that are not finite. Each is
//! refused in one sentence that names the file and the field, before memory or time is spent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType, Tensor};
use serde_json::{Value, json};
use soda_models::metrics::Judges;
use soda_models::pipeline::{LoadOptions, Pipeline};
use soda_models::weights::SafetensorsReader;
use tempfile::TempDir;

fn toybox(part: &str) -> PathBuf {
    soda_testing::workspace_path("examples/toybox").join(part)
}

/// Copies a folder of folders, for a test to change.
fn copy(from: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = dir.path().join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir(&to).unwrap();
            for file in fs::read_dir(&path).unwrap() {
                let file = file.unwrap().path();
                fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
            }
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
    dir
}

fn edit(path: &Path, change: &Value) {
    let mut value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    for (field, new) in change.as_object().unwrap() {
        value[field] = new.clone();
    }
    fs::write(path, value.to_string()).unwrap();
}

/// The refusal of the model in `dir`, without the folder's own name.
fn refusal(dir: &Path) -> String {
    let device = Device::default();
    let error = match dir.join("clip").exists() {
        true => Judges::load(dir, &device).map(|_| ()).unwrap_err(),
        false => Pipeline::load(dir, &device).map(|_| ()).unwrap_err(),
    };
    let error = error.to_string().replace(dir.to_str().unwrap(), "");
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn absurd_numbers_of_a_model_are_refused_by_field() {
    for (file, field, value) in [
        ("unet/config.json", "layers_per_block", json!(1_000_000_000_000u64)),
        ("unet/config.json", "layers_per_block", json!(1_000_000)),
        ("unet/config.json", "transformer_layers_per_block", json!(u64::MAX)),
        ("unet/config.json", "transformer_layers_per_block", json!(250)),
        ("unet/config.json", "sample_size", json!(1u64 << 62)),
        ("unet/config.json", "sample_size", json!(1_000_000)),
        ("unet/config.json", "in_channels", json!(u64::MAX)),
        ("unet/config.json", "cross_attention_dim", json!(u64::MAX)),
        ("unet/config.json", "block_out_channels", json!(vec![32; 100])),
        ("vae/config.json", "layers_per_block", json!(1u64 << 60)),
        ("vae/config.json", "latent_channels", json!(1u64 << 60)),
        ("vae/config.json", "sample_size", json!(1u64 << 60)),
        ("vae/config.json", "block_out_channels", json!(vec![32; 70])),
        ("text_encoder/config.json", "num_hidden_layers", json!(u64::MAX)),
        ("text_encoder/config.json", "num_hidden_layers", json!(1_000_000_000)),
        ("text_encoder/config.json", "intermediate_size", json!(1u64 << 60)),
        ("text_encoder/config.json", "hidden_size", json!(1u64 << 60)),
        ("text_encoder/config.json", "vocab_size", json!(1u64 << 60)),
        ("text_encoder/config.json", "max_position_embeddings", json!(1u64 << 60)),
        ("scheduler/scheduler_config.json", "num_train_timesteps", json!(1_000_000_000_000u64)),
        ("scheduler/scheduler_config.json", "num_train_timesteps", json!(u64::MAX)),
        ("scheduler/scheduler_config.json", "num_train_timesteps", json!(1_000_000_000)),
        ("scheduler/scheduler_config.json", "steps_offset", json!(u64::MAX)),
    ] {
        let dir = copy(&toybox("base"));
        edit(&dir.path().join(file), &json!({ field: value }));
        let error = refusal(dir.path());
        assert!(error.contains(file) && error.contains(field), "{file} {field}: {error}");
    }
}

#[test]
fn absurd_numbers_of_the_judges_are_refused_by_field() {
    let vision = |field: &str, value: u64| {
        let text = fs::read_to_string(toybox("eval/clip/config.json")).unwrap();
        let mut vision = serde_json::from_str::<Value>(&text).unwrap()["vision_config"].clone();
        vision[field] = json!(value);
        json!({ "vision_config": vision })
    };
    let edge = |edge: u64| json!({"size": {"shortest_edge": edge}});
    for (file, change, field) in [
        ("dino/config.json", json!({"image_size": 1u64 << 40}), "image_size"),
        ("dino/config.json", json!({"image_size": 4096, "patch_size": 1}), "image_size"),
        ("dino/config.json", json!({"num_hidden_layers": 1u64 << 40}), "num_hidden_layers"),
        ("dino/config.json", json!({"hidden_size": 1u64 << 40}), "hidden_size"),
        ("clip/preprocessor_config.json", edge(60_000), "size"),
        ("clip/preprocessor_config.json", edge(1 << 31), "size"),
        ("dino/preprocessor_config.json", json!({"size": {"height": 60_000, "width": 64}}), "size"),
        ("clip/config.json", vision("image_size", 1 << 40), "image_size"),
        ("clip/config.json", vision("num_hidden_layers", 1 << 40), "num_hidden_layers"),
        ("clip/config.json", json!({"projection_dim": 1u64 << 40}), "projection_dim"),
    ] {
        let dir = copy(&toybox("eval"));
        edit(&dir.path().join(file), &change);
        let error = refusal(dir.path());
        assert!(error.contains(file) && error.contains(field), "{file} {field}: {error}");
    }
}

/// The config is within all bounds, and asks for a network of gigabytes beside a small weight file.
#[test]
fn a_network_much_larger_than_its_file_is_not_built() {
    let dir = copy(&toybox("base"));
    let change = json!({"vocab_size": 1_000_000, "intermediate_size": 65_536});
    edit(&dir.path().join("text_encoder/config.json"), &change);
    let error = refusal(dir.path());
    assert!(error.contains("text_encoder") && error.contains("numbers"), "{error}");
}

/// A change of a `tokenizer.json`.
type Change<'a> = &'a dyn Fn(&mut Value);

#[test]
fn tokenizers_that_would_panic_are_refused_by_field() {
    let token = json!({
        "id": u32::MAX, "content": "zzq", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false,
    });
    let replace = json!({"type": "Replace", "pattern": {"String": ""}, "content": "ab"});
    let changes: [(&str, Change<'_>); 5] = [
        ("added_tokens", &|file| file["added_tokens"].as_array_mut().unwrap().push(token.clone())),
        ("model.vocab", &|file| file["model"]["vocab"]["zzq"] = json!(u32::MAX)),
        ("model.merges", &|file| {
            let long = "<|startoftext|>";
            file["model"]["merges"] = json!([[long, long]]);
        }),
        ("model.continuing_subword_prefix", &|file| {
            file["model"]["continuing_subword_prefix"] = json!("###");
        }),
        ("normalizer", &|file| file["normalizer"] = replace.clone()),
    ];
    for (field, change) in changes {
        let dir = copy(&toybox("base"));
        let path = dir.path().join("tokenizer/tokenizer.json");
        let mut file = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut file);
        fs::write(&path, file.to_string()).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains("tokenizer.json") && error.contains(field), "{field}: {error}");
    }
    // The older files of a tokenizer.
    for (file, content, named) in [
        ("vocab.json", r#"{"a": 4294967295}"#, "4294967295"),
        ("merges.txt", "#version: 0.2\nabcdefghijkl mnopqrstuvwx\n", "mnopqrstuvwx"),
    ] {
        let dir = copy(&toybox("base"));
        fs::remove_file(dir.path().join("tokenizer/tokenizer.json")).unwrap();
        fs::write(dir.path().join("tokenizer").join(file), content).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains(file) && error.contains(named), "{file}: {error}");
    }
}

/// A sparse file costs its maker nothing, and no memory holds a terabyte.
#[test]
fn huge_files_are_refused_before_they_are_read() {
    for file in [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ] {
        let dir = copy(&toybox("base"));
        let path = dir.path().join(file);
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains(file), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_refused_and_not_waited_for() {
    for file in ["unet/config.json", "tokenizer/tokenizer.json", "model_index.json"] {
        let dir = copy(&toybox("base"));
        let path = dir.path().join(file);
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = refusal(dir.path());
        assert!(error.contains(file) && error.contains("a named pipe, not a file"), "{error}");
        let error = SafetensorsReader::open(&path).unwrap_err().to_string();
        assert!(error.contains("a named pipe"), "{error}");
        let error = soda_models::image::read_rgb(&path).unwrap_err().to_string();
        assert!(error.contains("a named pipe"), "{error}");
    }
}

/// Makes a safetensors file of a header and zeros.
fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    let zeros = vec![0; data];
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &zeros].concat()
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensor = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let whole = tensor("[2]", 0, 8);
    for (a, b) in [
        // The two overlap, and the sum of their sizes is that of the file.
        (whole.clone(), tensor("[2]", 4, 12)),
        (tensor("[2]", 8, 16), tensor("[2]", 8, 16)),
        (tensor("[4294967296,4294967296,4294967296]", 0, 0), tensor("[4]", 0, 16)),
        (tensor("[0,4294967296,4294967296]", 0, 0), tensor("[4]", 0, 16)),
        (tensor("[4294967296,0]", 0, 0), tensor("[4]", 0, 16)),
        (tensor("[2]", 8, 0), whole.clone()),
        (tensor("[2]", 18446744073709551608, 0), whole.clone()),
    ] {
        let header = format!(r#"{{"a":{a},"b":{b}}}"#);
        fs::write(&path, safetensors_file(&header, 16)).unwrap();
        let error = SafetensorsReader::open(&path).unwrap_err().to_string();
        assert!(error.contains("no valid safetensors file"), "{header}: {error}");
    }
    let valid = format!(r#"{{"a":{whole},"b":{}}}"#, tensor("[2]", 8, 16));
    fs::write(&path, safetensors_file(&valid, 16)).unwrap();
    assert_eq!(SafetensorsReader::open(&path).unwrap().tensors().count(), 2);
}

/// The length of such a header begins with the bytes of a pickle.
#[test]
fn a_header_of_640_bytes_is_no_pickle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let start = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    fs::write(&path, safetensors_file(&format!("{start:<640}"), 8)).unwrap();
    assert_eq!(fs::read(&path).unwrap()[..2], *b"\x80\x02");
    assert_eq!(SafetensorsReader::open(&path).unwrap().tensors().count(), 1);
    fs::write(&path, b"\x80\x02}q\x00(X\x06\x00\x00\x00weight and so on").unwrap();
    assert!(SafetensorsReader::open(&path).unwrap_err().to_string().contains("pickle"));
}

#[test]
fn weights_that_are_not_finite_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::default();
    let load = |dtype| {
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        Pipeline::load_with(&toybox("base"), &options, &device).unwrap()
    };
    for (value, dtype, remedy) in [
        (f32::NAN, FloatDType::F32, "strength"),
        (f32::INFINITY, FloatDType::F32, "strength"),
        // 65504 is the largest f16.
        (70_000.0, FloatDType::F16, "bf16"),
    ] {
        let mut pipeline = load(FloatDType::F32);
        let mut unet = pipeline.denoiser.as_unet().unwrap().clone();
        let bias = unet.conv_in.bias.clone().unwrap();
        unet.conv_in.bias = Some(bias.map(|bias| Tensor::full(bias.dims(), value, &device)));
        pipeline.denoiser = unet.into();
        for name in ["model", "model.safetensors"] {
            let out = dir.path().join(name);
            let error = match name {
                "model" => pipeline.save_as(&out, dtype),
                _ => pipeline.save_single_file(&out, dtype),
            };
            let error = error.unwrap_err().to_string();
            let key = if name == "model" { "conv_in.bias" } else { "input_blocks.0.0.bias" };
            assert!(error.contains(key) && error.contains(remedy), "{error}");
            assert!(!out.exists());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
    }
    load(FloatDType::F32).save_as(&dir.path().join("valid"), FloatDType::F16).unwrap();
}

/// A bitmap of a few bytes whose header claims 144 million pixels.
#[test]
fn a_picture_that_claims_more_than_its_bytes_hold_is_not_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.bmp");
    image::RgbImage::new(9, 7).save(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for at in [18, 22] {
        bytes[at..at + 4].copy_from_slice(&12_000u32.to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let error = soda_models::image::read_rgb(&path).unwrap_err().to_string();
    assert!(error.contains("ends in the middle"), "{error}");
}
