//! Damaged files for every loader: the result is a value or an error, without a panic, a hang or much memory.
//! `CONTRIBUTING.md` says how to run the long form.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use common::{Fixture, write_pipeline, write_z_image};
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};
use soda_models::clip::{ClipConfig, ClipTextConfig};
use soda_models::config::{self, ConfigFile};
use soda_models::flux2::Flux2Config;
use soda_models::image::{ImageProcessor, read_mask, read_rgb_and_alpha};
use soda_models::pipeline::Pipeline;
use soda_models::qwen3::{self, Qwen3Config};
use soda_models::scheduler::{ForwardProcess, SchedulerConfig};
use soda_models::tokenizer::{QwenTokenizer, Thinking, Tokenizer};
use soda_models::unet::UnetConfig;
use soda_models::vae::VaeConfig;
use soda_models::vit::{Dinov2Config, VitConfig};
use soda_models::weights::{self, Checkpoint, SafetensorsReader};
use soda_models::z_image::ZImageConfig;
use soda_testing::fuzz;

const TOYBOX: &str = "examples/toybox";
const TOYFLUX: &str = "examples/toyflux";
const PICTURES: &str = "crates/soda-models/tests/fixtures/pictures";

/// A small safetensors file with two tensors, to be damaged.
fn small() -> Vec<u8> {
    let data: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = |shape: Vec<usize>, bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap()
    };
    let tensors = [("a.weight", view(vec![4, 4], &data[..64])), ("b", view(vec![8], &data[64..]))];
    safetensors::serialize(tensors, None).unwrap()
}

/// The most memory in MB. A picture of the largest size takes most of it, while it is decoded.
const MOST_MEMORY: f32 = 2500.0;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Runs the harness on a file of a temporary folder and checks the memory.
fn fuzz_file(name: &str, seeds: &[Vec<u8>], short: u64, mut reader: impl FnMut(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fuzz(name, seeds, short, |input| {
        fs::write(&path, input).unwrap();
        reader(&path);
    });
    assert!(MEMORY.peak_usage_as_mb() < MOST_MEMORY, "{} MB", MEMORY.peak_usage_as_mb());
}

fn toybox(path: &str) -> Vec<u8> {
    fs::read(soda_testing::workspace_path(TOYBOX).join(path)).unwrap()
}

fn toyflux(path: &str) -> Vec<u8> {
    fs::read(soda_testing::workspace_path(TOYFLUX).join(path)).unwrap()
}

#[test]
fn no_bytes_make_a_weight_file_panic() {
    // Keys of the network below, and of none.
    let clip = ClipTextConfig {
        vocab_size: 4,
        hidden_size: 4,
        intermediate_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        max_position_embeddings: 4,
        ..Default::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whole.safetensors");
    weights::save(&clip.init(&Device::default()), &path, FloatDType::F16).unwrap();
    fuzz_file("model.safetensors", &[small(), fs::read(&path).unwrap()], 1500, |path| {
        if let Ok(file) = SafetensorsReader::open(path) {
            let keys: Vec<_> = file.tensors().map(|(key, ..)| key.to_owned()).collect();
            keys.iter().for_each(|key| drop(file.read(key)));
        }
        if let Ok(file) = Checkpoint::open(path) {
            let _ = file.load_into(clip.init(&Device::default()), FloatDType::F32);
        }
    });
}

/// The parts of a model in several files, and the index of them.
#[test]
fn no_bytes_make_an_index_of_weights_panic() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |number| dir.path().join(format!("model-0000{number}-of-00002.safetensors"));
    let clip = ClipTextConfig {
        vocab_size: 4,
        hidden_size: 4,
        intermediate_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        max_position_embeddings: 4,
        ..Default::default()
    };
    weights::save(&clip.init(&Device::default()), &shard(1), FloatDType::F16).unwrap();
    fs::write(shard(2), small()).unwrap();
    let keys = |number| {
        let file = SafetensorsReader::open(&shard(number)).unwrap();
        let name = format!("model-0000{number}-of-00002.safetensors");
        let keys: Vec<_> = file.tensors().map(|(key, ..)| (key.to_owned(), json!(name))).collect();
        keys
    };
    let map: serde_json::Map<_, _> = keys(1).into_iter().chain(keys(2)).collect();
    let index = json!({"metadata": {"total_size": 1000}, "weight_map": map}).to_string();
    let path = dir.path().join("model.safetensors.index.json");
    fuzz("index.json", &[index.into_bytes()], 500, |input| {
        fs::write(&path, input).unwrap();
        if let Ok(file) = Checkpoint::find(dir.path(), "model", None) {
            let _ = file.load_into(clip.init(&Device::default()), FloatDType::F32);
        }
    });
}

/// A tiny pipeline in diffusers' layout.
fn tiny(family: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_pipeline(&Fixture::read(&format!("pipeline-{family}")), dir.path());
    dir
}

/// A tiny Z-Image in diffusers' layout.
fn tiny_z_image() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_z_image(&Fixture::read("pipeline-z-image"), dir.path());
    dir
}

