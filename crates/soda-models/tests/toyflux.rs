//! The bundled rectified-flow model against diffusers, on vectors that diffusers computed in f32.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use common::{Fixture, check_tensor, count_lazily, value};
use serde_json::{Value, json};
use soda_models::ModelError;
use soda_models::flux2::{Flux2Config, Flux2Transformer};
use soda_models::pipeline::{
    Denoiser, GenerateConfig, InitImage, LoadOptions, Networks, Pipeline, PromptEncoding,
    TextEncoderUse, TextEncoders,
};
use soda_models::scheduler::SamplerKind;
use soda_models::vae::{Vae, VaeConfig};
use soda_models::{config, weights};

/// As for the other bundled model: two f32 implementations of one network sum in different orders. A wrong
/// epsilon, a swapped gate or a rotation of the wrong pairs gives at least 1e-3.
const TOLERANCE: f32 = 2e-5;

fn base() -> PathBuf {
    soda_testing::workspace_path("examples/toyflux/base")
}

fn reference() -> Fixture {
    let folder = soda_testing::workspace_path("examples/toyflux/reference");
    Fixture::open(&folder.join("reference.safetensors"))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn transformer(device: &Device) -> Flux2Transformer {
    let dir = base().join("transformer");
    let config: Flux2Config = config::read(&dir.join("config.json")).unwrap();
    weights::load(config.init(device), &dir.join("diffusion_pytorch_model.safetensors")).unwrap()
}

fn autoencoder(device: &Device) -> Vae {
    let dir = base().join("vae");
    let config: VaeConfig = config::read(&dir.join("config.json")).unwrap();
    assert_eq!((config.pixels_per_patch(), config.patch_channels()), (8, 32));
    weights::load(config.init(device), &dir.join("diffusion_pytorch_model.safetensors")).unwrap()
}

/// Latents `[b, c, h, w]` as tokens, `[b, h w, c]`.
fn packed(latents: Tensor<4>) -> Tensor<3> {
    latents.flatten::<3>(2, 3).swap_dims(1, 2)
}

/// The largest weight is the first matrix of a single block: queries, keys, values and twice the MLP.
#[test]
fn the_configs_of_klein_have_four_and_nine_billion_parameters() {
    let device = Device::default();
    for (config, all, width) in [
        (Flux2Config::klein_4b(), 3_875_544_576, 24 * 128),
        (Flux2Config::klein_9b(), 9_078_581_248, 32 * 128),
    ] {
        assert_eq!(count_lazily(&config.init(&device)), [all, width * 9 * width]);
    }
}

/// The file of 9B in diffusers' layout, as far as its fields decide on shapes.
#[test]
fn the_config_of_klein_9b_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let file = json!({
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": 128,
        "out_channels": null,
        "num_layers": 8,
        "num_single_layers": 24,
        "attention_head_dim": 128,
        "num_attention_heads": 32,
        "joint_attention_dim": 12_288,
        "timestep_guidance_channels": 256,
        "mlp_ratio": 3.0,
        "axes_dims_rope": [32, 32, 32, 32],
        "rope_theta": 2000,
        "eps": 1e-6,
        "guidance_embeds": false,
    });
    std::fs::write(&path, file.to_string()).unwrap();
    let config: Flux2Config = config::read(&path).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", Flux2Config::klein_9b()));
}

#[test]
fn the_transformer_predicts_the_same_velocity() {
    let (device, reference) = (Device::default(), reference());
    let transformer = transformer(&device);
    let latents: Tensor<4> = reference.tensor("latents", &device);
    let text: Tensor<3> = reference.tensor("prompt_embeds", &device);
    for time in ["1.0", "0.7", "0.25", "0.02"] {
        let name = format!("velocity.{time}");
        let timestep = Tensor::<1>::full([6], 1000.0 * time.parse::<f64>().unwrap(), &device);
        let velocity = transformer.forward(latents.clone(), timestep, text.clone());
        let (shape, theirs) = reference.floats(&name);
        let ours = packed(velocity);
        assert_eq!(ours.dims().to_vec(), shape);
        common::check(&name, &values(ours), &theirs, TOLERANCE);
    }
}

