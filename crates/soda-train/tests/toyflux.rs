//! Runs on the bundled transformer: the adapter that is learnt, and what it draws.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use soda_models::pipeline::{GenerateConfig, LoadOptions, Pipeline};
use soda_pipeline::{
    AdapterFile, Component, LoadAdapterOptions, MergeOptions, PipelineError, fuse_adapter,
    merge_adapters,
};
use soda_testing::{max_abs, workspace_path};
use soda_train::{
    Personalisation, RunFolder, RunTarget, TrainConfig, TrainError, apply_setting, preset,
};

fn config(settings: &[&str]) -> TrainConfig {
    let mut table = preset("toybox").unwrap();
    let base = format!("base={}", workspace_path("examples/toyflux/base").display());
    let data = format!("data={}", workspace_path("examples/toybox/subjects/castle_mug").display());
    let common = ["method=lora", "steps=3", "batch_size=2", "optimizer.spectrum_lr=1e-2"];
    let short = ["samples.prompts=['a sks mug']", "samples.steps=1", "validation.every=1"];
    for setting in [base.as_str(), &data].iter().chain(&common).chain(&short).chain(settings) {
        apply_setting(&mut table, setting).unwrap();
    }
    TrainConfig::from_table(table).unwrap()
}

/// Trains in the folder `root`. Returns the adapter.
fn train(root: &Path, name: &str, settings: &[&str]) -> AdapterFile {
    let run = Personalisation::new(config(settings), &Device::default()).unwrap();
    let target = RunTarget::New { root, name: Some(name) };
    let summary = run.run(target, &AtomicBool::new(false), &mut |_| ()).unwrap();
    AdapterFile::read(&summary.folder.join(RunFolder::ADAPTER)).unwrap()
}

#[test]
fn a_transformer_is_trained_and_draws_what_it_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let file = train(folder.path(), "run", &["objective.logit_normal=[0.0, 1.0]"]);
    assert_eq!(file.adapters.keys().collect::<Vec<_>>(), [&Component::Transformer]);
    // Both double blocks have eight projections, and the six single blocks two.
    let part = &file.adapters[&Component::Transformer];
    assert_eq!(part.num_weights(), 28);
    let second = part.tensors.iter().filter(|(key, _)| key.ends_with(".b"));
    let learnt = max_abs(second.flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()));
    assert!(learnt > 1e-3, "{learnt}");
    // Other timesteps give another adapter.
    let other = train(folder.path(), "shifted", &["objective.timestep_shift=3.0"]);
    assert_ne!(other.adapters[&Component::Transformer].tensors, part.tensors);

    let base = workspace_path("examples/toyflux/base");
    let mut pipeline = Pipeline::load(&base, &Device::default()).unwrap();
    let request = GenerateConfig {
        prompts: vec!["a sks mug".to_owned()],
        steps: 2,
        ..GenerateConfig::default()
    };
    let draw = |pipeline: &Pipeline| pipeline.generate(&request, &mut |_, _| {}).unwrap();
    let plain = draw(&pipeline);
    fuse_adapter(&mut pipeline, &file, LoadAdapterOptions::default()).unwrap();
    let adapted = draw(&pipeline);
    assert_ne!(adapted, plain);
    let merged = folder.path().join("merged");
    pipeline.save(&merged).unwrap();
    assert_eq!(draw(&Pipeline::load(&merged, &Device::default()).unwrap()), adapted);
}

/// An adapter holds how its prompts were encoded. A base that encodes them otherwise is refused.
#[test]
fn the_encoding_of_prompts_goes_with_the_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let file = train(folder.path(), "run", &["text_encoder_out_layers=[5, 14, -1]", "steps=1"]);
    let base = workspace_path("examples/toyflux/base");
    let encoding = file.header.prompt_encoding.clone();
    assert_eq!(encoding.text_encoder_out_layers.as_deref(), Some(&[5, 14, 28][..]));
    let options = LoadOptions { prompt_encoding: encoding, ..LoadOptions::default() };
    let mut pipeline = Pipeline::load_with(&base, &options, &Device::default()).unwrap();
    fuse_adapter(&mut pipeline, &file, LoadAdapterOptions::default()).unwrap();

    let mut plain = Pipeline::load(&base, &Device::default()).unwrap();
    let refused = |result: Result<(), PipelineError>| {
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("trained with text_encoder_out_layers = [5, 14, 28]"),
            "{message}"
        );
    };
    refused(fuse_adapter(&mut plain, &file, LoadAdapterOptions::default()));
    refused(merge_adapters(&mut plain, &[(&file, 1.0)], MergeOptions::default()));
}

/// All prompts of a run are known before its first step: those of shuffled tags, held-out pictures, class
/// images and dropped captions too.
#[test]
fn every_prompt_of_a_run_is_encoded_when_the_text_encoder_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("tags");
    std::fs::create_dir(&data).unwrap();
    for index in 0..4 {
        let picture = workspace_path(format!("examples/toybox/subjects/castle_mug/0{index}.png"));
        std::fs::copy(picture, data.join(format!("{index}.png"))).unwrap();
        std::fs::write(data.join(format!("{index}.txt")), format!("[trigger], red, {index}, big"))
            .unwrap();
    }
    let data = format!("data={}", data.display());
    train(
        folder.path(),
        "run",
        &[
            &data,
            "trigger=sks mug",
            "augment.tag_orders=3",
            "augment.caption_dropout=0.5",
            "validation.held_out=0.25",
            "prior.prompt=a photo of a mug",
            "prior.count=2",
            "samples.prompts=['a [trigger] in the snow']",
            "samples.unrelated=['a boat']",
            "samples.every=1",
            "steps=2",
        ],
    );
}

/// Fewer pixels make fewer tokens. The samples have them too.
#[test]
fn the_resolution_is_that_of_training_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let file = train(folder.path(), "run", &["resolution=48", "steps=1"]);
    let native = train(folder.path(), "native", &["steps=1"]);
    let tensors = |file: &AdapterFile| file.adapters[&Component::Transformer].tensors.clone();
    assert_ne!(tensors(&file), tensors(&native));
    let grid = image::open(folder.path().join("run/samples.png")).unwrap();
    // Three rows, magnified three times to be legible, between margins of 4.
    assert_eq!(grid.height(), 3 * 3 * 48 + 4 * 4);
    for (value, needle) in
        [("44", "multiples of 8"), ("0", "multiples of 8"), ("1000000", "pixels")]
    {
        let refused =
            Personalisation::new(config(&[&format!("resolution={value}")]), &Device::default());
        let message = refused.err().map(|error: TrainError| error.to_string()).unwrap_or_default();
        assert!(message.contains(needle), "{value}: {message:?}");
    }
}

#[test]
fn settings_that_a_transformer_lacks_are_refused() {
    for (setting, needle) in [
        ("text_encoder.enabled=true", "`text_encoder`"),
        ("tokens.words={'<mug>'='mug'}", "`tokens`"),
        ("objective.prediction=epsilon", "prediction"),
        ("objective.zero_terminal_snr=true", "prediction"),
    ] {
        let refused = Personalisation::new(config(&[setting]), &Device::default());
        let message = refused.err().map(|error: TrainError| error.to_string()).unwrap_or_default();
        assert!(message.contains(needle), "{setting}: {message:?}");
    }
}
