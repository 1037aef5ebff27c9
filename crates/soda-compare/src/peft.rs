//! Finished runs by the names of PEFT's method comparison (`method_comparison/image-gen/results/*.json`), a line each in
//! `peft.jsonl`, so that a method that only we have stands beside theirs.
//!
//! | field | here |
//! |---|---|
//! | `run_info.experiment_name` | the method, and [`Run::id`]: arm, data set, seed |
//! | `run_info.train_config` | |
//! | … `model_id`, `dataset_id` | the base, the folder of pictures |
//! | … `dtype`, `use_gc`, `seed` | `precision`, `checkpointing`, `seed` |
//! | … `batch_size`, `max_steps` | pictures a step, steps |
//! | … `optimizer_type`, `optimizer_kwargs` | of what is flat, with `lr` and `weight_decay`; `rotation_lr` is ours |
//! | … `lr_scheduler`, `grad_norm_clip` | `optimizer.schedule`, `optimizer.max_grad_norm` |
//! | … `eval_steps`, `num_inference_steps`, `guidance_scale` | of `samples` |
//! | … `sample_image_prompts`, `drift_image_prompts` | of `samples`, where the plan has them |
//! | … `dino_model_id` | the folder of the judge |
//! | `run_info.peft_config` | null for full fine-tuning |
//! | … `peft_type` | the method; SODA and other methods of ours by their own names |
//! | … `r`, ... | settings of the same meaning |
//! | `train_info.train_time` | seconds of the steps |
//! | `train_info.file_size`, `num_trainable_params` | the same |
//! | `train_info.metrics` | an entry for each grid on the way, and one for the end |
//! | … `valid dino_similarity`, `test dino_similarity` | on the way and at the end, see below |
//! | … `drift` | by DINO, as theirs is ([`Scores::drift_dino`](soda_train::Scores)); the report's is by CLIP |
//! | … `train loss` | the mean since the entry before, of means over at most a hundredth of the run |
//! | … `train samples` | pictures seen |
//!
//! PEFT compares a held-out picture with what is drawn of its caption, by DINO: here the truth of each prompt, where that is
//! known, or else pictures held out, over all pairs. It is absent where the only pictures are those that were learnt. Both
//! are measured on the same pictures, and nothing is chosen by either.
//!
//! What is not measured is left out: memory of the accelerator (ours is the process's), times of drawing, all weights'
//! number, versions, revisions. Failed runs have no line, so that `status` is always `success`.

use serde_json::{Map, Value, json};
use soda_train::{Checkpointing, FlatRule, Precision, Schedule, Scores, TrainConfig};

use crate::plan::Run;
use crate::results::{Measured, Record, Results};

/// A line for each of `runs` that finished.
pub fn peft(runs: &[Run], results: &Results<Record>) -> String {
    let lines = runs.iter().filter_map(|run| Some(line(run, &results.get(&run.id)?.measured)));
    lines.map(|line| format!("{line}\n")).collect()
}

fn line(run: &Run, measured: &Measured) -> Value {
    let config = &run.config;
    // A configuration that was read from TOML can be written as JSON.
    let method = serde_json::to_value(&config.method).unwrap_or_default();
    let name = method["name"].as_str().unwrap_or_default();
    json!({
        "run_info": {
            "experiment_name": format!("{name}/{}", run.id),
            "train_config": train_config(config),
            "peft_config": peft_config(name, &method),
            "error_msg": "",
        },
        "train_info": {
            "train_time": measured.seconds_per_step * config.steps as f64,
            "file_size": measured.file_size,
            "num_trainable_params": measured.num_params,
            "status": "success",
            "metrics": metrics(config, measured),
        },
    })
}

