//! Finds a base model by its path or by its name on a hub, and loads it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::Device;
use serde_json::Value;
use soda_models::ModelError;
use soda_models::pipeline::{LoadOptions, Pipeline};
use tracing::info_span;

use crate::progress::Progress;
use crate::usage::UsageError;

/// Loads a model directory, and prints what is unusual about it.
///
/// # Errors
/// A file is missing, broken or not supported.
pub(crate) fn load_base(base: &Path, options: &LoadOptions, device: &Device) -> Result<Pipeline> {
    try_load_base(base, options, device).map_err(usage_or_error)
}

/// [`load_base`], for a caller that says who is to blame for a request that the model cannot meet.
///
/// # Errors
/// As [`load_base`].
pub(crate) fn try_load_base(
    base: &Path,
    options: &LoadOptions,
    device: &Device,
) -> Result<Pipeline, ModelError> {
    let _span = info_span!("load base").entered();
    let pipeline = Pipeline::load_with(base, options, device)?;
    print_warnings(&pipeline, &Progress::default());
    Ok(pipeline)
}

/// A request that the model cannot meet is a mistake of usage, since all parts of a request are options.
pub(crate) fn usage_or_error(error: ModelError) -> anyhow::Error {
    match error {
        ModelError::InvalidRequest { .. } => UsageError::new(error).into(),
        error => error.into(),
    }
}

/// Loads a model directory to draw with it, as [`load_base`].
///
/// # Errors
/// As [`load_base`].
pub(crate) fn load_base_to_draw(
    base: &Path,
    options: &LoadOptions,
    device: &Device,
) -> Result<Pipeline> {
    Ok(load_base(base, options, device)?.in_drawing_format())
}

/// Prints what is unusual about a model.
pub(crate) fn print_warnings(pipeline: &Pipeline, progress: &Progress) {
    for warning in &pipeline.warnings {
        progress.warn(&warning.to_string());
    }
}

/// Warns that what was written does not hold how the pipeline encodes prompts.
pub(crate) fn warn_of_encoding(pipeline: &Pipeline, written: &Path) {
    if let Some(encoding) = pipeline.text.chosen_prompt_encoding() {
        Progress::default().warn(&format!(
            "{} does not say how prompts are encoded: draw with {encoding}",
            written.display()
        ));
    }
}

/// Warns that another tool draws with the base's noise schedule, unless it is told that of the training.
pub(crate) fn warn_of_schedule(schedule: &Value, written: &Path) {
    if !schedule.is_null() {
        Progress::default().warn(&format!(
            "{} was trained with another noise schedule than the base: set {schedule} in the scheduler of the \
             tool that draws with it",
            written.display()
        ));
    }
}

/// Prints which sampler draws if the model's own is not implemented.
pub(crate) fn warn_of_sampler(pipeline: &Pipeline, progress: &Progress) {
    if let Some(replaced) = &pipeline.scheduler.replaced {
        progress.warn(&format!(
            "the model's sampler, {replaced}, is not implemented; {} draws, the nearest to it: give \
             --scheduler to `soda generate` to choose another",
            pipeline.scheduler.class.class_name()
        ));
    }
}

/// Returns the directory or file of `base`: the path if it exists, otherwise the model of this name on the
/// hub.
///
/// Downloads the model if the cache lacks it.
///
/// # Errors
/// No model has this name, or the download fails.
#[cfg(feature = "hub")]
pub(crate) fn find_base(base: &Path, variant: Option<&str>) -> Result<PathBuf> {
    let name = base.to_str().filter(|name| !base.exists() && soda_hub::is_repo_id(name));
    let Some(name) = name else { return Ok(base.to_owned()) };
    let mut progress = Progress::default();
    let found =
        soda_hub::Hub::from_env()?.snapshot_download(name, variant, &mut |file, done, total| {
            progress.transfer(file, done, total)
        });
    progress.finish();
    Ok(found?)
}

/// Returns the path itself, since this build has no hub.
#[cfg(not(feature = "hub"))]
pub(crate) fn find_base(base: &Path, _variant: Option<&str>) -> Result<PathBuf> {
    Ok(base.to_owned())
}

/// Whether `base` is a path that exists or the name of a model on a hub.
pub(crate) fn is_path_or_name(base: &Path) -> bool {
    #[cfg(feature = "hub")]
    let named = base.to_str().is_some_and(soda_hub::is_repo_id);
    #[cfg(not(feature = "hub"))]
    let named = false;
    named || base.exists()
}
