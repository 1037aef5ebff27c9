//! Single files in the original keys: the keys of diffusers' converters, and the way back.
//!
//! The keys are written by `docs/parity/single_file.py`, which checks them with diffusers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use common::{Fixture, write_pipeline};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use soda_models::pipeline::{GenerateConfig, Pipeline};
use soda_models::scheduler::PredictionType;
use soda_models::{ModelError, WeightsError};

type Shapes = BTreeMap<String, Vec<usize>>;

fn shapes(file: &Path) -> Shapes {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(key, view)| (key.to_owned(), view.shape().to_vec())).collect()
}

#[test]
fn single_files_have_the_original_keys_and_lose_nothing() {
    let path = soda_testing::workspace_path("crates/soda-models/tests/fixtures/single-file.json");
    let theirs: BTreeMap<String, Shapes> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let device = Device::default();
    for (family, theirs) in theirs {
        let dir = tempfile::tempdir().unwrap();
        write_pipeline(&Fixture::read(&format!("pipeline-{family}")), dir.path());
        let pipeline = Pipeline::load(dir.path(), &device).unwrap();
        let file = dir.path().join("single.safetensors");
        pipeline.save_single_file(&file, FloatDType::F32).unwrap();
        let mut ours = shapes(&file);
        // The marks of a model that predicts the velocity, which diffusers' converters lack.
        let v = pipeline.scheduler.prediction_type == PredictionType::VPrediction;
        assert_eq!(ours.remove("v_pred"), v.then(|| vec![0]), "{family}");
        let zero = pipeline.scheduler.rescale_betas_zero_snr;
        assert_eq!(ours.remove("ztsnr"), zero.then(|| vec![0]), "{family}");
        assert_eq!(ours, theirs, "{family}");

        let again =
            Pipeline::load_single_file(&file, dir.path(), FloatDType::F32, &device).unwrap();
        let config = GenerateConfig {
            prompts: vec!["a red ball".to_owned()],
            steps: 2,
            ..GenerateConfig::default()
        };
        let generate = |pipeline: &Pipeline| pipeline.generate(&config, &mut |_, _| {}).unwrap();
        assert_eq!(generate(&again), generate(&pipeline), "{family}");
    }
}

#[test]
fn a_single_file_of_another_family_is_refused() {
    let device = Device::default();
    let dirs = ["sd15", "sdxl"].map(|family| {
        let dir = tempfile::tempdir().unwrap();
        write_pipeline(&Fixture::read(&format!("pipeline-{family}")), dir.path());
        dir
    });
    let [small, large] = &dirs;
    let file = small.path().join("single.safetensors");
    let pipeline = Pipeline::load(small.path(), &device).unwrap();
    pipeline.save_single_file(&file, FloatDType::F16).unwrap();
    let load = |file: &Path, configs: &Path| {
        Pipeline::load_single_file(file, configs, FloatDType::F32, &device).unwrap_err()
    };
    let error = load(&file, large.path());
    assert!(matches!(error, ModelError::Weights(WeightsError::Mismatch { .. })), "{error}");
    let unet = small.path().join("unet/diffusion_pytorch_model.safetensors");
    let error = load(&unet, small.path()).to_string();
    assert!(error.contains("no text encoder"), "{error}");
}

/// Writes the bundled model as one file, with some keys renamed and empty tensors added.
fn bundled_with(dir: &Path, rename: impl Fn(&str) -> String, marks: &[&str]) -> PathBuf {
    let pipeline = Pipeline::load(&toybox(), &Device::default()).unwrap();
    let file = dir.join("single.safetensors");
    pipeline.save_single_file(&file, FloatDType::F32).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let mut views: Vec<_> = read.iter().map(|(key, view)| (rename(key), view)).collect();
    for mark in marks {
        views.push(((*mark).to_owned(), TensorView::new(Dtype::F32, vec![0], &[]).unwrap()));
    }
    safetensors::serialize_to_file(views, None, &file).unwrap();
    file
}

fn toybox() -> PathBuf {
    soda_testing::workspace_path("examples/toybox/base")
}

fn load(file: &Path, configs: &Path) -> Result<Pipeline, ModelError> {
    Pipeline::load_single_file(file, configs, FloatDType::F32, &Device::default())
}

/// The marks of a single file override the configs, and go into both kinds of output.
#[test]
fn marks_of_the_prediction_are_followed_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let same = |key: &str| key.to_owned();
    let file = bundled_with(dir.path(), same, &["v_pred", "ztsnr"]);
    let pipeline = load(&file, &toybox()).unwrap();
    let [warning] = &pipeline.warnings[..] else { panic!("{:?}", pipeline.warnings) };
    assert!(warning.to_string().contains("v_pred and ztsnr"), "{warning}");

    let saved = dir.path().join("saved");
    pipeline.save(&saved).unwrap();
    let text = std::fs::read_to_string(saved.join("scheduler/scheduler_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["prediction_type"], "v_prediction");
    assert_eq!(config["rescale_betas_zero_snr"], true);
    assert_eq!(config["timestep_spacing"], "trailing");
    let index = std::fs::read_to_string(saved.join("model_index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["scheduler"][1], config["_class_name"]);

    // The configs now agree, so that there is no warning, and the marks are written.
    let again = dir.path().join("again.safetensors");
    Pipeline::load(&saved, &Device::default())
        .unwrap()
        .save_single_file(&again, FloatDType::F16)
        .unwrap();
    let keys = shapes(&again);
    assert!(keys.contains_key("v_pred") && keys.contains_key("ztsnr"));
    let agreed = load(&again, &saved).unwrap();
    assert_eq!(agreed.scheduler.prediction_type, PredictionType::VPrediction);
    assert!(agreed.warnings.is_empty(), "{:?}", agreed.warnings);
}

#[test]
fn marks_that_cannot_be_followed_are_refused_by_name() {
    let same = |key: &str| key.to_owned();
    for (mark, named) in [("ztsnr", "rescale_betas_zero_snr"), ("edm_mean", "edm_mean")] {
        let dir = tempfile::tempdir().unwrap();
        let error = load(&bundled_with(dir.path(), same, &[mark]), &toybox()).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pipeline = load(&bundled_with(dir.path(), same, &["stray"]), &toybox()).unwrap();
    assert!(pipeline.warnings[0].to_string().contains("stray"), "{:?}", pipeline.warnings);
}

/// Some converters leave out the prefix `text_model.` of the text encoder.
#[test]
fn text_encoders_without_their_prefix_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let file =
        bundled_with(dir.path(), |key| key.replace("transformer.text_model.", "transformer."), &[]);
    assert!(shapes(&file).contains_key("cond_stage_model.transformer.final_layer_norm.weight"));
    load(&file, &toybox()).unwrap();
}
