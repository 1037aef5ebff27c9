//! What finished runs gave: one JSON line each, appended as they finish, so that a stop loses nothing. `peft` has the
//! same by the names of PEFT.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use soda_train::{Scored, Scores};

use crate::error::CompareError;
use crate::execute::Task;
use crate::plan::Run;

/// What was measured on one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Scores of the untuned model.
    pub before: Scores,
    /// Scores of the tuned one.
    pub after: Scores,
    /// Scores of the true pictures, where they are known.
    pub truth: Option<Scores>,
    /// Scores on the way, where the plan's `samples.every` asks for them; `before` and `after` are the ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<Scored>,
    /// Loss of every step, [`thinned`].
    pub losses: Vec<f32>,
    /// Trained numbers.
    pub num_params: u64,
    /// Bytes of the adapter file.
    pub file_size: u64,
    /// Seconds a step.
    pub seconds_per_step: f64,
    /// Most memory the run's process held, bytes; where the system tells.
    pub peak_memory: Option<u64>,
}

/// A run keeps at most this many losses.
const LOSSES: usize = 100;

/// The means of equal stretches of a run's losses, at most `LOSSES` of them.
pub fn thinned(losses: &[f32]) -> Vec<f32> {
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    losses.chunks(stretch(losses.len())).map(mean).collect()
}

/// How many steps one of [`thinned`] is the mean of.
fn stretch(steps: usize) -> usize {
    steps.div_ceil(LOSSES).max(1)
}

impl Measured {
    /// The mean loss of a run of `steps`, after the first `from` up to `to`: that of the stretches that end there.
    pub(crate) fn loss(&self, steps: usize, from: usize, to: usize) -> Option<f32> {
        let end = |index: usize| ((index + 1) * stretch(steps)).min(steps);
        let losses = self.losses.iter().enumerate();
        let here = losses.filter(|(index, _)| (from + 1..=to).contains(&end(*index)));
        let (sum, count) = here.fold((0.0, 0), |(sum, count), (_, loss)| (sum + loss, count + 1));
        (count > 0).then(|| sum / count as f32)
    }
}

/// A line of the results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`Run::id`].
    pub id: String,
    /// The arm.
    pub arm: String,
    /// The folder of pictures.
    pub data: PathBuf,
    /// The seed.
    pub seed: u64,
    /// What was measured.
    #[serde(flatten)]
    pub measured: Measured,
}

impl Task for Run {
    type Measured = Measured;
    type Line = Record;

    fn id(&self) -> &str {
        &self.id
    }

    fn line(&self, measured: Measured) -> Record {
        Record {
            id: self.id.clone(),
            arm: self.arm.clone(),
            data: self.config.data.clone(),
            seed: self.config.seed,
            measured,
        }
    }
}

impl Record {
    /// What settings are chosen by: likeness to the true picture of each prompt, to the eye of both
    /// judges, which asks for the subject and the prompt at once. Without truths, the subject and the
    /// prompt are asked for apart. None for a score that is no number.
    pub fn merit(&self) -> Option<f64> {
        let after = &self.measured.after;
        let (one, other) = match (after.truth_dino, after.truth_clip_i) {
            (Some(dino), Some(clip_i)) => (dino, clip_i),
            _ => (after.dino, after.clip_t),
        };
        let merit = f64::from(one + other) / 2.0;
        merit.is_finite().then_some(merit)
    }
}

/// A line of a results file.
pub trait Line: Serialize + DeserializeOwned {
    /// What tells it from all others.
    fn id(&self) -> &str;
}

impl Line for Record {
    fn id(&self) -> &str {
        &self.id
    }
}

/// All results of one kind in a folder.
#[derive(Debug)]
pub struct Results<L> {
    path: PathBuf,
    file: File,
    lines: BTreeMap<String, L>,
}

impl<L: Line> Results<L> {
    /// Opens `path`, which need not exist. A last line that a crash cut short is dropped.
    ///
    /// # Errors
    /// The file cannot be read or written, or another line does not parse.
    pub fn open(path: &Path) -> Result<Self, CompareError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(CompareError::io("read", path))?,
        };
        // Whole lines only: what follows the last line feed was being written when the process died.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = BTreeMap::new();
        for (line, text) in text[..whole].lines().enumerate() {
            let parsed: L =
                serde_json::from_str(text).map_err(|error| CompareError::ReadResults {
                    path: path.to_owned(),
                    line: line + 1,
                    reason: error.to_string(),
                })?;
            lines.insert(parsed.id().to_owned(), parsed);
        }
        let write = CompareError::io("write", path);
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            file.set_len(whole as u64)?;
            Ok(file)
        };
        Ok(Self { path: path.to_owned(), file: open().map_err(write)?, lines })
    }

    /// Adds a line, on the disk when this returns.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn append(&mut self, line: L) -> Result<(), CompareError> {
        let text = serde_json::to_string(&line).map_err(|error| CompareError::ReadResults {
            path: self.path.clone(),
            line: self.lines.len() + 1,
            reason: error.to_string(),
        })?;
        self.file
            .write_all(format!("{text}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(CompareError::io("write", &self.path))?;
        self.lines.insert(line.id().to_owned(), line);
        Ok(())
    }

    /// The line of a task, if that has finished.
    pub fn get(&self, id: &str) -> Option<&L> {
        self.lines.get(id)
    }
}