/// Latents that are not square, heads that are not a power of two, axes of different widths, one word.
#[test]
fn uneven_sizes_match() {
    let (device, fixture) = (Device::default(), Fixture::read("flux2-uneven"));
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = fixture.write_model(dir.path());
    let config: Flux2Config = config::read(&config).unwrap();
    let transformer = weights::load(config.init(&device), &file).unwrap();
    for (index, [height, width, words]) in [[3, 5, 7], [4, 1, 1]].into_iter().enumerate() {
        let latents = value(&format!("sample.{index}"), [2, 12, height, width], &device);
        let text = value(&format!("text.{index}"), [2, words, 10], &device);
        let time = Tensor::<1>::from_floats([1000.0, 10.5], &device);
        let out = transformer.forward(latents, time, text);
        check_tensor(&format!("out.{index}"), out, &fixture, TOLERANCE);
    }
}

#[test]
fn the_autoencoder_matches_diffusers() {
    let (device, reference) = (Device::default(), reference());
    let vae = autoencoder(&device);
    let check = |name: &str, ours: Tensor<4>| {
        check_tensor(name, ours, &reference, TOLERANCE);
    };
    let posterior = vae.encode(reference.tensor("vae.picture", &device));
    check("vae.mean", posterior.mode());
    check("vae.logvar", posterior.logvar.clone());
    check("vae.decoded", vae.decode(posterior.mode()));
    let normalized = vae.normalize(posterior.mode());
    check("vae.normalised", normalized.clone());
    let (back, mode) = (values(vae.denormalize(normalized)), values(posterior.mode()));
    common::check("the inverse", &back, &mode, 1e-6);
}

fn pipeline(device: &Device) -> Pipeline {
    Pipeline::load(&base(), device).unwrap()
}