/// A file of all networks or of a transformer in the original keys, read with the configs of its family and
/// of another one.
#[test]
fn no_bytes_make_a_single_file_panic() {
    let device = Device::default();
    let dirs = [tiny("sd15"), tiny("sd21"), tiny("sdxl"), tiny_z_image()];
    let load = |path: &Path, configs: &Path| {
        Pipeline::load_single_file(path, configs, FloatDType::F32, &device)
    };
    let seeds = dirs.each_ref().map(|dir| {
        let file = dir.path().join("single.safetensors");
        let pipeline = Pipeline::load(dir.path(), &device).unwrap();
        pipeline.save_single_file(&file, FloatDType::F16).unwrap();
        load(&file, dir.path()).unwrap();
        fs::read(&file).unwrap()
    });
    fuzz_file("single file", &seeds, 60, |path| {
        for dir in &dirs {
            let _ = load(path, dir.path()).map_err(|error| error.to_string());
        }
    });
}

#[test]
fn no_bytes_make_a_model_index_panic() {
    let load = |dir: &Path| Pipeline::load(dir, &Device::default());
    let dirs =
        [("model_index.json", tiny("sdxl")), ("model_index.json of FLUX.2", whole_toyflux())];
    for (name, dir) in dirs {
        let path = dir.path().join("model_index.json");
        let seed = fs::read(&path).unwrap();
        load(dir.path()).unwrap();
        fuzz(name, &[seed], 40, |input| {
            fs::write(&path, input).unwrap();
            let _ = load(dir.path()).map_err(|error| error.to_string());
        });
    }
}

/// A copy of the model of `toyflux`.
fn whole_toyflux() -> tempfile::TempDir {
    let base = soda_testing::workspace_path(TOYFLUX).join("base");
    let dir = tempfile::tempdir().unwrap();
    let parts = ["", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"];
    for part in parts {
        fs::create_dir_all(dir.path().join(part)).unwrap();
        for entry in fs::read_dir(base.join(part)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), dir.path().join(part).join(entry.file_name())).unwrap();
            }
        }
    }
    dir
}

/// Reads a config and builds its network.
fn build<C: ConfigFile, N>(path: &Path, init: impl Fn(&C, &Device) -> N) {
    if let Ok(config) = config::read::<C>(path) {
        drop(init(&config, &Device::default()));
    }
}

#[test]
fn no_bytes_make_a_config_panic() {
    let seeds = [
        "base/unet/config.json",
        "base/vae/config.json",
        "base/text_encoder/config.json",
        "eval/clip/config.json",
        "eval/dino/config.json",
        "eval/clip/preprocessor_config.json",
        "eval/dino/preprocessor_config.json",
        "base/scheduler/scheduler_config.json",
    ];
    let mut seeds = seeds.map(toybox).to_vec();
    seeds.push(toyflux("base/text_encoder/config.json"));
    seeds.push(toyflux("base/transformer/config.json"));
    seeds.push(toyflux("base/vae/config.json"));
    seeds.push(toyflux("base/scheduler/scheduler_config.json"));
    seeds.push(Fixture::read("z-image").metadata("config").into_bytes());
    let photo = image::RgbImage::new(40, 3);
    fuzz_file("config.json", &seeds, 1000, |path| {
        build::<UnetConfig, _>(path, UnetConfig::init);
        build::<Flux2Config, _>(path, Flux2Config::init);
        build::<ZImageConfig, _>(path, ZImageConfig::init);
        build::<VaeConfig, _>(path, |config, device| (config.init(device), config.tiling()));
        build::<ClipTextConfig, _>(path, ClipTextConfig::init);
        build::<ClipConfig, _>(path, ClipConfig::init);
        build::<VitConfig, _>(path, VitConfig::init);
        build::<Dinov2Config, _>(path, Dinov2Config::init);
        build::<ImageProcessor, _>(path, |processor, device| {
            processor.preprocess(std::slice::from_ref(&photo), device)
        });
        build::<SchedulerConfig, _>(path, |config, _| {
            let samplers = [1, 4, 50].map(|steps| config.sampler(None, steps).map(drop));
            let sized = [1, 4, 50].map(|n| config.sampler_for_tokens(None, n, 64).map(drop));
            (samplers, sized, ForwardProcess::new(config))
        });
        build::<Qwen3Config, _>(path, |config, device| {
            let states = [&[9, 18, 27][..], &[-2], &[0]].map(|states| config.hidden_states(states));
            states.map(|states| states.map(|states| config.init(&states, device)))
        });
    });
}

