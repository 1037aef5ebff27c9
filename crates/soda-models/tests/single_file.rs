//! Single files in the original keys: the keys of diffusers' converters, and the way back.
//!
//! The keys are written by `single_file.py`, `flux2/lora.py` and `z_image/original.py` in `docs/parity`. The
//! scripts check them with diffusers' converters.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use common::{Fixture, write_pipeline, write_z_image};
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

fn toyflux() -> PathBuf {
    soda_testing::workspace_path("examples/toyflux/base")
}

/// A model whose single files are the transformer alone.
struct WithTransformer {
    /// What its directory is called here, and its fixture.
    name: &'static str,
    /// What messages call it.
    label: &'static str,
    base: PathBuf,
    /// A layer in the original names, and a key that it gives in diffusers'.
    layer: [&'static str; 2],
    /// A key that every file has.
    mark: &'static str,
}

/// The bundled model of FLUX.2's family, and a random one of Z-Image's that is written into `dir`.
fn with_transformers(dir: &Path) -> [WithTransformer; 2] {
    let z_image = dir.join("z-image");
    std::fs::create_dir(&z_image).unwrap();
    write_z_image(&Fixture::read("pipeline-z-image"), &z_image);
    let flux2 = WithTransformer {
        name: "flux2",
        label: "FLUX.2",
        base: toyflux(),
        layer: ["single_blocks.3.linear2", "single_transformer_blocks.3.attn.to_out.weight"],
        mark: "single_stream_modulation.lin.weight",
    };
    let z_image = WithTransformer {
        name: "z-image",
        label: "Z-Image",
        base: z_image,
        layer: ["layers.1.attention.qkv", "layers.1.attention.to_k.weight"],
        mark: "x_embedder.weight",
    };
    [flux2, z_image]
}

/// Each row times the probe of `docs/parity`: an entry in a wrong place changes it.
fn probed(width: usize, rows: &[f64]) -> Vec<f64> {
    let probe = common::uniform("probe", width).into_iter();
    let probe: Vec<f64> = probe.map(|value| f64::from(value * 3f32.sqrt())).collect();
    rows.chunks_exact(width).map(|row| row.iter().zip(&probe).map(|(a, b)| a * b).sum()).collect()
}

#[test]
fn a_transformer_has_the_keys_and_values_of_the_original_code() {
    let dir = tempfile::tempdir().unwrap();
    for WithTransformer { name, base, .. } in with_transformers(dir.path()) {
        let file = dir.path().join(format!("{name}.safetensors"));
        let pipeline = Pipeline::load(&base, &Device::default()).unwrap();
        pipeline.save_single_file(&file, FloatDType::F32).unwrap();
        let fixture = format!("crates/soda-models/tests/fixtures/{name}-original.json");
        let theirs = std::fs::read_to_string(soda_testing::workspace_path(&fixture)).unwrap();
        let theirs: BTreeMap<String, serde_json::Value> = serde_json::from_str(&theirs).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let ours = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (key, expected) in theirs {
            let view = ours.tensor(&key).unwrap();
            assert_eq!(serde_json::json!(view.shape()), expected["shape"], "{key}");
            let values = view.data().as_chunks::<4>().0.iter();
            let mut values: Vec<f64> =
                values.map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
            for axis in view.shape().iter().rev() {
                values = probed(*axis, &values);
            }
            // Both sides add the same numbers in double precision.
            soda_testing::assert_close(&key, &values, &[expected["probe"].as_f64().unwrap()], 1e-9);
        }
    }
}

/// Copies the model `from` without the transformer's weights.
fn copy_configs(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let out = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_configs(&path, &out);
        } else if path.parent().unwrap().ends_with("transformer") && !path.ends_with("config.json")
        {
            continue;
        } else {
            std::fs::copy(&path, out).unwrap();
        }
    }
}

#[test]
fn a_transformer_is_read_from_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    for WithTransformer { name, base, layer, .. } in with_transformers(dir.path()) {
        let file = dir.path().join(format!("{name}.safetensors"));
        let pipeline = Pipeline::load(&base, &Device::default()).unwrap();
        pipeline.save_single_file(&file, FloatDType::F32).unwrap();
        // The directory beside a single file needs no transformer.
        let configs = dir.path().join(format!("{name}-configs"));
        copy_configs(&base, &configs);
        assert!(!configs.join("transformer/diffusion_pytorch_model.safetensors").exists());
        // As the published files, and as larger files of ComfyUI: with a prefix, another name for the norms
        // of FLUX.2, and a norm of Z-Image that nothing applies.
        let bytes = std::fs::read(&file).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let other = dir.path().join(format!("{name}-other.safetensors"));
        let one = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        let unused = (name == "z-image").then(|| ("norm_final.weight".to_owned(), one.clone()));
        let renamed =
            read.iter().map(|(key, view)| (key.replace("_norm.scale", "_norm.weight"), view));
        let renamed = renamed.chain(unused);
        let renamed = renamed.map(|(key, view)| (format!("model.diffusion_model.{key}"), view));
        let renamed = renamed.chain([("vae.stray".to_owned(), one.clone())]);
        safetensors::serialize_to_file(renamed, None, &other).unwrap();

        let weights = |pipeline: &Pipeline, name: &str| {
            let path = dir.path().join(name);
            pipeline.save(&path).unwrap();
            let part = |part: &str| {
                std::fs::read(path.join(part).join("diffusion_pytorch_model.safetensors")).unwrap()
            };
            [part("transformer"), part("vae")]
        };
        let expected = weights(&pipeline, &format!("{name}-expected"));
        for (file, warnings) in [(&file, 0), (&other, 1)] {
            let again = load(file, &configs).unwrap();
            assert_eq!(again.warnings.len(), warnings, "{:?}", again.warnings);
            let name = file.file_stem().unwrap().to_str().unwrap();
            assert!(weights(&again, &format!("{name}-dir")) == expected, "{name}");
        }
        let [original, key] = layer;
        let missing = read.iter().filter(|(key, _)| !key.contains(original));
        safetensors::serialize_to_file(missing, None, &other).unwrap();
        let message = load(&other, &configs).unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
        let stray = read.iter().map(|(key, view)| (key.to_owned(), view));
        let stray = stray.chain([("stray.weight".to_owned(), one)]);
        safetensors::serialize_to_file(stray, None, &other).unwrap();
        let message = load(&other, &configs).unwrap_err().to_string();
        assert!(message.contains("stray.weight"), "{message}");
    }
}

#[test]
fn a_transformer_of_another_family_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let models = with_transformers(dir.path());
    for (WithTransformer { name, label, base, mark, .. }, other) in
        models.iter().zip(models.iter().rev())
    {
        let file = dir.path().join(format!("{name}.safetensors"));
        let pipeline = Pipeline::load(base, &Device::default()).unwrap();
        pipeline.save_single_file(&file, FloatDType::F32).unwrap();
        let refused = |file: &Path, configs: &Path| load(file, configs).unwrap_err().to_string();
        for (configs, theirs) in [(&toybox(), "Stable Diffusion"), (&other.base, other.label)] {
            let message = refused(&file, configs);
            let [is, are] = [format!("a transformer of {label}"), format!("are {theirs}'s")];
            assert!(message.contains(&is) && message.contains(&are), "{message}");
        }
        // A UNet, and the transformer in the names of diffusers.
        let weights = "diffusion_pytorch_model.safetensors";
        for file in [toybox().join("unet").join(weights), base.join("transformer").join(weights)] {
            let message = refused(&file, base);
            assert!(message.contains(&format!("does not have `{mark}`")), "{message}");
        }
    }
}
