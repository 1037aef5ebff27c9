//! Finished runs in the format of PEFT's method comparison.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use serde_json::{Value, json};
use soda_compare::{
    ComparisonConfig, ResultsFile, Run, RunMetrics, RunResult, Task as _, downsampled, peft_jsonl,
};
use soda_train::{Scores, StepScores};

const PLAN: &str = r#"
[train]
base = "models/toy"
judges = "eval"
steps = 300
batch_size = 2
accumulation = 3
precision = "bf16"
samples.every = 150
samples.unrelated = ["a red car"]

[score]
data = ["subjects/a"]
seeds = [7]

[[arm]]
name = "lora-32"
train.method = { name = "lora", rank = 32, alpha = 16.0 }

[[arm]]
name = "soda-svd"

[[arm]]
name = "full"
train.method = "full"
train.samples = { every = 0, unrelated = [] }
"#;

fn scores(dino: f32, truth_dino: Option<f32>, drift: Option<f32>) -> Scores {
    let (clip_t, clip_i, truth_clip_i) = (0.5, 0.625, truth_dino);
    let drift_dino = drift.map(|drift| drift / 2.0);
    Scores { clip_t, clip_i, dino, truth_clip_i, truth_dino, drift, drift_dino }
}

/// Metrics with losses of 1 in the first half of the run and 2 in the second. Without true images they are
/// those of a CPU and of an earlier version.
fn metrics(run: &Run, truth: Option<f32>) -> RunMetrics {
    let scored = |step| StepScores { step, scores: scores(0.25, truth, Some(0.125)) };
    let has_trace = run.config.samples.every > 0;
    let losses: Vec<f32> = (0..300).map(|step| (step / 150 + 1) as f32).collect();
    RunMetrics {
        before: scores(0.125, truth, None),
        after: scores(0.5, truth.map(|truth| truth + 0.25), has_trace.then_some(0.25)),
        truth: None,
        trace: if has_trace { vec![scored(150)] } else { vec![] },
        losses: downsampled(&losses),
        num_params: 10,
        file_size: 100,
        seconds_per_step: 0.5,
        peak_memory: Some(1 << 30),
        device_memory: truth.map(|_| 1 << 31),
        start_time: truth.map(|_| "2026-06-09T19:39:00".to_owned()),
        total_seconds: truth.map(|_| 170.5),
    }
}

