//! The plans in `examples/compare`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;

use soda_compare::{CompareError, ComparisonConfig, ComparisonPlan};
use soda_train::{ObjectiveConfig, Schedule};

fn plan(text: &str) -> Result<ComparisonPlan, CompareError> {
    ComparisonConfig::from_toml(text)?.check()
}

#[test]
fn the_example_plans_are_valid() {
    let folder = soda_testing::workspace_path("examples/compare");
    let mut plans = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let checked = plan(&std::fs::read_to_string(&path).unwrap());
        assert!(checked.is_ok(), "{}: {:?}", path.display(), checked.err());
        plans += 1;
    }
    assert!(plans >= 6);
}

/// The settings of PEFT's published runs of `lora/flux2-klein-default`.
#[test]
fn the_plan_of_pefts_benchmark_has_its_settings() {
    let path = soda_testing::workspace_path("examples/compare/peft-image-gen.toml");
    let plan = plan(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!((plan.num_searched(), plan.num_scored()), (0, 6 * 3));
    for config in plan.configs() {
        let sizes =
            (config.resolution, config.steps, config.batch_size, config.max_sequence_length);
        assert_eq!(sizes, (Some(512), 750, 2, Some(512)));
        assert_eq!(config.text_encoder_out_layers.as_deref(), Some(&[10, 20, 30][..]));
        let optimizer = &config.optimizer;
        assert_eq!((optimizer.spectrum_weight_decay, optimizer.max_grad_norm), (1e-4, 1.0));
        assert_eq!((optimizer.schedule, optimizer.warmup_steps), (Schedule::Constant, 0));
        let samples = &config.samples;
        assert_eq!((samples.steps, samples.guidance, samples.unrelated.len()), (20, 3.5, 10));
        // The prompts that are scored are those of the data set's test pictures.
        assert!(samples.prompts.is_empty() && config.objective == ObjectiveConfig::default());
    }
}

#[test]
fn every_dreambooth_subject_is_prompted_by_its_class() {
    let path = soda_testing::workspace_path("examples/compare/dreambooth.toml");
    let plan = plan(&std::fs::read_to_string(path).unwrap()).unwrap();
    let subjects: BTreeSet<_> = plan.configs().map(|config| &config.data).collect();
    assert_eq!(subjects.len(), 30);
    assert_eq!((plan.num_searched(), plan.num_scored()), (4 * 33, 26 * 11));
    for config in plan.configs() {
        let trigger = config.trigger.as_deref().unwrap();
        assert!(trigger.starts_with("sks ") && !trigger.contains('{'), "{trigger}");
        let prompts: BTreeSet<_> = config.samples.prompts.iter().collect();
        assert_eq!(prompts.len(), 12, "{}", config.data.display());
        assert!(prompts.iter().all(|prompt| prompt.contains("[trigger]")), "{prompts:?}");
        let wears_hat = prompts.iter().any(|prompt| prompt.contains("straw hat"));
        assert_eq!(
            wears_hat,
            ["sks dog", "sks cat"].contains(&trigger),
            "only live subjects wear a hat"
        );
        assert!(config.validation.held_out > 0.0, "there are no true images");
    }
}
