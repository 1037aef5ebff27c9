//! Finished runs in the format of PEFT's method comparison (`method_comparison/image-gen/results/*.json`).
//!
//! The file `peft.jsonl` has one line per run, so that SODA's methods can be listed beside PEFT's. The page
//! of PEFT's comparison reads a file per run: `split -l 1 --additional-suffix=.json peft.jsonl DIR/soda-`.
//! It lists runs on a GPU with true or held-out images, and needs all of their fields.
//!
//! | field | value |
//! |---|---|
//! | `run_info.experiment_name` | the method, and [`Run::id`]: arm, data set, seed |
//! | `run_info.created_at`, `total_time` | start of the run; seconds since, without reading the base |
//! | `run_info.peft_branch`, versions in `meta_info.package_info` | "none", as the packages take no part |
//! | `run_info.train_config` | the training configuration: |
//! | … `model_id`, `dataset_id` | the base model, the folder of images |
//! | … `resolution`, `max_sequence_length`, `text_encoder_out_layers` | those of the plan |
//! | … `dtype`, `use_gc`, `seed` | `precision`, `checkpointing`, `seed` |
//! | … `batch_size`, `max_steps` | images per step, steps |
//! | … `optimizer_type`, `optimizer_kwargs` | of the flat parameters; `rotation_lr` is SODA's |
//! | … `lr_scheduler`, `grad_norm_clip` | `optimizer.schedule`, `optimizer.max_grad_norm` |
//! | … `eval_steps`, `num_inference_steps` | `samples.every`, `samples.steps` |
//! | … `guidance_scale` | `samples.guidance` |
//! | … `sample_image_prompts` | `samples.prompts`, if the plan has them |
//! | … `drift_image_prompts` | `samples.unrelated`, if the plan has them |
//! | … `dino_model_id` | the folder of the DINO judge |
//! | `run_info.peft_config` | null for full fine-tuning, otherwise: |
//! | … `peft_type` | the method; methods that PEFT lacks have SODA's name |
//! | … `r`, ... | settings with the same meaning |
//! | `train_info.accelerator_memory_max` | bytes of a GPU that were reserved after the steps or at the end |
//! | … `_reserved_avg`, `_reserved_99th` | the same number, which bounds both |
//! | `train_info.train_time` | seconds of the optimizer steps |
//! | `train_info.file_size`, `num_trainable_params` | bytes of the adapter file, trainable parameters |
//! | `train_info.metrics` | one entry per intermediate evaluation, and one for the last step: |
//! | … `valid dino_similarity`, `test dino_similarity` | at intermediate steps and at the end, see below |
//! | … `drift` | by DINO, as in PEFT; the report's drift is by CLIP ([`Scores`]) |
//! | … `train loss` | the mean since the previous entry, over stretches of at most a hundredth of the run |
//! | … `train samples` | images seen |
//!
//! PEFT compares a held-out image with the image generated from its caption, by DINO. Here, the similarity
//! is to the true image of each prompt if it is known, otherwise to all held-out images. It is absent if
//! the only images are the training images. Both similarities are measured on the same images, and no
//! settings are chosen by them.
//!
//! Fields that are not measured are left out: generation times, total parameters, revisions, and the memory
//! of an accelerator in a run without one. Failed runs have no line, so that `status` is always `success`.

use serde_json::{Map, Value, json};
use soda_optim::FlatOptimizer;
use soda_train::{GradientCheckpointing, Precision, Schedule, Scores, TrainConfig};

use crate::results::{ResultsFile, RunMetrics, RunResult};
use crate::run::Run;

/// Writes one JSON line for each finished run of `runs`, in the format of PEFT's method comparison.
pub fn peft_jsonl(runs: &[Run], results: &ResultsFile<RunResult>) -> String {
    let lines = runs.iter().filter_map(|run| Some(line(run, &results.get(&run.id)?.metrics)));
    lines.map(|line| format!("{line}\n")).collect()
}

