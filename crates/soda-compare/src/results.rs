//! What finished runs gave: one JSON line each, appended as they finish, so that a stop loses nothing.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use soda_train::Scores;

use crate::error::CompareError;
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
    /// Loss of every step, thinned to at most 100 means.
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

impl Record {
    /// What `run` gave.
    pub fn new(run: &Run, measured: Measured) -> Self {
        Self {
            id: run.id.clone(),
            arm: run.arm.clone(),
            data: run.config.data.clone(),
            seed: run.config.seed,
            measured,
        }
    }

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

/// All results of a folder.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    file: File,
    records: BTreeMap<String, Record>,
}

impl Results {
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
        let mut records = BTreeMap::new();
        for (line, text) in text[..whole].lines().enumerate() {
            let record: Record =
                serde_json::from_str(text).map_err(|error| CompareError::ReadResults {
                    path: path.to_owned(),
                    line: line + 1,
                    reason: error.to_string(),
                })?;
            records.insert(record.id.clone(), record);
        }
        let write = CompareError::io("write", path);
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            file.set_len(whole as u64)?;
            Ok(file)
        };
        Ok(Self { path: path.to_owned(), file: open().map_err(write)?, records })
    }

    /// Adds a record, on the disk when this returns.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn append(&mut self, record: Record) -> Result<(), CompareError> {
        let line = serde_json::to_string(&record).map_err(|error| CompareError::ReadResults {
            path: self.path.clone(),
            line: self.records.len() + 1,
            reason: error.to_string(),
        })?;
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(CompareError::io("write", &self.path))?;
        self.records.insert(record.id.clone(), record);
        Ok(())
    }

    /// The record of a run, if it has finished.
    pub fn get(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }
}
