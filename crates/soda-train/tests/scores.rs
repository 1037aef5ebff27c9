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
