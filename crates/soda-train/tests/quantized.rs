//! Runs on a base that is quantized or in host memory: what they learn, and that a stopped one goes on to
//! the same bits.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use soda_kernels::stored_weights;
use soda_models::pipeline::Pipeline;
use soda_pipeline::{AdapterFile, LoadAdapterOptions, fuse_adapter};
use soda_testing::{relative_error, workspace_path};
use soda_train::{
    Event, Personalisation, RunFolder, RunTarget, TrainConfig, TrainError, apply_setting, preset,
};

fn config(base: &str, settings: &[&str]) -> TrainConfig {
    let mut table = preset("toybox").unwrap();
    let base = format!("base={}", workspace_path(format!("examples/{base}/base")).display());
    let data = format!("data={}", workspace_path("examples/toybox/subjects/castle_mug").display());
    let common = ["method=lora", "steps=2", "batch_size=2", "optimizer.spectrum_lr=1e-2"];
    let short = ["samples.prompts=['a sks mug']", "samples.steps=1", "validation.every=2"];
    for setting in [base.as_str(), &data].iter().chain(&common).chain(&short).chain(settings) {
        apply_setting(&mut table, setting).unwrap();
    }
    TrainConfig::from_table(table).unwrap()
}

/// Trains in the folder `root`. Returns the adapter and the losses.
fn train(root: &Path, name: &str, config: TrainConfig) -> (AdapterFile, Vec<f64>) {
    let run = Personalisation::new(config, &Device::default()).unwrap();
    let target = RunTarget::New { root, name: Some(name) };
    let summary = run.run(target, &AtomicBool::new(false), &mut |_| ()).unwrap();
    let losses = summary.history.losses().iter().map(|loss| f64::from(*loss)).collect();
    (AdapterFile::read(&summary.folder.join(RunFolder::ADAPTER)).unwrap(), losses)
}

/// The losses are those of the base in floats, to the error of the format. The adapter is one of the base in
/// floats.
#[test]
fn a_run_on_a_quantized_base_learns_what_one_in_floats_does() {
    let folder = tempfile::tempdir().unwrap();
    let formats =
        [("int8", 0.01), ("fp8", 0.03), ("nf4", 0.1), ("fp8,activation_precision=fp8", 0.06)];
    for (base, formats) in [("toybox", &formats[..]), ("toyflux", &formats[..1])] {
        let (_, floats) = train(folder.path(), base, config(base, &[]));
        for &(format, tolerance) in formats {
            let settings = format!("base_precision={format}");
            let settings: Vec<&str> = settings.split(',').collect();
            let name = format!("{base}-{}", format.replace([',', '='], "-"));
            let (file, losses) = train(folder.path(), &name, config(base, &settings));
            let off = relative_error(&losses, &floats);
            assert!(off > 0.0 && off <= tolerance, "{name}: losses off by {off}");
            let base = workspace_path(format!("examples/{base}/base"));
            let mut pipeline = Pipeline::load(&base, &Device::default()).unwrap();
            fuse_adapter(&mut pipeline, &file, LoadAdapterOptions::default()).unwrap();
        }
    }
}

/// Blocks in host memory are the same numbers. Products with them are added in another order.
#[test]
fn a_run_with_offloaded_blocks_learns_what_one_without_does() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str]); 3] = [
        ("toybox", &[]),
        ("toyflux", &["checkpointing=block"]),
        ("toyflux", &["base_precision=int8"]),
    ];
    for (index, (base, settings)) in cases.into_iter().enumerate() {
        let (_, on_device) = train(folder.path(), &format!("{index}"), config(base, settings));
        // More than there are: all.
        let some = if index == 0 { &["offload=3", "offload=1000"][..] } else { &["offload=1000"] };
        for &blocks in some {
            let settings = [settings, &[blocks, "text_encoder_offload=2"]].concat();
            let name = format!("{index}-{blocks}");
            let (file, losses) = train(folder.path(), &name, config(base, &settings));
            let off = relative_error(&losses, &on_device);
            assert!(off <= 1e-5, "{base} {settings:?}: losses off by {off}");
            let base = workspace_path(format!("examples/{base}/base"));
            let mut pipeline = Pipeline::load(&base, &Device::default()).unwrap();
            fuse_adapter(&mut pipeline, &file, LoadAdapterOptions::default()).unwrap();
        }
    }
}

