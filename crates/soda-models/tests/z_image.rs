//! Z-Image against diffusers, on vectors that diffusers computed in f32.
//!
//! The fixtures are written by the scripts in `docs/parity/z_image`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use common::{Fixture, check, check_gradients, check_tensor, count_lazily, value, write_z_image};
use serde::Deserialize;
use serde_json::{Value, json};
use soda_models::ModelError;
use soda_models::condition::Condition;
use soda_models::pipeline::{
    Denoiser, GenerateConfig, InitImage, LoadOptions, Networks, Pipeline, PromptStates,
    TextEncoderUse, TextEncoders,
};
use soda_models::z_image::{ZImageConfig, ZImageTransformer};
use soda_models::{config, weights};

/// As for the other networks: two f32 implementations of one network sum in different orders. A wrong
/// epsilon, a swapped gate, a position that is off by one or a visible token behind a text gives at least
/// 1e-3.
const TOLERANCE: f32 = 5e-5;

/// Height and width of the latents, and the tokens of each caption, as in the script.
const INPUTS: [([usize; 2], &[usize]); 2] = [([6, 10], &[7, 40]), ([8, 16], &[64, 1, 33])];

const TIMES: [f32; 3] = [1000.0, 10.5, 500.0];

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn transformer(fixture: &Fixture, device: &Device) -> (ZImageConfig, ZImageTransformer) {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = fixture.write_model(dir.path());
    let config: ZImageConfig = config::read(&config).unwrap();
    let transformer = weights::load(config.init(device), &file).unwrap();
    (config, transformer)
}

/// The inputs of index `index`: latents, timesteps, and texts with their lengths.
fn inputs(
    config: &ZImageConfig,
    index: usize,
    device: &Device,
) -> (Tensor<4>, Tensor<1>, Condition) {
    let ([height, width], lengths) = INPUTS[index];
    let (count, longest) = (lengths.len(), lengths.iter().copied().max().unwrap());
    let shape = [count, config.in_channels, height, width];
    let text = value(&format!("text.{index}"), [count, longest, config.cap_feat_dim], device);
    (
        value(&format!("sample.{index}"), shape, device),
        Tensor::from_floats(&TIMES[..count], device),
        Condition { text, lengths: Some(lengths.to_vec()), added: None },
    )
}

fn outputs_and_gradients(name: &str) {
    let (device, fixture) = (Device::default(), Fixture::read(name));
    let (config, transformer) = transformer(&fixture, &device);
    let transformer = transformer.train().set_require_grad(true);
    let tape = device.autodiff();
    let mut loss = Tensor::<1>::zeros([1], &tape);
    for index in 0..INPUTS.len() {
        let (sample, time, condition) = inputs(&config, index, &tape);
        let out = transformer.forward(sample, time, condition);
        loss = loss + (out.clone() * value(&format!("loss.{index}"), out.dims(), &tape)).sum();
        check_tensor(&format!("out.{index}"), out.inner(), &fixture, TOLERANCE);
    }
    assert!(fixture.names("grad.").len() >= 15);
    check_gradients(&transformer, &loss.backward(), &fixture, str::to_owned, TOLERANCE);
}

#[test]
fn outputs_and_gradients_match() {
    outputs_and_gradients("z-image");
}

/// Heads of 14 channels, axes of different widths, another scale of the timestep and other epsilons.
#[test]
fn uneven_sizes_match() {
    outputs_and_gradients("z-image-uneven");
}

/// A sample depends neither on the other samples of a batch nor on what follows its text.
#[test]
fn samples_of_a_batch_do_not_see_each_other() {
    let (device, fixture) = (Device::default(), Fixture::read("z-image"));
    let (config, transformer) = transformer(&fixture, &device);
    let (sample, time, condition) = inputs(&config, 1, &device);
    let all = transformer.forward(sample.clone(), time.clone(), condition.clone());
    for (row, length) in condition.lengths.unwrap().into_iter().enumerate() {
        let text = condition.text.clone().narrow(0, row, 1).narrow(1, 0, length);
        let (sample, time) = (sample.clone().narrow(0, row, 1), time.clone().narrow(0, row, 1));
        let alone = transformer.forward(sample, time, text);
        let of_batch = values(all.clone().narrow(0, row, 1));
        check(&format!("sample {row}"), &of_batch, &values(alone), 1e-5);
    }
}