fn train_config(config: &TrainConfig) -> Value {
    let optimizer = &config.optimizer;
    let (lr, decay) = (optimizer.spectrum_lr, optimizer.spectrum_weight_decay);
    let dtype = match config.precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
        Precision::F16 => "float16",
    };
    let rule = match optimizer.flat {
        FlatRule::AdamW => "AdamW",
        FlatRule::AdamW8 => "AdamW8bit",
        FlatRule::Prodigy => "Prodigy",
    };
    let schedule = match optimizer.schedule {
        Schedule::Cosine => Some("cosine"),
        Schedule::Linear => Some("linear"),
        Schedule::Constant => None,
    };
    let samples = &config.samples;
    let some = |prompts: &[String]| (!prompts.is_empty()).then(|| json!(prompts));
    present([
        ("model_id", Some(json!(config.base))),
        ("dataset_id", Some(json!(config.data))),
        ("dtype", Some(json!(dtype))),
        ("batch_size", Some(json!(pictures(config)))),
        ("max_steps", Some(json!(config.steps))),
        ("eval_steps", (samples.every > 0).then(|| json!(samples.every))),
        ("use_gc", Some(json!(config.checkpointing != Checkpointing::None))),
        ("seed", Some(json!(config.seed))),
        ("grad_norm_clip", Some(json!(optimizer.max_grad_norm))),
        ("optimizer_type", Some(json!(rule))),
        (
            "optimizer_kwargs",
            Some(json!({ "lr": lr, "weight_decay": decay, "rotation_lr": optimizer.rotation_lr })),
        ),
        ("lr_scheduler", Some(json!(schedule))),
        ("num_inference_steps", Some(json!(samples.steps))),
        ("guidance_scale", Some(json!(samples.guidance))),
        ("dino_model_id", config.judges.as_ref().map(|judges| json!(judges.join("dino")))),
        ("sample_image_prompts", some(&samples.prompts)),
        ("drift_image_prompts", some(&samples.unrelated)),
    ])
}

/// Settings that PEFT has under another name, by method.
const SETTINGS: &[(&str, &[(&str, &str)])] = &[
    (
        "lora",
        &[
            ("rank", "r"),
            ("alpha", "lora_alpha"),
            ("rank_stabilized", "use_rslora"),
            ("dora", "use_dora"),
        ],
    ),
    ("loha", &[("rank", "r"), ("alpha", "alpha")]),
    ("lokr", &[("rank", "r"), ("alpha", "alpha")]),
    ("oft", &[("block_size", "oft_block_size"), ("block_share", "block_share")]),
];

fn peft_config(name: &str, method: &Value) -> Value {
    if name == "full" {
        return Value::Null;
    }
    let mut config = Map::new();
    config.insert("peft_type".to_owned(), json!(name.to_uppercase()));
    let settings = SETTINGS.iter().filter(|(method, _)| *method == name);
    for (ours, theirs) in settings.flat_map(|(_, settings)| *settings) {
        if let Some(value) = method.get(ours) {
            config.insert((*theirs).to_owned(), value.clone());
        }
    }
    Value::Object(config)
}

fn metrics(config: &TrainConfig, measured: &Measured) -> Vec<Value> {
    let held_out = config.validation.held_out > 0.0;
    let similar = |scores: &Scores| scores.truth_dino.or(held_out.then_some(scores.dino));
    let mut before = 0;
    let mut entry = |step: usize, name: &'static str, scores: &Scores, drift: Option<f32>| {
        let loss = measured.loss(config.steps, before, step);
        before = step;
        present([
            ("step", Some(json!(step))),
            (name, similar(scores).map(|value| json!(value))),
            ("drift", drift.map(|value| json!(value))),
            ("train loss", loss.map(|value| json!(value))),
            ("train samples", Some(json!(step * pictures(config)))),
        ])
    };
    let way = measured.trace.iter();
    let mut entries: Vec<Value> = way
        .map(|scored| entry(scored.step, "valid dino_similarity", &scored.scores, None))
        .collect();
    let after = &measured.after;
    entries.push(entry(config.steps, "test dino_similarity", after, after.drift_dino));
    entries
}

/// Pictures a step.
fn pictures(config: &TrainConfig) -> usize {
    config.batch_size * config.accumulation
}

fn present<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let there = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect())
}
