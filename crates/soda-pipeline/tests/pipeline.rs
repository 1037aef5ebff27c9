//! Loading and merging adapters on the bundled model, and predictions of the Python package.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::Module as _;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::json;
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{
    AdapterState, Method as _, MethodConfig, PlanOptions, Recipe, Targets, map_params,
};
use soda_models::pipeline::Pipeline;
use soda_pipeline::{
    AdapterFile, Component, Header, LoadAdapterOptions, MergeMode, MergeOptions, TARGET_PRESETS,
    fuse_adapter, load_adapter, merge_adapters,
};
use soda_testing::{max_abs, relative_error};

fn pipeline() -> Pipeline {
    let base = soda_testing::workspace_path("examples/toybox/base");
    Pipeline::load(&base, &Device::default()).unwrap()
}

/// An adapter of the UNet's cross-attention with random values in its Euclidean tensors.
fn adapter(pipeline: &Pipeline, method: impl Into<MethodConfig>) -> AdapterFile {
    let (method, targets) = (method.into(), Targets(vec!["cross-attention".to_owned()]));
    let mut options = PlanOptions { presets: TARGET_PRESETS, ..PlanOptions::default() };
    let plan = method.plan_with(&targets, &pipeline.denoiser, &mut options).unwrap();
    let unet = map_params(plan.attach(pipeline.denoiser.clone()), |param| {
        let change = param.path.contains(".adapter.") && !param.path.contains(".factors.");
        let noise = Distribution::Normal(0.0, 0.02);
        change.then(|| param.value() + param.value().random_like(noise))
    });
    let recipe = Recipe::with_presets(method, targets, &pipeline.denoiser, TARGET_PRESETS).unwrap();
    let state = AdapterState::capture(recipe, &unet);
    AdapterFile::new(Header::default()).with_adapter(Component::Unet, state)
}

/// The weight of the first cross-attention projection.
fn weight(pipeline: &Pipeline) -> Vec<f32> {
    let targets = Targets(vec!["cross-attention".to_owned()]);
    let weights = targets.select_within(&pipeline.denoiser, "", TARGET_PRESETS).unwrap();
    let (_, weight) = weights.into_iter().next().unwrap();
    weight.matrix().into_data().iter().collect()
}

#[test]
fn a_fused_adapter_is_the_loaded_one_materialized() {
    let base = weight(&pipeline());
    let (mut loaded, mut fused) = (pipeline(), pipeline());
    let adapter = adapter(&loaded, SodaConfig::default());
    let options = || LoadAdapterOptions { strength: 0.5, ..LoadAdapterOptions::default() };
    let plan = load_adapter(&mut loaded, &adapter, options()).unwrap();
    assert!(plan.paths().all(|path| path.starts_with("unet.") && path.contains(".attn2.")));
    loaded.set_networks(plan.attach(loaded.networks()).materialize());
    fuse_adapter(&mut fused, &adapter, options()).unwrap();
    assert_eq!(weight(&loaded), weight(&fused));
    assert!(relative_error(&weight(&fused), &base) > 1e-4);
}

#[test]
fn residual_merging_adds_the_weighted_changes() {
    let base = weight(&pipeline());
    let first = adapter(&pipeline(), SodaConfig::default());
    let second = adapter(&pipeline(), LoraConfig::default());
    let alone = |adapter: &AdapterFile| {
        let mut pipeline = pipeline();
        fuse_adapter(&mut pipeline, adapter, LoadAdapterOptions::default()).unwrap();
        weight(&pipeline)
    };
    let (w1, w2) = (alone(&first), alone(&second));
    let mut merged = pipeline();
    let adapters = [(&first, 0.8), (&second, 0.6)];
    merge_adapters(&mut merged, &adapters, MergeOptions::default()).unwrap();
    let differences = weight(&merged).into_iter().zip(base).zip(w1.into_iter().zip(w2));
    let differences =
        differences.map(|((w, w0), (w1, w2))| w - (w0 + 0.8 * (w1 - w0) + 0.6 * (w2 - w0)));
    assert!(max_abs(differences) < 1e-6);

    let mut pipeline = pipeline();
    let options = MergeOptions { mode: MergeMode::Compose, ..MergeOptions::default() };
    let error = merge_adapters(&mut pipeline, &adapters, options).unwrap_err().to_string();
    assert!(error.contains("no common form"), "{error}");
}

