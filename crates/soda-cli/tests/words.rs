//! Textual inversion with an adapter: training, images, merged models, export and import.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "../../soda-models/tests/common/mod.rs"]
mod models;
#[path = "common/run.rs"]
mod run;

use std::path::Path;

use common::{soda, toybox};
use models::{Fixture, write_pipeline};
use run::run;
use soda_pipeline::{AdapterFile, Component};
use soda_testing::max_abs_diff;

/// Trains three steps of LoRA and of the words in `options` on `base`.
fn train(folder: &Path, base: &str, name: &str, options: &[&str]) -> AdapterFile {
    let data = toybox("subjects/castle_mug");
    let common = [
        &["train", "--base", base, "--data", data.to_str().unwrap(), "--name", name][..],
        &["--method", "lora", "--target", "attn2.*to_(k|v)\\.weight$", "--steps", "3"],
        &["--batch-size", "2", "--spectrum-lr", "1e-2", "--sample", "a sks mug"],
        &["--set", "samples.steps=2", "--set", "validation.every=1"],
    ];
    let said = run(folder, &[&common.concat(), options].concat());
    assert!(said.contains("captions are read in every step"), "{said}");
    AdapterFile::read(&folder.join(format!("runs/{name}/adapter.safetensors"))).unwrap()
}

/// The pixels of the image of a prompt.
fn draw(folder: &Path, base: &str, options: &[&str], out: &str) -> Vec<u8> {
    let common =
        ["generate", "--base", base, "--prompt", "a sks mug", "--steps", "2", "--out", out];
    run(folder, &[&common[..], options].concat());
    image::open(folder.join(out).join("seed0-00.png")).unwrap().into_rgb8().into_raw()
}

