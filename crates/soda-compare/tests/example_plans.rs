//! The plans in `examples/compare`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;

use soda_compare::{CompareError, ComparisonConfig, ComparisonPlan};

fn plan(text: &str) -> Result<ComparisonPlan, CompareError> {
    ComparisonConfig::from_toml(text)?.check()
}

#[test]
fn the_example_plans_are_valid() {
    let folder = soda_testing::workspace_path("examples/compare");
    let mut plans = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let checked = plan(&std::fs::read_to_string(&path).unwrap());
        assert!(checked.is_ok(), "{}: {:?}", path.display(), checked.err());
        plans += 1;
    }
    assert!(plans >= 6);
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