/// Where the settings say so, and nowhere else.
#[test]
fn blocks_of_denoiser_and_text_encoders_are_in_host_memory() {
    use soda_models::pipeline::LoadOptions;
    use soda_models::weights::{WeightPrecision, WeightStorage};

    let offload = |blocks| WeightStorage { offload: blocks, ..WeightStorage::default() };
    let denoiser = WeightPrecision { storage: offload(2), ..burn::tensor::FloatDType::F32.into() };
    let storage = offload(1);
    let options = LoadOptions { storage, denoiser: Some(denoiser), ..LoadOptions::default() };
    let base = workspace_path("examples/toybox/base");
    let networks = Pipeline::load_with(&base, &options, &Device::default()).unwrap().networks();
    let blocks = |weights: Vec<String>, segment: &str| {
        let block = |path: &String| {
            let (before, rest) = path.split_once(segment).unwrap();
            format!("{before}{}", rest.split('.').next().unwrap())
        };
        weights.iter().map(block).collect::<std::collections::BTreeSet<_>>().len()
    };
    let found = stored_weights(&networks.denoiser);
    assert!(found.values().all(|weight| weight.format().is_offloaded));
    assert_eq!(blocks(found.into_keys().collect(), "transformer_blocks."), 2);
    let found = stored_weights(&networks.text_encoder.unwrap());
    assert_eq!(blocks(found.into_keys().collect(), "layers."), 1);
}

#[test]
fn a_stopped_run_on_a_quantized_base_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["base_precision=nf4", "offload=4", "precision=bf16", "checkpointing=block"];
    let device = Device::default();
    let precision = if device.supports_dtype(burn::tensor::FloatDType::BF16) { 4 } else { 2 };
    let config = || {
        let longer = ["steps=4", "validation.every=1"];
        config("toyflux", &[&settings[..precision], &longer].concat())
    };
    let (expected, _) = train(folder.path(), "straight", config());
    let stop = AtomicBool::new(false);
    let run = Personalisation::new(config(), &device).unwrap();
    let target = RunTarget::New { root: folder.path(), name: Some("stopped") };
    let error = run.run(target, &stop, &mut |event| {
        if let Event::Progress { done: 2, loss: Some(_), .. } = event {
            stop.store(true, Ordering::Relaxed);
        }
    });
    // The losses of a step are read during the next one.
    let stopped = matches!(error, Err(TrainError::Stopped { step: 2 | 3, .. }));
    assert!(stopped, "{:?}", error.map(|summary| summary.folder));
    let (run, opened) = Personalisation::resume(&folder.path().join("stopped"), &device).unwrap();
    let target = RunTarget::Resumed(opened);
    let summary = run.run(target, &AtomicBool::new(false), &mut |_| ()).unwrap();
    let found: AdapterFile = AdapterFile::read(&summary.folder.join(RunFolder::ADAPTER)).unwrap();
    for (component, state) in &expected.adapters {
        assert_eq!(found.adapters[component].tensors, state.tensors);
    }
}

/// Weights under adapters are loaded as the file has them, and all others of the blocks in the format.
#[test]
fn a_base_is_quantized_but_for_the_weights_under_adapters() {
    use soda_models::pipeline::LoadOptions;
    use soda_models::weights::{WeightPrecision, WeightStorage, store};

    let storage = WeightStorage {
        quantization: Some(soda_kernels::QuantFormat::Int8),
        ..WeightStorage::default()
    };
    let dtype = burn::tensor::FloatDType::F32;
    let path = "transformer_blocks.0.attn.to_q.weight".to_owned();
    let denoiser = WeightPrecision { dtype, storage, exact: [path.clone()].into() };
    let options = LoadOptions { storage, denoiser: Some(denoiser), ..LoadOptions::default() };
    let base = workspace_path("examples/toyflux/base");
    let pipeline = Pipeline::load_with(&base, &options, &Device::default()).unwrap();
    let loaded = stored_weights(&pipeline.denoiser);
    let waiting = loaded.iter().filter(|(_, weight)| weight.is_waiting());
    assert_eq!(waiting.map(|(path, _)| path).collect::<Vec<_>>(), [&path]);
    let all = stored_weights(&store(pipeline.denoiser, storage, dtype));
    assert!(all.len() > 20 && all.len() == loaded.len());
    assert!(all.values().all(|weight| !weight.is_waiting()));
    // The codes of a loaded network are those of the file, whenever they are made.
    let floats = Pipeline::load(&base, &Device::default()).unwrap();
    let later = stored_weights(&store(floats.denoiser, storage, dtype));
    assert_eq!(later.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
    for (path, weight) in &later {
        assert_eq!(weight.to_bytes(), all[path].to_bytes(), "{path}");
    }
}