fn line(run: &Run, run_metrics: &RunMetrics) -> Value {
    let config = &run.config;
    // A configuration that was read from TOML can be written as JSON.
    let method = serde_json::to_value(&config.method).unwrap_or_default();
    let name = method["name"].as_str().unwrap_or_default();
    let memory = run_metrics.device_memory.map(|bytes| json!(bytes));
    json!({
        "run_info": present([
            // The page mixes no times with a zone and without.
            ("created_at", run_metrics.start_time.as_ref().map(|time| json!(format!("{time}+00:00")))),
            ("total_time", run_metrics.total_seconds.map(|seconds| json!(seconds))),
            ("experiment_name", Some(json!(format!("{name}/{}", run.id)))),
            ("peft_branch", Some(json!(NO_PACKAGE))),
            ("train_config", Some(train_config(config))),
            ("peft_config", Some(peft_config(name, &method))),
            ("error_msg", Some(json!(""))),
        ]),
        "train_info": present([
            ("accelerator_memory_reserved_avg", memory.clone()),
            ("accelerator_memory_max", memory.clone()),
            ("accelerator_memory_reserved_99th", memory),
            ("train_time", Some(json!(run_metrics.seconds_per_step * config.steps as f64))),
            ("file_size", Some(json!(run_metrics.file_size))),
            ("num_trainable_params", Some(json!(run_metrics.num_params))),
            ("status", Some(json!("success"))),
            ("metrics", Some(json!(metrics(config, run_metrics)))),
        ]),
        "meta_info": {
            "package_info": {
                "soda-version": env!("CARGO_PKG_VERSION"),
                "peft-version": NO_PACKAGE,
                "transformers-version": NO_PACKAGE,
                "datasets-version": NO_PACKAGE,
                "diffusers-version": NO_PACKAGE,
                "torch-version": NO_PACKAGE,
            },
            "system_info": {
                "system": std::env::consts::OS,
                "machine": std::env::consts::ARCH,
            },
        },
    })
}

/// The version of a package that takes no part in a run.
const NO_PACKAGE: &str = "none";

fn train_config(config: &TrainConfig) -> Value {
    let optimizer = &config.optimizer;
    let (lr, decay) = (optimizer.spectrum_lr, optimizer.spectrum_weight_decay);
    let dtype = match config.precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
        Precision::F16 => "float16",
    };
    let rule = match optimizer.flat {
        FlatOptimizer::AdamW => "AdamW",
        FlatOptimizer::AdamW8bit => "AdamW8bit",
        FlatOptimizer::Prodigy => "Prodigy",
    };
    let schedule = match optimizer.schedule {
        Schedule::Cosine => Some("cosine"),
        Schedule::Linear => Some("linear"),
        Schedule::Constant => None,
    };
    let samples = &config.samples;
    let non_empty = |prompts: &[String]| (!prompts.is_empty()).then(|| json!(prompts));
    present([
        ("model_id", Some(json!(config.base))),
        ("dataset_id", Some(json!(config.data))),
        ("dtype", Some(json!(dtype))),
        ("resolution", config.resolution.map(|side| json!(side))),
        ("max_sequence_length", config.max_sequence_length.map(|length| json!(length))),
        ("text_encoder_out_layers", config.text_encoder_out_layers.as_ref().map(|l| json!(l))),
        ("batch_size", Some(json!(images_per_step(config)))),
        ("max_steps", Some(json!(config.steps))),
        ("eval_steps", (samples.every > 0).then(|| json!(samples.every))),
        ("use_gc", Some(json!(config.checkpointing != GradientCheckpointing::None))),
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
        ("sample_image_prompts", non_empty(&samples.prompts)),
        ("drift_image_prompts", non_empty(&samples.unrelated)),
    ])
}

/// Settings that PEFT has, by method: our name and theirs.
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

fn metrics(config: &TrainConfig, run_metrics: &RunMetrics) -> Vec<Value> {
    let held_out = config.validation.held_out > 0.0;
    let similarity = |scores: &Scores| scores.truth_dino.or(held_out.then_some(scores.dino));
    let mut previous = 0;
    let mut entry = |step: usize, name: &'static str, scores: &Scores, drift: Option<f32>| {
        let loss = run_metrics.mean_loss(config.steps, previous, step);
        previous = step;
        present([
            ("step", Some(json!(step))),
            (name, similarity(scores).map(|value| json!(value))),
            ("drift", drift.map(|value| json!(value))),
            ("train loss", loss.map(|value| json!(value))),
            ("train samples", Some(json!(step * images_per_step(config)))),
        ])
    };
    let trace = run_metrics.trace.iter();
    let mut entries: Vec<Value> = trace
        .map(|scored| entry(scored.step, "valid dino_similarity", &scored.scores, None))
        .collect();
    let after = &run_metrics.after;
    entries.push(entry(config.steps, "test dino_similarity", after, after.drift_dino));
    entries
}

/// The number of images per optimizer step.
fn images_per_step(config: &TrainConfig) -> usize {
    config.images_per_step()
}

fn present<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(fields.collect())
}
