//! Damaged configurations, data folders and checkpoints give a value or an error: no panic and no hang.
//! `CONTRIBUTING.md` says how to run the long form.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use safetensors::SafeTensors;
use sha2::{Digest as _, Sha256};
use soda_models::pipeline::Pipeline;
use soda_testing::{Mutator, fuzz};
use soda_train::{
    Checkpoint, Dataset, EncodeCache, EncodeConfig, EncodeOptions, EncodedDataset, Example,
    PRESETS, RunScores, TrainConfig, Trainer, apply_setting, preset, read_step_scores,
};

#[test]
fn no_bytes_make_a_configuration_panic() {
    let with_base = |name: &str| {
        let mut table = preset(name).unwrap();
        for setting in ["base=\"base\"", "data=\"data\"", "prompt=\"a [trigger]\""] {
            apply_setting(&mut table, setting).unwrap();
        }
        TrainConfig::from_table(table).unwrap().to_toml().unwrap().into_bytes()
    };
    let seeds: Vec<_> = PRESETS.iter().map(|preset| with_base(preset.name)).collect();
    fuzz("config.toml", &seeds, 1000, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(config) = TrainConfig::from_toml(text) {
            let _ = (config.check().map_err(|error| error.to_string()), config.to_toml());
        }
    });
}

#[test]
fn no_bytes_make_a_data_folder_panic() {
    let folder = tempfile::tempdir().unwrap();
    let images = ["a.png", "b.jpg", "c.webp"];
    images.iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
    let line = |name: &str, repeats: usize| {
        format!(
            "{{\"file_name\": \"{name}\", \"text\": \"a [trigger]\", \"repeats\": {repeats}}}\n"
        )
    };
    let metadata: String = images.iter().map(|name| line(name, 3)).collect();
    let subject = r#"{"identifier": "sks", "class": "mug", "eval_prompts": ["a sks mug", "2"]}"#;
    let style = r#"{"identifier": "zwx", "phrase": "in zwx style", "eval_prompts": ["a mug"]}"#;
    for (name, seed) in [
        ("metadata.jsonl", &metadata[..]),
        ("subject.json", subject),
        ("style.json", style),
        ("a.txt", "a sks mug\n"),
    ] {
        let path = folder.path().join(name);
        fuzz(name, &[seed.as_bytes().to_vec()], 400, |input| {
            std::fs::write(&path, input).unwrap();
            if let Ok(data) = Dataset::read(folder.path(), Some("for all")) {
                let mut data = data.with_trigger("sks mug");
                let _ = (data.without_identifier("a sks mug"), data.hold_out(0.5, 1));
            }
        });
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn no_text_makes_a_setting_panic() {
    let settings = [
        "optimizer.rotation_lr=1e-3",
        "method=lora",
        "method.rank=8",
        "samples.prompts=['a [trigger]', 'b']",
        r#"tokens.words={"<mug>"="mug"}"#,
        "prior.prompt=a mug",
    ];
    let seeds = settings.map(|setting| setting.as_bytes().to_vec());
    let table = preset("toybox").unwrap();
    fuzz("setting", &seeds, 1000, |input| {
        let mut table = table.clone();
        let setting = String::from_utf8_lossy(input);
        if apply_setting(&mut table, &setting).map_err(|error| error.to_string()).is_ok() {
            let config = TrainConfig::from_table(table).map_err(|error| error.to_string());
            let _ = config.map(|config| config.check().map_err(|error| error.to_string()));
        }
    });
}

/// The content of a file of tensors with the digest that it should have, so that damage is not found by it.
fn with_right_digest(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    let mut metadata = metadata.metadata().clone()?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let views: BTreeMap<_, _> = file.tensors().into_iter().collect();
    let mut hash = Sha256::new();
    hash.update(metadata.get("header")?);
    for (name, view) in &views {
        hash.update(name);
        hash.update(view.data());
    }
    let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    metadata.insert("digest".to_owned(), digest);
    safetensors::serialize(views, Some(metadata)).ok()
}

/// Half of the inputs with the right digest, as far as they have one.
fn half_repaired(input: &[u8]) -> Vec<u8> {
    let sum = input.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    let repaired = if Mutator::new(sum).below(2) == 0 { None } else { with_right_digest(input) };
    repaired.unwrap_or_else(|| input.to_vec())
}

/// Frees what burn stores of parameters that require gradients. It does so in a backward pass only, and the
/// trainers of a checkpoint make no step.
fn free_leaves() {
    let leaf = Tensor::<1>::ones([1], &Device::default().autodiff()).require_grad();
    drop(leaf.sum().backward());
}

/// A checkpoint that has its digest is not believed either: its tensors and counters go to a trainer.
#[test]
fn no_bytes_make_a_checkpoint_panic() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::default();
    let configs = [
        common::settings(&["optimizer.ema_decay=0.9"]),
        common::settings(&["method=lora", "method.rank=1", "optimizer.flat=adamw-8bit"]),
        common::settings(&[
            "method=lora",
            "method.rank=1",
            "optimizer.flat=prodigy",
            "optimizer.spectrum_lr=1",
        ]),
    ];
    let networks = configs.each_ref().map(|config| common::adapted_denoiser(config, &device));
    let trainers = || {
        let pairs = configs.iter().zip(&networks);
        pairs.map(|(config, unet)| Trainer::new(unet.clone(), &config.method, config).unwrap())
    };
    let batch = common::Fixture::read().batch(0, &device);
    let mut seeds = Vec::new();
    for (number, mut trainer) in trainers().enumerate() {
        let checkpoints = folder.path().join(format!("seed-{number}"));
        trainer.step_on(&batch).unwrap();
        let checkpoint = Checkpoint { state: trainer.state(), ..Checkpoint::default() };
        checkpoint.write(&checkpoints, 1).unwrap();
        let whole = std::fs::read(checkpoints.join("00000001.safetensors")).unwrap();
        assert!(with_right_digest(&whole).is_some());
        seeds.push(whole);
    }
    let checkpoints = folder.path().join("checkpoints");
    std::fs::create_dir(&checkpoints).unwrap();
    let mut restored = 0;
    fuzz("checkpoint", &seeds, 300, |input| {
        std::fs::write(checkpoints.join("00000007.safetensors"), half_repaired(input)).unwrap();
        if let Ok(Some(checkpoint)) = Checkpoint::newest(&checkpoints, |_| ()) {
            for trainer in trainers() {
                restored += usize::from(trainer.restored(checkpoint.state.clone()).is_some());
            }
            free_leaves();
        }
    });
    // The harness would find nothing in checkpoints that are all refused at once.
    assert!(restored > 0 || std::env::var_os("SODA_FUZZ_TARGET").is_some());
}

#[test]
fn no_bytes_make_a_run_folder_panic() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, seed: &str, reader: &dyn Fn(&Path)| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        fuzz(name, &[seed.as_bytes().to_vec()], 300, |input| {
            std::fs::write(&path, input).unwrap();
            reader(folder.path());
        });
    };
    let scores = r#"{"scores": {"clip_t": 0.2, "clip_i": 0.7, "dino": 0.5}, "prompts": ["a mug"]}"#;
    read("scores.json", scores, &|folder| drop(RunScores::read(folder)));
    std::fs::create_dir_all(folder.path().join("samples")).unwrap();
    std::fs::write(folder.path().join("samples/00000007.png"), "").unwrap();
    read("samples/00000007.json", scores, &|folder| drop(read_step_scores(folder)));
}