/// The default config is that of the published models.
#[test]
fn the_published_model_has_six_billion_parameters() {
    let counts = count_lazily(&ZImageConfig::default().init(&Device::default()));
    assert_eq!(counts, [6_154_908_736, 3840 * 10_240]);
}

/// A path of the networks is a folder and a key of its checkpoint.
#[test]
fn paths_of_the_networks_are_keys_of_the_checkpoint() {
    struct Paths(Vec<String>, BTreeSet<String>);
    impl ModuleVisitor for Paths {
        fn enter_module(&mut self, name: &str, _kind: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _kind: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
            let path = self.0.join(".");
            self.1.insert(path.replace(".gamma", ".weight"));
        }
    }
    let fixture = Fixture::read("z-image");
    let (_, transformer) = transformer(&fixture, &Device::default());
    let mut paths = Paths(Vec::new(), BTreeSet::new());
    Networks::from(transformer).visit(&mut paths);
    let keys = fixture.keys().into_keys().map(|key| format!("transformer.{key}")).collect();
    assert_eq!(paths.1, keys);
}

#[derive(Deserialize)]
struct Request {
    prompts: Vec<String>,
    negative_prompt: String,
    guidance_scale: f64,
    steps: usize,
}

fn pipeline_fixture() -> (Fixture, tempfile::TempDir) {
    let (fixture, dir) = (Fixture::read("pipeline-z-image"), tempfile::tempdir().unwrap());
    write_z_image(&fixture, dir.path());
    (fixture, dir)
}

fn request(fixture: &Fixture) -> GenerateConfig {
    let request: Request = serde_json::from_str(&fixture.metadata("request")).unwrap();
    GenerateConfig {
        prompts: request.prompts,
        negative_prompt: request.negative_prompt,
        steps: request.steps,
        guidance_scale: request.guidance_scale,
        ..GenerateConfig::default()
    }
}

/// Only the tokens of a chat are seen, up to 512, and the state before the last layer is read.
#[test]
fn prompts_give_the_embeds_of_the_pipeline() {
    let (fixture, dir) = pipeline_fixture();
    let pipeline = Pipeline::load(dir.path(), &Device::default()).unwrap();
    let TextEncoders::Qwen3(encoder) = &pipeline.text else { panic!("another text encoder") };
    let PromptStates::Encoder(text_encoder) = &encoder.states else { panic!("it was freed") };
    assert_eq!(text_encoder.model.layers.len(), 2);
    let request = request(&fixture);
    let mut prompts = request.prompts;
    prompts.push(request.negative_prompt);
    // The states of one prompt do not depend on the others, nor on whether the text encoder was freed.
    let text_encoder = TextEncoderUse::EncodeAndFree { prompts: prompts.clone(), hash: false };
    let options = LoadOptions { text_encoder, ..LoadOptions::default() };
    let freed = Pipeline::load_with(dir.path(), &options, &Device::default()).unwrap();
    for pipeline in [&pipeline, &freed] {
        let condition = pipeline.condition(&prompts, 0, [24, 40]);
        let lengths = condition.lengths.unwrap();
        assert_eq!(lengths, [11, 39, 53]);
        for (row, length) in lengths.into_iter().enumerate() {
            let states = condition.text.clone().narrow(0, row, 1).narrow(1, 0, length);
            let states: Tensor<2> = states.reshape([length, 12]);
            check_tensor(&format!("embeds.{row}"), states, &fixture, TOLERANCE);
        }
    }
    let long = "a red ball and ".repeat(200);
    assert!(pipeline.is_truncated(&long) && !pipeline.is_truncated(&prompts[1]));
    assert_eq!(pipeline.condition(&[long], 0, [24, 40]).lengths, Some(vec![512]));
}