fn prompts() -> Vec<String> {
    let folder = soda_testing::workspace_path("examples/toyflux/reference");
    let text = std::fs::read_to_string(folder.join("reference.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(json["prompts"].clone()).unwrap()
}

/// A request with the reference's steps and guidance.
fn request(prompts: Vec<String>) -> GenerateConfig {
    GenerateConfig { prompts, guidance_scale: 4.0, ..GenerateConfig::default() }
}

/// Guidance 4 multiplies the error of each step and feeds it into the next one. An error of 2e-5 for each
/// step becomes 1e-3 of a latent and half a grey level of a byte.
#[test]
fn thirty_steps_generate_the_same_images() {
    let (device, reference) = (Device::default(), reference());
    let pipeline = pipeline(&device);
    assert_eq!((pipeline.image_size(), pipeline.default_guidance_scale()), (64, 4.0));
    let states = pipeline.encode_prompts(&prompts());
    check_tensor("prompt_embeds", states, &reference, TOLERANCE);

    let mut steps: Vec<Vec<f32>> = Vec::new();
    let latents = pipeline
        .denoise(&request(prompts()), reference.tensor("latents", &device), &mut |latents| {
            steps.push(values(packed(latents.clone().narrow(0, 0, 1))));
        })
        .unwrap();
    let (shape, theirs) = reference.floats("steps.0");
    assert_eq!(steps.len(), shape[0]);
    for (i, (ours, theirs)) in steps.iter().zip(theirs.chunks(shape[1] * shape[2])).enumerate() {
        common::check(&format!("step {i}"), ours, theirs, 1e-3);
    }
    let theirs: Vec<f32> = (0..6).flat_map(|i| reference.floats(&format!("image.{i}")).1).collect();
    let difference = soda_testing::max_abs_diff(&values(pipeline.decode(latents)), &theirs);
    assert!(difference <= 2e-3, "images differ by {difference:e}");
}

/// The states of the reference in another order, and of the first tokens alone, which see no others.
#[test]
fn the_encoding_of_prompts_is_a_choice() {
    let (device, reference) = (Device::default(), reference());
    let load = |layers: Option<&[i64]>, max_sequence_length| {
        let prompt_encoding = PromptEncoding {
            text_encoder_out_layers: layers.map(<[i64]>::to_vec),
            max_sequence_length,
        };
        let options = LoadOptions { prompt_encoding, ..LoadOptions::default() };
        Pipeline::load_with(&base(), &options, &device)
    };
    let states = |pipeline: &Pipeline| pipeline.encode_prompts(&prompts());
    let theirs: Tensor<3> = reference.tensor("prompt_embeds", &device);
    let [_, tokens, width] = theirs.dims();
    let state = |index| theirs.clone().narrow(2, index * width / 3, width / 3);
    let close = |name: &str, ours: Tensor<3>, theirs: Tensor<3>| {
        assert_eq!(ours.dims(), theirs.dims(), "{name}");
        common::check(name, &values(ours), &values(theirs), TOLERANCE);
    };
    let turned = load(Some(&[27, 9, -11]), None).unwrap();
    close("turned", states(&turned), Tensor::cat([2, 0, 1].map(state).to_vec(), 2));
    let chosen = turned.text.chosen_prompt_encoding().unwrap().to_string();
    let expected = format!("text_encoder_out_layers = [27, 9, 18], max_sequence_length = {tokens}");
    assert_eq!(chosen, expected);
    let short = load(None, Some(tokens - 3)).unwrap();
    let lengths: Vec<_> =
        prompts().iter().map(|prompt| short.text.token_ids(prompt)[0].len()).collect();
    // What follows the text is padding, the states of which are those of the same tokens.
    assert!(lengths.iter().all(|length| *length <= tokens - 3), "{lengths:?}");
    close("short", states(&short), theirs.narrow(1, 0, tokens - 3));
    // The defaults, given by name, are no choice.
    let plain = load(Some(&[9, 18, 27]), Some(tokens)).unwrap();
    assert_eq!(plain.text.chosen_prompt_encoding(), None);

    for (layers, length, needle) in [
        (Some(&[9, 18, 29][..]), None, "0 to 28"),
        (Some(&[9, 18][..]), None, "joint_attention_dim"),
        (Some(&[][..]), None, "text_encoder_out_layers"),
        (None, Some(tokens + 1), "max_sequence_length"),
        (None, Some(0), "max_sequence_length"),
    ] {
        let message = load(layers, length).unwrap_err().to_string();
        assert!(message.contains(needle), "{layers:?} {length:?}: {message}");
    }
}

/// The text encoder is freed before the transformer is read, and what it made of the prompts stays.
#[test]
fn prompts_are_encoded_before_the_text_encoder_is_freed() {
    let device = Device::default();
    let load = |hash| {
        let prompts = [prompts(), vec![String::new()]].concat();
        let text_encoder = TextEncoderUse::EncodeAndFree { prompts, hash };
        Pipeline::load_with(
            &base(),
            &LoadOptions { text_encoder, ..LoadOptions::default() },
            &device,
        )
        .unwrap()
    };
    let freed = load(true);
    check_tensor("prompt_embeds", freed.encode_prompts(&prompts()), &reference(), TOLERANCE);
    let hash = |pipeline: &Pipeline| match &pipeline.text {
        TextEncoders::Qwen3(qwen3) => qwen3.weights_hash(),
        TextEncoders::Clip(_) => panic!("another family"),
    };
    let kept = pipeline(&device);
    assert_eq!(hash(&freed), hash(&kept));
    assert_eq!((hash(&freed).len(), hash(&load(false)).len()), (64, 0));
    assert_eq!(freed.text.prompt_encoding(), kept.text.prompt_encoding());

    let two_steps = |prompt: &str| GenerateConfig { steps: 2, ..request(vec![prompt.to_owned()]) };
    let draw = |pipeline: &Pipeline, prompt: &str| {
        pipeline.generate(&two_steps(prompt), &mut |_, _| {}).map(|images| images[0].clone())
    };
    let known = &prompts()[0];
    assert_eq!(draw(&freed, known).unwrap(), draw(&kept, known).unwrap());
    let message = draw(&freed, "another prompt").unwrap_err().to_string();
    assert!(message.contains("`prompt` is another prompt"), "{message}");
    let drawing = freed.in_drawing_format();
    assert_eq!(draw(&drawing, known).unwrap(), draw(&kept.in_drawing_format(), known).unwrap());
}

/// A saved and reloaded model generates the same images, also from an initial image and in another shape.
#[test]
fn a_saved_model_is_the_same_model() {
    let device = Device::default();
    let pipeline = pipeline(&device);
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("model");
    pipeline.save(&saved).unwrap();
    let again = Pipeline::load(&saved, &device).unwrap();
    assert!(!saved.join("unet").exists() && saved.join("transformer/config.json").exists());
    let image = image::RgbImage::from_pixel(40, 30, image::Rgb([200, 30, 30]));
    let request = GenerateConfig {
        steps: 4,
        seed: 3,
        size: Some([64, 48]),
        init_image: Some(InitImage { image, strength: 0.5 }),
        ..request(vec!["a yellow duck".to_owned()])
    };
    let mut calls = Vec::new();
    let drawn = pipeline.generate(&request, &mut |done, all| calls.push((done, all))).unwrap();
    assert_eq!(calls, [(1, 2), (2, 2)]);
    assert_eq!(drawn[0].dimensions(), (48, 64));
    assert_eq!(again.generate(&request, &mut |_, _| {}).unwrap(), drawn);
    // With little noise the result is near the initial image.
    let near = GenerateConfig { steps: 30, guidance_scale: 1.0, ..request.clone() };
    let near = GenerateConfig {
        init_image: near.init_image.map(|init| InitImage { strength: 0.04, ..init }),
        ..near
    };
    let near = pipeline.generate(&near, &mut |_, _| {}).unwrap();
    let mean = |channel: usize| {
        let sum: f64 = near[0].pixels().map(|pixel| f64::from(pixel[channel])).sum();
        sum / f64::from(48 * 64)
    };
    assert!(mean(0) > 120.0 && mean(1) < 100.0, "{} {}", mean(0), mean(1));
}

/// A path of the networks is a folder and a key of its checkpoint.
#[test]
fn paths_of_the_networks_begin_with_the_folder() {
    struct Paths(Vec<String>, Vec<String>);
    impl burn::module::ModuleVisitor for Paths {
        fn enter_module(&mut self, name: &str, _kind: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _kind: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, _: &burn::module::Param<Tensor<D>>) {
            self.1.push(self.0.join("."));
        }
    }
    let networks = Networks::from(transformer(&Device::default()));
    let mut paths = Paths(Vec::new(), Vec::new());
    burn::module::Module::visit(&networks, &mut paths);
    assert_eq!(paths.1.len(), 65);
    assert!(paths.1.contains(&"transformer.transformer_blocks.1.attn.to_out.0.weight".to_owned()));
    assert!(matches!(networks.denoiser, Denoiser::Flux2(_)));
}

/// A distilled model draws without guidance, whatever is asked for.
#[test]
fn a_distilled_model_draws_without_guidance() {
    let pipeline = pipeline(&Device::default());
    let distilled = Pipeline { is_distilled: true, ..pipeline.clone() };
    assert_eq!(distilled.default_guidance_scale(), 1.0);
    let draw = |pipeline: &Pipeline, guidance_scale| {
        let request =
            GenerateConfig { steps: 2, guidance_scale, ..request(vec!["a mug".to_owned()]) };
        pipeline.generate(&request, &mut |_, _| {}).unwrap()
    };
    assert_eq!(draw(&distilled, 4.0), draw(&pipeline, 1.0));
    assert_ne!(draw(&pipeline, 4.0), draw(&pipeline, 1.0));
}

#[test]
fn invalid_requests_are_refused_by_name() {
    let pipeline = pipeline(&Device::default());
    let plain = request(vec!["a mug".to_owned()]);
    for (request, name) in [
        (GenerateConfig { steps: 0, ..plain.clone() }, "steps"),
        (GenerateConfig { clip_skip: 1, ..plain.clone() }, "clip_skip"),
        (GenerateConfig { size: Some([64, 60]), ..plain.clone() }, "size"),
        (GenerateConfig { sampler: Some(SamplerKind::Ddim), ..plain }, "scheduler"),
    ] {
        let error = pipeline.generate(&request, &mut |_, _| {}).unwrap_err();
        assert!(
            matches!(error, ModelError::InvalidRequest { field, .. } if field == name),
            "{name}: {error}"
        );
    }
    let error = pipeline.init_token_embedding("<mug>", "mug", 1, (0, 0)).unwrap_err().to_string();
    assert!(error.contains("<mug>") && error.contains("CLIP"), "{error}");
}

/// Copies the bundled model, for a test to damage.
fn copy() -> tempfile::TempDir {
    fn copy_into(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            match path.is_dir() {
                true => {
                    std::fs::create_dir(&to).unwrap();
                    copy_into(&path, &to);
                }
                false => drop(std::fs::copy(&path, &to).unwrap()),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy_into(&base(), dir.path());
    dir
}

#[test]
fn damaged_models_are_refused_by_file_and_field() {
    let refusal = |dir: &Path| Pipeline::load(dir, &Device::default()).unwrap_err().to_string();
    for (file, field, value) in [
        ("model_index.json", "_class_name", json!("FluxPipeline")),
        ("model_index.json", "is_distilled", json!("yes")),
        ("transformer/config.json", "num_layers", json!(1u64 << 60)),
        ("transformer/config.json", "num_layers", json!(0)),
        ("transformer/config.json", "num_attention_heads", json!(60_000)),
        ("transformer/config.json", "in_channels", json!(16)),
        ("transformer/config.json", "out_channels", json!(16)),
        ("transformer/config.json", "joint_attention_dim", json!(64)),
        ("transformer/config.json", "timestep_guidance_channels", json!(127)),
        ("transformer/config.json", "mlp_ratio", json!(1e300)),
        ("transformer/config.json", "mlp_ratio", json!(-3.0)),
        ("transformer/config.json", "axes_dims_rope", json!([8, 8, 8])),
        ("transformer/config.json", "axes_dims_rope", json!([7, 9, 8, 8])),
        ("transformer/config.json", "axes_dims_rope", json!([8, 8, 8, 16])),
        ("transformer/config.json", "rope_theta", json!(0)),
        ("transformer/config.json", "eps", json!(0.0)),
        ("transformer/config.json", "guidance_embeds", json!(true)),
        ("transformer/config.json", "patch_size", json!(2)),
        ("transformer/config.json", "norm", json!("rms")),
        ("vae/config.json", "_class_name", json!("AutoencoderKL")),
        ("vae/config.json", "_class_name", json!(3)),
        ("vae/config.json", "scaling_factor", json!(0.5)),
        ("vae/config.json", "batch_norm_eps", json!(0.0)),
        ("vae/config.json", "patch_size", json!([4, 4])),
        ("vae/config.json", "decoder_block_out_channels", json!([16, 32, 48])),
        ("scheduler/scheduler_config.json", "_class_name", json!("DDIMScheduler")),
    ] {
        let dir = copy();
        let path = dir.path().join(file);
        let mut json: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        json[field] = value.clone();
        std::fs::write(&path, json.to_string()).unwrap();
        let error = refusal(dir.path());
        // An autoencoder of the other class has fields that it does not know.
        let named = error.contains(field) || (file.starts_with("vae") && value.is_string());
        let named = named || field == "_class_name" && file.starts_with("scheduler");
        assert!(error.contains(file) && named, "{file} {field}: {error}");
        // A value is written as in the file, and not as in Rust.
        assert!(!error.contains("Some("), "{file} {field}: {error}");
    }
    for file in ["text_encoder", "tokenizer", "transformer", "vae"] {
        let dir = copy();
        std::fs::remove_dir_all(dir.path().join(file)).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains(file) && error.contains("does not exist"), "{error}");
    }
    // The scale of the statistics is part of the file, and guidance is not optional in a config.
    let dir = copy();
    let path = dir.path().join("transformer/config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("guidance_embeds");
    std::fs::write(&path, json.to_string()).unwrap();
    assert!(refusal(dir.path()).contains("guidance_embeds"));
}