/// A damaged entry of the cache is made again. One with the right digest and other shapes is no entry.
#[test]
fn no_bytes_make_an_encoding_panic() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::load(&common::path("examples/toybox/base"), &Device::default());
    let pipeline = pipeline.unwrap();
    let image = common::path("examples/toybox/subjects/castle_mug/00.png");
    let examples = [Example { image, caption: "a mug".to_owned(), repeats: 1 }];
    let cache = EncodeCache::new(folder.path().to_owned(), &pipeline);
    let encode = || {
        let options = EncodeOptions { cache: Some(&cache), ..EncodeOptions::default() };
        EncodedDataset::new(&pipeline, &examples, &EncodeConfig::default(), options).unwrap().len()
    };
    assert_eq!(encode(), 1);
    let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut entries: Vec<PathBuf> = entries.collect();
    entries.sort();
    for kind in ["latents", "text"] {
        let is_kind = |path: &&PathBuf| path.extension().is_some_and(|found| found == kind);
        let path = entries.iter().find(is_kind).unwrap();
        let whole = std::fs::read(path).unwrap();
        assert!(with_right_digest(&whole).is_some());
        fuzz(&format!("cached {kind}"), &[whole], 20, |input| {
            std::fs::write(path, half_repaired(input)).unwrap();
            assert_eq!(encode(), 1);
        });
    }
}