/// Guidance 1.5 multiplies the error of each step, about 1e-6, and feeds it into the next one.
#[test]
fn the_pipeline_draws_the_same_pictures() {
    let (fixture, dir) = pipeline_fixture();
    let device = Device::default();
    let pipeline = Pipeline::load(dir.path(), &device).unwrap();
    assert_eq!((pipeline.image_size(), pipeline.pixels_per_token()), (32, 8));
    assert_eq!((pipeline.default_guidance_scale(), pipeline.is_distilled), (5.0, false));
    let guided = request(&fixture);
    let plain = GenerateConfig { guidance_scale: 0.0, ..guided.clone() };
    for (name, request) in [("guided.steps", guided), ("plain.steps", plain)] {
        let mut steps: Vec<Vec<f32>> = Vec::new();
        let noise = fixture.tensor("noise", &device);
        let latents = pipeline
            .denoise(&request, noise, &mut |latents| steps.push(values(latents.clone())))
            .unwrap();
        let (shape, theirs) = fixture.floats(name);
        assert_eq!(steps.len(), shape[0]);
        for (i, (ours, theirs)) in
            steps.iter().zip(theirs.chunks(theirs.len() / shape[0])).enumerate()
        {
            check(&format!("{name} {i}"), ours, theirs, 1e-4);
        }
        if name == "guided.steps" {
            let theirs = fixture.floats("guided.pictures").1;
            let ours = values(pipeline.decode(latents));
            let difference = soda_testing::max_abs_diff(&ours, &theirs);
            assert!(difference <= 2e-3, "pictures differ by {difference:e}");
        }
    }
}

/// A saved and reloaded model draws the same pictures, also from an initial image, and in bf16 about the
/// same.
#[test]
fn a_saved_model_is_the_same_model() {
    let (fixture, dir) = pipeline_fixture();
    let device = Device::default();
    let pipeline = Pipeline::load(dir.path(), &device).unwrap();
    let saved = dir.path().join("saved");
    pipeline.save(&saved).unwrap();
    let image = image::RgbImage::from_pixel(40, 30, image::Rgb([200, 30, 30]));
    let request = GenerateConfig {
        size: Some([24, 40]),
        seed: 3,
        init_image: Some(InitImage { image, strength: 0.5 }),
        ..request(&fixture)
    };
    let draw = |dir: &Path, dtype| {
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let pipeline = Pipeline::load_with(dir, &options, &device).unwrap();
        let images = pipeline.generate(&request, &mut |_, _| {}).unwrap();
        let bytes: Vec<f64> =
            images.iter().flat_map(|image| image.as_raw().clone()).map(f64::from).collect();
        bytes
    };
    let drawn = draw(dir.path(), FloatDType::F32);
    assert_eq!(draw(&saved, FloatDType::F32), drawn);
    let half = draw(dir.path(), FloatDType::BF16);
    let mean = half.iter().zip(&drawn).map(|(a, b)| (a - b).abs()).sum::<f64>() / 5760.0;
    assert!(mean > 0.0 && mean < 6.0, "{mean}");
}

/// Turbo says nowhere but in its shift that it is distilled. A mark wins.
#[test]
fn a_distilled_model_is_recognised_and_draws_without_guidance_by_default() {
    let (fixture, dir) = pipeline_fixture();
    let device = Device::default();
    let edit = |file: &str, field: &str, value: Value| {
        let path = dir.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json[field] = value;
        std::fs::write(path, json.to_string()).unwrap();
    };
    let load = || Pipeline::load(dir.path(), &device).unwrap();
    edit("scheduler/scheduler_config.json", "shift", json!(3.0));
    let turbo = load();
    assert!(turbo.is_distilled);
    assert_eq!(turbo.default_guidance_scale(), 0.0);
    // diffusers' pipeline guides a distilled model as well, if it is asked to.
    assert_eq!([0.0, 1.0].map(|scale| turbo.guidance_factor(scale)), [None, Some(2.0)]);
    let draw = |guidance_scale| {
        let size = Some([24, 40]);
        let request = GenerateConfig { steps: 2, size, guidance_scale, ..request(&fixture) };
        turbo.generate(&request, &mut |_, _| {}).unwrap()
    };
    assert_eq!(draw(0.0), draw(-1.0));
    assert_ne!(draw(0.0), draw(1.0));
    edit("model_index.json", "is_distilled", json!(false));
    assert!(!load().is_distilled);
    edit("scheduler/scheduler_config.json", "shift", json!(6.0));
    edit("model_index.json", "is_distilled", json!(true));
    assert!(load().is_distilled);
}