#[test]
fn no_bytes_make_a_tokenizer_panic() {
    let texts = [
        "a red mug",
        "",
        "  A\u{301} <mug>\n\u{1f600} 'll 12 x",
        "<|endoftext|><|startoftext|> zz",
    ];
    let read = |dir: &Path| {
        let Ok(mut tokenizer) = Tokenizer::from_dir(dir) else { return };
        let _ = tokenizer.add_token("<mug>", 2);
        texts.iter().for_each(|text| drop((tokenizer.encode(text), tokenizer.single_token(text))));
        let _ = (tokenizer.vocab_size(), tokenizer.extra_token());
    };
    // Fewer merges than the toybox has, so that damage meets all other fields.
    let mut whole: Value =
        serde_json::from_slice(&toybox("base/tokenizer/tokenizer.json")).unwrap();
    whole["model"]["merges"].as_array_mut().unwrap().truncate(4);
    let vocabulary = whole["model"]["vocab"].as_object().unwrap().clone();
    let kept =
        vocabulary.into_iter().filter(|(token, id)| token.len() < 4 || id.as_u64() > Some(780));
    whole["model"]["vocab"] = Value::Object(kept.collect());
    let whole = serde_json::to_vec(&whole).unwrap();
    fuzz_file("tokenizer.json", &[whole], 500, |path| read(path.parent().unwrap()));

    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
        let all = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];
        let seed = toybox(&format!("base/tokenizer/{name}"));
        let mut others = true;
        fuzz_file(name, &[seed], 40, |path| {
            let dir = path.parent().unwrap();
            for other in all.iter().filter(|other| others && **other != name) {
                fs::write(dir.join(other), toybox(&format!("base/tokenizer/{other}"))).unwrap();
            }
            others = false;
            read(dir);
        });
    }
}

#[test]
fn no_bytes_make_a_tokenizer_of_chats_panic() {
    let texts =
        ["a red mug", "", "  A\u{301} \u{1f600}\n\n 'll 12 x", "<|im_end|><|im_start|> <think>"];
    let names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
    // Fewer merges than toyflux has, so that damage meets all other fields.
    let mut whole: Value =
        serde_json::from_slice(&toyflux("base/tokenizer/tokenizer.json")).unwrap();
    whole["model"]["merges"].as_array_mut().unwrap().truncate(4);
    let whole = serde_json::to_vec(&whole).unwrap();
    for name in names {
        let file = |name: &str| match name {
            "tokenizer.json" => whole.clone(),
            name => toyflux(&format!("base/tokenizer/{name}")),
        };
        let mut others = true;
        fuzz_file(name, &[file(name)], if name == "tokenizer.json" { 500 } else { 60 }, |path| {
            let dir = path.parent().unwrap();
            for other in names.iter().filter(|other| others && **other != name) {
                fs::write(dir.join(other), file(other)).unwrap();
            }
            if others {
                fs::write(path, file(name)).unwrap();
                QwenTokenizer::from_dir(dir).unwrap();
            }
            others = false;
            let Ok(tokenizer) = QwenTokenizer::from_dir(dir) else { return };
            for thinking in [Thinking::Enabled, Thinking::Disabled] {
                drop(tokenizer.encode_batch(&texts, thinking, 512, &Device::default()));
            }
            let _ = (tokenizer.single_token("sks"), tokenizer.vocab_size());
        });
    }
}

#[test]
fn no_bytes_make_the_weights_of_a_language_model_panic() {
    let fixture = Fixture::read("qwen3");
    let dir = tempfile::tempdir().unwrap();
    let (config, path) = fixture.write_model(dir.path());
    let config: Qwen3Config = config::read(&config).unwrap();
    let states = config.hidden_states(&[1]).unwrap();
    let device = Device::default();
    let load = || qwen3::load(dir.path(), &config, &states, FloatDType::F32, None, &device);
    load().unwrap();
    fuzz("language model", &[fs::read(&path).unwrap()], 200, |input| {
        fs::write(&path, input).unwrap();
        let _ = load().map_err(|error| error.to_string());
    });
}

#[test]
fn no_bytes_make_a_picture_panic() {
    let photo = image::RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 20, y as u8 * 30, 99]));
    let encode = |format| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::DynamicImage::from(photo.clone()).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    use image::ImageFormat::{Bmp, Jpeg, Png, Tiff, WebP};
    let mut seeds: Vec<_> = [Bmp, Jpeg, Png, Tiff, WebP].map(encode).into();
    for name in ["animated.png", "animated.webp", "cmyk.jpg"] {
        seeds.push(fs::read(soda_testing::workspace_path(PICTURES).join(name)).unwrap());
    }
    fuzz_file("picture.png", &seeds, 1500, |path| {
        let _ = (read_rgb_and_alpha(path), read_mask(path));
    });
}