fn refused(folder: &Path, args: &[&str], needle: &str) {
    let output = soda(folder, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{said}");
    assert!(said.contains(needle), "{said}");
}

#[test]
fn a_word_is_trained_drawn_merged_exported_and_imported() {
    let desk = tempfile::tempdir().unwrap();
    let (folder, base) = (desk.path(), toybox("base"));
    let base = base.to_str().unwrap();
    // The captions contain `sks`, which the vocabulary has only as the end of a word.
    let options = ["--token", "sks=red", "--token-lr", "2e-2", "--set", "tokens.vectors=2"];
    let file = train(folder, base, "run", &options);
    assert_eq!(file.adapters.keys().collect::<Vec<_>>(), [&Component::Unet]);
    let vectors = &file.embeddings["sks"][&Component::TextEncoder];
    assert_eq!(vectors.shape().as_slice(), [2, 160]);
    assert!(file.header.trigger.iter().any(|words| words.contains("sks")));
    let losses = std::fs::read_to_string(folder.join("runs/run/loss.csv")).unwrap();
    // Without warm-up, the first step has the full learning rate.
    assert!(losses.lines().nth(2).unwrap().contains(",0.02,"), "{losses}");

    let adapter = "runs/run/adapter.safetensors";
    let drawn = draw(folder, base, &["--adapter", adapter], "drawn");
    let mut alone = file.clone();
    alone.embeddings.clear();
    alone.write(&folder.join("alone.st")).unwrap();
    assert_ne!(draw(folder, base, &["--adapter", "alone.st"], "alone"), drawn);

    // A merged directory needs no adapter.
    run(folder, &["merge", "--base", base, "--adapter", adapter, "--out", "merged"]);
    assert_eq!(draw(folder, "merged", &[], "of-merged"), drawn);

    // A LoRA and a word, exported separately and merged again.
    let export = ["export", "--base", base, "--adapter", adapter, "--format"];
    let said = run(folder, &[&export[..], &["kohya", "--out", "lora.safetensors"]].concat());
    assert!(said.contains("the word sks is not in this file"), "{said}");
    run(folder, &[&export[..], &["embeddings", "--out", "words"]].concat());
    let into = |path: &str, out: &str| run(folder, &["import", path, "--base", base, "--out", out]);
    into("lora.safetensors", "lora.st");
    let said = into("words/sks.safetensors", "word.st");
    assert!(said.contains("the word sks (2 vectors)"), "{said}");
    let word: AdapterFile = AdapterFile::read(&folder.join("word.st")).unwrap();
    assert_eq!(word.embeddings, file.embeddings);
    run(
        folder,
        &["merge", "--base", base, "--subject", "lora.st", "--style", "word.st", "--out", "both"],
    );
    let both = draw(folder, "both", &[], "of-both");
    let error = max_abs_diff(&both, &drawn);
    assert!(error <= 1.0, "{error}");

    // Equal words merge into one. Different words of the same name are refused.
    let mut other = word.clone();
    let values: Vec<f32> = vectors.iter::<f32>().map(|value| value + 1.0).collect();
    let values = burn::tensor::TensorData::new(values, [2, 160]);
    other.embeddings.get_mut("sks").unwrap().insert(Component::TextEncoder, values);
    other.write(&folder.join("other.st")).unwrap();
    let merge = ["merge", "--base", base, "--subject", adapter, "--style"];
    run(folder, &[&merge[..], &["word.st", "--out", "twice"]].concat());
    refused(
        folder,
        &[&merge[..], &["other.st", "--out", "clash"]].concat(),
        "both have the word `sks`",
    );
    refused(
        folder,
        &[&export[..2], &[base, "--adapter", "alone.st"], &["--format", "embeddings"][..]]
            .concat()
            .into_iter()
            .chain(["--out", "none"])
            .collect::<Vec<_>>(),
        "has no new words",
    );
}

#[test]
fn words_have_embeddings_in_both_text_encoders_of_sdxl() {
    let desk = tempfile::tempdir().unwrap();
    let folder = desk.path();
    std::fs::create_dir(folder.join("base")).unwrap();
    write_pipeline(&Fixture::read("pipeline-sdxl"), &folder.join("base"));
    let options = ["--token", "sks=mug", "--train-text-encoder", "--set", "checkpointing=block"];
    let file = train(folder, "base", "run", &options);
    let encoders: Vec<_> = file.embeddings["sks"].keys().copied().collect();
    assert_eq!(encoders, [Component::TextEncoder, Component::TextEncoder2]);
    let adapter = "runs/run/adapter.safetensors";
    let export = ["export", "--base", "base", "--adapter", adapter, "--format", "embeddings"];
    run(folder, &[&export[..], &["--out", "words"]].concat());
    run(folder, &["import", "words/sks.safetensors", "--base", "base", "--out", "word.st"]);
    let word: AdapterFile = AdapterFile::read(&folder.join("word.st")).unwrap();
    assert_eq!(word.embeddings, file.embeddings);
    let drawn = draw(folder, "base", &["--adapter", adapter], "drawn");
    run(folder, &["merge", "--base", "base", "--adapter", adapter, "--out", "merged"]);
    assert_eq!(draw(folder, "merged", &[], "of-merged"), drawn);
}

/// Invalid words are refused before anything long begins.
#[test]
fn words_that_cannot_be_trained_are_refused() {
    let desk = tempfile::tempdir().unwrap();
    let (folder, base, data) = (desk.path(), toybox("base"), toybox("subjects/castle_mug"));
    let train = ["train", "--base", base.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let check = |options: &[&str], needle: &str| {
        refused(folder, &[&train[..], options].concat(), needle);
    };
    check(&["--token", "two words=mug"], "without spaces");
    check(&["--token", "a=mug"], "the vocabulary has a as a token");
    check(&["--token", "<m>", "--set", "tokens.vectors=0"], "tokens.vectors");
    check(&["--token", "<m>", "--set", "encoder_precision=bf16"], "learn in f32");
    check(&["--token", "<unused>=mug"], "no caption has the new word `<unused>`");
    check(&["--set", "tokens.word={}"], "did you mean `words`");
    check(&["--set", "objective.zero_terminal_snr=true"], "v_prediction");

    // A folder of which nothing says what `[trigger]` stands for.
    let cups = folder.join("cups");
    std::fs::create_dir(&cups).unwrap();
    std::fs::copy(data.join("00.png"), cups.join("00.png")).unwrap();
    std::fs::write(cups.join("00.txt"), "a [trigger] cup").unwrap();
    let cups = ["train", "--base", base.to_str().unwrap(), "--data", "cups"];
    refused(folder, &cups, "set `trigger`");
    let checked = soda(folder, &["data", "check", "cups"]);
    assert_eq!(checked.status.code(), Some(1));
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("has `[trigger]`"), "{said}");
    assert!(!folder.join("runs").exists());
}
