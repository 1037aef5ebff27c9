//! Snapshots: image grids and scores in the run's folder, `samples/<step>.png` and `.json`, made during
//! training.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};
use soda_models::input_file::{self, SizeLimit, read_text};

use crate::error::{DataError, TrainError};
use crate::eval::scores::Scores;
use crate::output::files::png_bytes;
use crate::output::run_folder::RunFolder;
use crate::output::tensorboard::Events;

/// The samples of all prompts after some steps.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The number of finished steps.
    pub(crate) step: usize,
    /// The image grid as a PNG file: one row, in the order of the prompts.
    pub(crate) png: Vec<u8>,
    /// Width and height of the grid.
    pub(crate) size: (u32, u32),
    /// The scores of the samples. `None` without judges.
    pub(crate) scores: Option<Scores>,
}

/// The scores of the samples after some steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepScores {
    /// The number of finished steps.
    pub step: usize,
    /// The scores of the samples.
    pub scores: Scores,
}

/// The content of `samples/<step>.json`.
#[derive(Serialize, Deserialize)]
struct ScoreFile {
    scores: Scores,
}

impl Snapshot {
    /// Writes the grid and the scores to TensorBoard's event file.
    pub(crate) fn write_events(&self, events: &mut Events) -> Result<(), TrainError> {
        if let Some(scores) = &self.scores {
            events.scalars(self.step, &scores.named())?;
        }
        events.image(self.step, "samples", self.size, &self.png)
    }
}

/// The name of the image grid after `step` steps, in the run's folder.
pub(crate) fn snapshot_grid(step: usize) -> String {
    file_name(step, "png")
}

fn file_name(step: usize, extension: &str) -> String {
    format!("{}/{step:08}.{extension}", RunFolder::SNAPSHOTS)
}

/// Writes the image grid of `step`, and its scores if there are any.
pub(crate) fn write_snapshot(
    folder: &RunFolder,
    step: usize,
    grid: &RgbImage,
    scores: Option<Scores>,
) -> Result<Snapshot, TrainError> {
    folder.create_subfolder(RunFolder::SNAPSHOTS)?;
    let name = |extension| file_name(step, extension);
    if let Some(scores) = scores {
        let text = serde_json::json!(ScoreFile { scores });
        folder.write(&name("json"), format!("{text:#}\n").as_bytes())?;
    }
    let png = png_bytes(grid).map_err(TrainError::image(&folder.file(&name("png"))))?;
    folder.write(&name("png"), &png)?;
    Ok(Snapshot { step, size: grid.dimensions(), png, scores })
}

/// Reads all snapshots of a run's folder, in the order of the steps.
pub(crate) fn read_snapshots(folder: &RunFolder) -> Result<Vec<Snapshot>, TrainError> {
    let read = |(step, path): (usize, PathBuf)| {
        let png =
            input_file::read(&path, SizeLimit::IMAGE).map_err(TrainError::io("read", &path))?;
        let size = image::image_dimensions(&path).map_err(TrainError::image(&path))?;
        Ok(Snapshot { step, png, size, scores: read_scores(&path)? })
    };
    grids(folder.path())?.into_iter().map(read).collect()
}

/// Reads the scores of all scored snapshots in the folder of a run, in the order of the steps.
///
/// # Errors
/// Returns an error if a file cannot be read or does not parse.
pub fn read_step_scores(folder: &Path) -> Result<Vec<StepScores>, TrainError> {
    let mut found = Vec::new();
    for (step, path) in grids(folder)? {
        found.extend(read_scores(&path)?.map(|scores| StepScores { step, scores }));
    }
    Ok(found)
}

/// The image grids in the folder of a run with their steps, in the order of the steps.
fn grids(folder: &Path) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    let samples = folder.join(RunFolder::SNAPSHOTS);
    if !samples.is_dir() {
        return Ok(Vec::new());
    }
    let mut grids = Vec::new();
    for entry in std::fs::read_dir(&samples).map_err(TrainError::io("read", &samples))? {
        let path = entry.map_err(TrainError::io("read", &samples))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_png = path.extension().is_some_and(|extension| extension == "png");
        let (true, Ok(step)) = (is_png, stem.parse()) else { continue };
        grids.push((step, path));
    }
    grids.sort();
    Ok(grids)
}

/// The scores beside an image grid. `None` if it was not scored.
fn read_scores(grid: &Path) -> Result<Option<Scores>, TrainError> {
    let path = grid.with_extension("json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_text(&path, SizeLimit::LIST).map_err(TrainError::io("read", &path))?;
    let file: ScoreFile = serde_json::from_str(&text).map_err(|error| {
        let (line, reason) = (error.line(), error.to_string());
        DataError::Metadata { path, line, reason }
    })?;
    Ok(Some(file.scores))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn step_scores_are_in_the_order_of_the_steps() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_step_scores(folder.path()).unwrap().is_empty(), "there are no snapshots");
        let samples = folder.path().join(RunFolder::SNAPSHOTS);
        std::fs::create_dir(&samples).unwrap();
        let scores = |clip_t| Scores {
            clip_t,
            clip_i: 0.5,
            dino: 0.25,
            truth_clip_i: None,
            truth_dino: None,
            drift: None,
            drift_dino: None,
        };
        // The last name has more digits than the others, as after 99,999,999 steps.
        for (name, clip_t) in [("100000000", 0.75), ("00000050", 0.5), ("00000100", 0.625)] {
            std::fs::write(samples.join(format!("{name}.png")), "").unwrap();
            let text = serde_json::json!(ScoreFile { scores: scores(clip_t) }).to_string();
            std::fs::write(samples.join(format!("{name}.json")), text).unwrap();
        }
        // A snapshot without scores.
        std::fs::write(samples.join("00000075.png"), "").unwrap();
        let expected = [(50, 0.5), (100, 0.625), (100_000_000, 0.75)];
        let expected = expected.map(|(step, clip_t)| StepScores { step, scores: scores(clip_t) });
        assert_eq!(read_step_scores(folder.path()).unwrap(), expected);

        std::fs::write(samples.join("00000050.json"), "{").unwrap();
        let message = read_step_scores(folder.path()).unwrap_err().to_string();
        assert!(message.contains("00000050.json, line 1"), "{message}");
    }
}