/// The lines of all arms, with or without true images.
fn lines(plan: &str, truth: Option<f32>) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let plan = ComparisonConfig::from_toml(plan).unwrap().check().unwrap();
    let mut results = ResultsFile::<RunResult>::open(&folder.path().join("results.jsonl")).unwrap();
    let runs = plan.score_runs(&results);
    assert_eq!(peft_jsonl(&runs, &results), "", "no run has finished");
    for run in &runs {
        results.append(run.stored(metrics(run, truth))).unwrap();
    }
    let text = peft_jsonl(&runs, &results);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn metrics_have_the_field_names_of_peft() {
    let lines = lines(PLAN, Some(0.5));
    let names: Vec<&str> =
        lines.iter().map(|l| l["run_info"]["experiment_name"].as_str().unwrap()).collect();
    assert!(names[0].starts_with("lora/lora-32-a-7-") && names[1].starts_with("soda/soda-svd-a-7"));

    let config = &lines[0]["run_info"]["train_config"];
    for (field, value) in [
        ("model_id", json!("models/toy")),
        ("dataset_id", json!("subjects/a")),
        ("dtype", json!("bfloat16")),
        ("batch_size", json!(6)),
        ("max_steps", json!(300)),
        ("eval_steps", json!(150)),
        ("use_gc", json!(false)),
        ("seed", json!(7)),
        ("lr_scheduler", json!("cosine")),
        ("dino_model_id", json!("eval/dino")),
        ("drift_image_prompts", json!(["a red car"])),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
    let methods = lines.iter().map(|line| &line["run_info"]["peft_config"]);
    let lora = json!({
        "peft_type": "LORA", "r": 32, "lora_alpha": 16.0, "use_rslora": false, "use_dora": false
    });
    let expected = [&lora, &json!({ "peft_type": "SODA" }), &Value::Null];
    assert_eq!(methods.collect::<Vec<_>>(), expected);

    let info = &lines[0]["train_info"];
    assert_eq!((&info["train_time"], &info["status"]), (&json!(150.0), &json!("success")));
    assert_eq!((&info["file_size"], &info["num_trainable_params"]), (&json!(100), &json!(10)));
    for field in ["max", "reserved_avg", "reserved_99th"] {
        assert_eq!(info[format!("accelerator_memory_{field}")], json!(1_u64 << 31), "{field}");
    }
    let entry = |step: u32, name: &str, similarity: f32, loss: f32| {
        let samples = step * 6;
        json!({ "step": step, name: similarity, "train loss": loss, "train samples": samples })
    };
    let mut last = entry(300, "test dino_similarity", 0.75, 2.0);
    // PEFT measures the drift by DINO.
    last["drift"] = json!(0.125);
    let expected = json!([entry(150, "valid dino_similarity", 0.5, 1.0), last]);
    assert_eq!(info["metrics"], expected);
}

/// What the page of PEFT's comparison looks up in a file, by its `method_comparison/processing.py`. A field
/// that is absent ends the page.
#[test]
fn a_line_has_every_field_that_the_page_of_peft_reads() {
    for line in lines(PLAN, Some(0.5)).iter().take(2) {
        let last = line["train_info"]["metrics"].as_array().unwrap().last().unwrap();
        for (part, numbers, texts) in [
            (
                &line["run_info"],
                &["total_time"][..],
                &["experiment_name", "peft_branch", "created_at"][..],
            ),
            (&line["run_info"]["train_config"], &[], &["model_id"]),
            (&line["run_info"]["peft_config"], &[], &["peft_type"]),
            (
                &line["train_info"],
                &[
                    "accelerator_memory_reserved_avg",
                    "accelerator_memory_max",
                    "accelerator_memory_reserved_99th",
                    "train_time",
                    "file_size",
                    "num_trainable_params",
                ],
                &["status"],
            ),
            (last, &["train loss", "train samples", "test dino_similarity", "drift"], &[]),
            (
                &line["meta_info"]["package_info"],
                &[],
                &[
                    "peft-version",
                    "transformers-version",
                    "datasets-version",
                    "diffusers-version",
                    "torch-version",
                ],
            ),
        ] {
            for field in numbers {
                assert!(part[field].is_number(), "{field}: {part}");
            }
            for field in texts {
                assert!(part[field].is_string(), "{field}: {part}");
            }
        }
        assert_eq!(line["run_info"]["created_at"], "2026-06-09T19:39:00+00:00");
        assert!(line["meta_info"]["system_info"].is_object());
    }
}

#[test]
fn fields_that_are_not_measured_are_left_out() {
    // Similarity to the training images is not reported.
    let without = lines(PLAN, None);
    let entries = |line: &Value| line["train_info"]["metrics"].as_array().unwrap().clone();
    assert_eq!(
        entries(&without[0])[0],
        json!({ "step": 150, "train loss": 1.0, "train samples": 900 })
    );
    // This arm has no intermediate images and no unrelated prompts.
    let all = json!([{ "step": 300, "train loss": 1.5, "train samples": 1800 }]);
    assert_eq!(json!(entries(&without[2])), all);
    for line in &without {
        let text = line.to_string();
        for name in ["memory", "total", "created_at"] {
            assert!(!text.contains(name), "{name}: {text}");
        }
        let config = line["run_info"]["train_config"].as_object().unwrap();
        let nulls = config.iter().filter(|(_, value)| value.is_null()).count();
        assert_eq!(nulls, 0, "{text}");
    }
    let held_out = PLAN.replacen("[train]", "[train]\nvalidation.held_out = 0.25", 1);
    let last = entries(&lines(&held_out, None)[0])[1].clone();
    assert_eq!(last["test dino_similarity"], json!(0.5), "similarity to the held-out images");
}