#[test]
fn invalid_requests_are_refused_by_name() {
    let (fixture, dir) = pipeline_fixture();
    let pipeline = Pipeline::load(dir.path(), &Device::default()).unwrap();
    assert!(matches!(pipeline.denoiser, Denoiser::ZImage(_)));
    let plain = request(&fixture);
    for (request, name) in [
        (GenerateConfig { steps: 0, ..plain.clone() }, "steps"),
        (GenerateConfig { clip_skip: 1, ..plain.clone() }, "clip_skip"),
        // The latents have 4 pixels, and a token 2 latents.
        (GenerateConfig { size: Some([24, 36]), ..plain.clone() }, "size"),
        (GenerateConfig { size: Some([520, 8]), ..plain }, "size"),
    ] {
        let error = pipeline.generate(&request, &mut |_, _| {}).unwrap_err();
        assert!(
            matches!(error, ModelError::InvalidRequest { field, .. } if field == name),
            "{name}: {error}"
        );
    }
}

#[test]
fn damaged_models_are_refused_by_file_and_field() {
    let (_, dir) = pipeline_fixture();
    let transformer = "transformer/config.json";
    for (file, field, value) in [
        ("model_index.json", "_class_name", json!("ZImageOmniPipeline")),
        ("model_index.json", "is_distilled", json!("yes")),
        (transformer, "n_layers", json!(1u64 << 60)),
        (transformer, "n_layers", json!(0)),
        (transformer, "n_refiner_layers", json!(300)),
        (transformer, "n_heads", json!(5)),
        (transformer, "n_heads", json!(0)),
        (transformer, "n_kv_heads", json!(1)),
        (transformer, "dim", json!(60_000)),
        (transformer, "dim", json!(0)),
        (transformer, "in_channels", json!(8)),
        (transformer, "in_channels", json!(60_000)),
        (transformer, "cap_feat_dim", json!(24)),
        (transformer, "axes_dims", json!([4, 8])),
        (transformer, "axes_dims", json!([3, 5, 4])),
        (transformer, "axes_dims", json!([4, 4, 8])),
        (transformer, "axes_lens", json!([100, 64, 64])),
        (transformer, "axes_lens", json!([640, 64])),
        (transformer, "axes_lens", json!([640, 0, 64])),
        (transformer, "axes_lens", json!([640, 64, 1u64 << 40])),
        (transformer, "rope_theta", json!(0)),
        (transformer, "t_scale", json!(0.0)),
        (transformer, "t_scale", json!(1e300)),
        (transformer, "norm_eps", json!(0.0)),
        (transformer, "qk_norm", json!(false)),
        (transformer, "all_patch_size", json!([2, 4])),
        (transformer, "all_f_patch_size", json!([2])),
        (transformer, "siglip_feat_dim", json!(1152)),
        (transformer, "hidden_size", json!(24)),
        ("vae/config.json", "shift_factor", json!(1e300)),
        ("vae/config.json", "use_quant_conv", json!("no")),
        ("vae/config.json", "latent_channels", json!(8)),
        ("vae/config.json", "scaling_factor", json!(0.0)),
        ("scheduler/scheduler_config.json", "_class_name", json!("DDIMScheduler")),
        ("scheduler/scheduler_config.json", "use_dynamic_shifting", json!(true)),
    ] {
        let path = dir.path().join(file);
        let whole = std::fs::read_to_string(&path).unwrap();
        let mut json: Value = serde_json::from_str(&whole).unwrap();
        json[field] = value.clone();
        std::fs::write(&path, json.to_string()).unwrap();
        let error = Pipeline::load(dir.path(), &Device::default()).unwrap_err().to_string();
        std::fs::write(&path, whole).unwrap();
        // A number of channels is compared with that of the other part, and a scheduler of another class has
        // no shift.
        let (file, field) = match (file, field) {
            ("vae/config.json", "latent_channels") => (transformer, "in_channels"),
            ("scheduler/scheduler_config.json", "_class_name") => (file, "shift"),
            other => other,
        };
        assert!(error.contains(file) && error.contains(field), "{file} {field} {value}: {error}");
    }
    for part in ["text_encoder", "tokenizer", "transformer", "vae"] {
        let (_, dir) = pipeline_fixture();
        std::fs::remove_dir_all(dir.path().join(part)).unwrap();
        let error = Pipeline::load(dir.path(), &Device::default()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("does not exist"), "{error}");
    }
}