#[test]
fn unusable_options_schedules_and_embeddings_are_named() {
    let mut pipeline = pipeline();
    let plain = AdapterFile::new(Header::default());
    let options = LoadAdapterOptions { strength: f64::NAN, ..LoadAdapterOptions::default() };
    let error = load_adapter(&mut pipeline, &plain, options).unwrap_err().to_string();
    assert_eq!(error, "strength must be a finite number, not NaN");
    let mode = MergeMode::Geodesic { restore: 2.0 };
    let options = MergeOptions { mode, ..MergeOptions::default() };
    let error = merge_adapters(&mut pipeline, &[(&plain, 1.0)], options).unwrap_err().to_string();
    assert_eq!(error, "restore must be from 0 to 1, not 2");

    let schedule = json!({ "prediction_type": "v_prediction" });
    let v_prediction = AdapterFile::new(Header { schedule, ..Header::default() });
    let [mut first, mut second] = [plain.clone(), plain.clone()];
    for (file, value) in [(&mut first, 1f32), (&mut second, 2.0)] {
        let vectors = [(Component::TextEncoder, TensorData::from([[value]]))];
        file.embeddings.insert("<mug>".to_owned(), vectors.into());
    }
    for (others, needle) in [
        ([&plain, &v_prediction], "different noise schedules"),
        ([&first, &second], "both have the word `<mug>`, with other vectors"),
    ] {
        let adapters = others.map(|file| (file, 1.0));
        let error = merge_adapters(&mut pipeline, &adapters, MergeOptions::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    }

    let unknown = Header { schedule: json!({ "colour": 1 }), ..Header::default() };
    let unknown = AdapterFile::<MethodConfig>::new(unknown);
    let error = load_adapter(&mut pipeline, &unknown, LoadAdapterOptions::default());
    assert_eq!(error.unwrap_err().to_string(), "the adapter has an unknown noise schedule");
}

/// The predictions are those of the Python package on diffusers' network, whose test compares with them too.
/// `make_fixtures.py` of the package makes them. The samples of the batch have timesteps of their own.
#[test]
fn masks_over_timesteps_are_those_of_the_python_package() {
    let fixtures = soda_testing::workspace_path("crates/soda-python/tests/fixtures");
    for name in ["t-lora", "t-soda"] {
        let bytes = std::fs::read(fixtures.join(format!("{name}.predictions.safetensors")));
        let bytes = bytes.unwrap();
        let vectors = SafeTensors::deserialize(&bytes).unwrap();
        let values = |key: &str| -> (Vec<f32>, Vec<usize>) {
            let view = vectors.tensor(key).unwrap();
            let words = view.data().as_chunks::<4>().0.iter();
            (words.map(|bytes| f32::from_le_bytes(*bytes)).collect(), view.shape().to_vec())
        };
        let device = Device::default();
        let data = |key: &str| {
            let (values, shape) = values(key);
            TensorData::new(values, shape)
        };
        let file = AdapterFile::read(&fixtures.join(format!("{name}.safetensors"))).unwrap();
        let (base, _) = values("prediction.0");
        for (strength, key) in [(0.5, "prediction.0.5"), (1.0, "prediction.1")] {
            let mut pipeline = pipeline();
            let options = LoadAdapterOptions { strength, ..LoadAdapterOptions::default() };
            let plan = load_adapter(&mut pipeline, &file, options).unwrap();
            pipeline.set_networks(plan.attach(pipeline.networks()));
            let timesteps = Tensor::<1>::from_data(data("timesteps"), &device);
            let states = Tensor::<3>::from_data(data("states"), &device);
            let sample = Tensor::<4>::from_data(data("sample"), &device);
            let found = pipeline.denoiser.forward(sample, timesteps, states);
            let found: Vec<f32> = found.into_data().iter().collect();
            let (expected, _) = values(key);
            let error = relative_error(&found, &expected);
            assert!(error < 1e-5, "{name} at {strength}: {error:.1e}");
            assert!(relative_error(&base, &expected) > 1e-3, "{name} changes the prediction");
        }
    }
}
