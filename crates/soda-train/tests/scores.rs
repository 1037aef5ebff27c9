//! The scores of true images, taken as samples, agree with transformers, Pillow and NumPy.
//!
//! `scores.py --fixture` writes the fixture. The same script scores the folder of a run.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;

use burn::tensor::Device;
use serde_json::Value;
use soda_models::metrics::Judges;
use soda_train::{Dataset, DatasetImages, ScoreReference, score};

/// Features agree to 2e-5 of their largest value (`soda-models/tests/judges.rs`), and a mean of cosines is
/// more precise. A wrong pairing, mean or prompt changes a score by 1e-2 or more.
const TOLERANCE: f64 = 1e-4;

fn toybox(name: &str) -> PathBuf {
    soda_testing::workspace_path("examples/toybox").join(name)
}

/// A bundled data set and the reference of its prompts.
fn read(judges: &Judges, name: &str) -> (Dataset, ScoreReference) {
    let data = Dataset::read(&toybox(name), None).unwrap();
    let pictures = DatasetImages::read(&data, &[], 64).unwrap();
    let reference = pictures.reference(&data, &data.eval_prompts, Some(judges)).unwrap();
    (data, reference)
}

#[test]
fn scores_agree_with_an_independent_computation() {
    let judges = Judges::load(&toybox("eval"), &Device::default()).unwrap();
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/scores.json")).unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let name = case["data"].as_str().unwrap();
        let (data, reference) = read(&judges, name);
        let drawn = read(&judges, case["drawn"].as_str().unwrap()).1.truth;
        assert_eq!(reference.prompts[0], case["asked"], "the identifier is left out");

        let scores = score(&judges, &drawn, &reference).unwrap();
        let scores = scores.with_drift(&judges, &drawn, &reference.truth).unwrap();
        let found = serde_json::to_value(scores).unwrap();
        let expected = case["scores"].as_object().unwrap();
        assert_eq!(found.as_object().unwrap().len(), expected.len(), "{found}");
        for (score, expected) in expected {
            let distance = (found[score].as_f64().unwrap() - expected.as_f64().unwrap()).abs();
            assert!(distance < TOLERANCE, "{name}, {score}: {distance:e} from {expected}");
        }

        // The judge does not know the identifier: with it the score differs.
        let prompts = data.eval_prompts.clone();
        let with = score(&judges, &drawn, &ScoreReference { prompts, ..reference }).unwrap().clip_t;
        let without = expected["clip_t"].as_f64().unwrap();
        assert!((f64::from(with) - without).abs() > TOLERANCE, "{name}: {with}");
    }
}

/// All pictures of a large data set count, and some of them are shown.
#[test]
fn every_picture_of_a_large_data_set_counts() {
    let judges = Judges::load(&toybox("eval"), &Device::default()).unwrap();
    let mug = toybox("subjects/castle_mug/00.png");
    let (folder, house) = (tempfile::tempdir().unwrap(), toybox("subjects/garden_house/00.png"));
    // More than are shown, and than are judged at once. The last one differs.
    const COUNT: usize = 40;
    for index in 0..COUNT {
        let from = if index == COUNT - 1 { &house } else { &mug };
        std::fs::copy(from, folder.path().join(format!("{index:02}.png"))).unwrap();
    }
    let data = Dataset::read(folder.path(), Some("a mug")).unwrap();
    let pictures = DatasetImages::read(&data, &[], 64).unwrap();
    assert_eq!(pictures.training.len(), 24);
    let drawn = [pictures.training[0].clone()];
    let prompts = ["a mug".to_owned()];
    let found = |pictures: &DatasetImages, data: &Dataset| {
        let reference = pictures.reference(data, &prompts, Some(&judges)).unwrap();
        score(&judges, &drawn, &reference).unwrap().dino
    };
    let all = found(&pictures, &data);
    let mut one = Dataset::read(folder.path(), Some("a mug")).unwrap();
    one.examples.drain(..COUNT - 1);
    let of_house = found(&DatasetImages::read(&one, &[], 64).unwrap(), &one);
    let expected = ((COUNT - 1) as f32 + of_house) / COUNT as f32;
    assert!(of_house < 0.9, "{of_house}");
    assert!((all - expected).abs() < 1e-6, "{all} for {expected}");
}
