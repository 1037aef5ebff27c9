//! Single files in the original keys: the keys of diffusers' converters, and the way back.
//!
//! The keys are written by `docs/parity/single_file.py`, which checks them with diffusers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use common::{Fixture, write_pipeline};
use safetensors::SafeTensors;
use soda_models::pipeline::{GenerateConfig, Pipeline};
use soda_models::{ModelError, WeightsError};

type Shapes = BTreeMap<String, Vec<usize>>;

fn shapes(file: &Path) -> Shapes {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(key, view)| (key.to_owned(), view.shape().to_vec())).collect()
}

#[test]
fn single_files_have_the_original_keys_and_lose_nothing() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/single-file.json");
    let theirs: BTreeMap<String, Shapes> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let device = Device::default();
    for (family, theirs) in theirs {
        let dir = tempfile::tempdir().unwrap();
        write_pipeline(&Fixture::read(&format!("pipeline-{family}")), dir.path());
        let pipeline = Pipeline::load(dir.path(), &device).unwrap();
        let file = dir.path().join("single.safetensors");
        pipeline.save_single_file(&file, FloatDType::F32).unwrap();
        assert_eq!(shapes(&file), theirs, "{family}");

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
