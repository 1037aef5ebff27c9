//! What a run writes at its end: the adapter, the scores and the report.

use serde_json::{Value, json};
use soda_models::pipeline::{PromptEncoding, model_name};
use soda_models::scheduler::SchedulerOverrides;
use soda_pipeline::{AdapterFile, Header};
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::error::TrainError;
use crate::eval::sampling::{SampledImages, Sampler};
use crate::eval::scores::RunScores;
use crate::eval::snapshots::read_snapshots;
use crate::event::Event;
use crate::output::run_folder::RunFolder;
use crate::output::tensorboard::Events;
use crate::run::history::{History, running_mean};
use crate::run::leader::TrainedRun;
use crate::run::report::{ReportImages, loss_chart, report};
use crate::run::summary::RunSummary;
use crate::step::adapted_networks::AdaptedNetworks;

/// The header of the adapter's file, without the summary of the training.
pub(crate) fn header(config: &TrainConfig, dataset: &Dataset, encoding: PromptEncoding) -> Header {
    let words = config.trained_tokens().into_iter().flat_map(|tokens| tokens.words.keys());
    let new = words.filter(|word| !dataset.trigger.iter().any(|trigger| trigger.contains(*word)));
    let change = config.objective.scheduler_overrides();
    Header {
        base: model_name(&config.base),
        trigger: dataset.trigger.iter().chain(new).cloned().collect(),
        schedule: if change == SchedulerOverrides::default() { Value::Null } else { json!(change) },
        training: json!({ "images": dataset.examples.len() }),
        prompt_encoding: encoding,
    }
}

/// The adapter's file, with all settings and the final loss in its header.
pub(crate) fn adapter_file(
    config: &TrainConfig,
    header: Header,
    adapted: &AdaptedNetworks,
    trained: &TrainedRun,
    sampler: &Sampler<'_>,
) -> AdapterFile {
    let TrainedRun { networks, history, seconds } = trained;
    let validation = &config.validation;
    let best = history.best_step(validation.metric_for_best_model);
    let best = best.filter(|_| validation.load_best_model_at_end);
    let training = json!({
        "config": config,
        "images": header.training["images"],
        "final_loss": running_mean(&history.losses()).last(),
        "best_step": best,
        "seconds": seconds,
    });
    let header = Header { training, ..header };
    adapted.adapter_file(header, networks, sampler.pipeline.token_embeddings(networks))
}

pub(crate) fn write_training_results(
    folder: &RunFolder,
    adapter: &AdapterFile,
    history: &History,
) -> Result<(), TrainError> {
    adapter.write(&folder.file(RunFolder::ADAPTER))?;
    folder.write(RunFolder::LOSS_CSV, history.csv().as_bytes())?;
    folder.write(RunFolder::LOSS_CHART, loss_chart(history).as_bytes())
}

/// Scores the ground truth, and writes all scores. `None` without judges.
pub(crate) fn score(
    sampler: &Sampler<'_>,
    folder: &RunFolder,
    before: &SampledImages,
    after: &SampledImages,
    held_out: Vec<String>,
    events: Option<&mut Events>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<RunScores>, TrainError> {
    on_event(Event::Stage { name: "judging" });
    let _span = info_span!("score").entered();
    let (Some(before), Some(after)) = (before.scores, after.scores) else { return Ok(None) };
    let scores = RunScores { before, after, truth: sampler.score_truth()?, held_out };
    if let Some(events) = events {
        events.scalars(0, &scores.before.named())?;
        events.scalars(sampler.config.steps, &scores.after.named())?;
    }
    scores.write(folder)?;
    Ok(Some(scores))
}

/// Writes the report and removes the checkpoints.
pub(crate) fn finish(
    folder: &RunFolder,
    summary: &RunSummary,
    images: &ReportImages<'_>,
) -> Result<(), TrainError> {
    let _span = info_span!("report").entered();
    let report = report(summary, images, &read_snapshots(folder)?)?;
    folder.write(RunFolder::REPORT, report.as_bytes())?;
    // The report marks the run as finished: no run will continue from a checkpoint.
    folder.remove_subfolder(RunFolder::CHECKPOINTS)
}
