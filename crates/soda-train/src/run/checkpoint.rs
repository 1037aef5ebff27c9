//! Checkpoints of an unfinished run, `checkpoints/<step>.safetensors`.
//!
//! A file appears by rename, so a crash leaves a complete file or none. A digest in the file detects damage.
//! A run continues from the newest undamaged checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};
use soda_models::input_file::{self, SizeLimit};
use soda_optim::OptimizerState;

use crate::error::{CheckpointError, TrainError};
use crate::output::files::{create_folder, remove_file, write_file};
use crate::output::tensor_file;
use crate::run::fingerprint::RunFingerprint;
use crate::run::history::{History, StepScore, ValidationMetrics};
use crate::step::loss_scale::LossScale;
use crate::step::metrics::StepMetrics;
use crate::step::trainer::TrainerState;

/// Everything that a run needs to continue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// The state of the trainer.
    pub state: TrainerState,
    /// The metrics of the finished steps.
    pub history: History,
    /// The duration of the finished steps in seconds.
    pub seconds: f64,
    /// A hash of the training data.
    pub data: String,
    /// The base model and the settings of the run.
    pub fingerprint: RunFingerprint,
}

/// The part of a checkpoint that is not tensors, JSON.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    step: usize,
    seconds: f64,
    data: String,
    fingerprint: RunFingerprint,
    counts: BTreeMap<String, u64>,
    #[serde(default)]
    scale: Option<LossScale>,
    /// The steps of the validations.
    validation: Vec<usize>,
    /// The steps of the scores that the adapter is chosen by. Absent where it is not.
    #[serde(default)]
    scores: Vec<usize>,
}

/// The version of the format. In version 5 paths start with the network's name, and the step metrics include
/// the learning rates of text encoders and new words. Version 6 has the fingerprint of the run.
const VERSION: u32 = 6;

/// The field that headers of all versions have.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The begin of the name of a file with the best measurement so far. Its name is no number of steps.
const BEST: &str = "best-";
/// The name of that file before it had the step.
const FORMER_BEST: &str = "best.safetensors";
const STEPS: &str = "steps";
const VALIDATION: &str = "validation";
const SCORES: &str = "scores";
const ADAPTER: &str = "adapter/";
const AVERAGE: &str = "average/";
const OPTIMIZER: &str = "optimizer/";

impl Checkpoint {
    /// Writes the checkpoint into `folder` and removes all but the newest `keep`.
    ///
    /// # Errors
    /// A file or folder that cannot be written.
    pub fn write(&self, folder: &Path, keep: usize) -> Result<(), TrainError> {
        create_folder(folder)?;
        let path = folder.join(format!("{:08}.safetensors", self.state.step));
        write_file(&path, &self.to_bytes(&path)?)?;
        for old in list(folder)?.into_iter().skip(keep.max(1)) {
            remove_file(&old)?;
        }
        Ok(())
    }

    /// Writes the checkpoint as the one of `folder` with the best measurement. Those of former bests stay, as
    /// a resumed run may begin before this one.
    ///
    /// # Errors
    /// A file or folder that cannot be written.
    pub fn write_best(&self, folder: &Path) -> Result<(), TrainError> {
        create_folder(folder)?;
        let path = best_file(folder, self.state.step);
        write_file(&path, &self.to_bytes(&path)?)
    }

    /// Removes the files of [`write_best`](Self::write_best), except that of the step `best`.
    ///
    /// # Errors
    /// A folder that cannot be read, or a file that cannot be removed.
    pub fn remove_bests_but(folder: &Path, best: Option<usize>) -> Result<(), TrainError> {
        let kept = best.map(|step| best_file(folder, step));
        for entry in std::fs::read_dir(folder).map_err(TrainError::io("read", folder))? {
            let path = entry.map_err(TrainError::io("read", folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(BEST)
                && name.ends_with(".safetensors")
                && Some(&path) != kept.as_ref()
            {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Reads the checkpoint of [`write_best`](Self::write_best) after `step` steps, which
    /// [`newest`](Self::newest) passes over.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], and a file that is of another step.
    pub fn read_best(folder: &Path, step: usize) -> Result<Self, TrainError> {
        let (own, former) = (best_file(folder, step), folder.join(FORMER_BEST));
        let path = if own.exists() || !former.exists() { own } else { former };
        let best = Self::read(&path)?;
        match best.state.step == step {
            true => Ok(best),
            false => Err(CheckpointError::Damaged { path }.into()),
        }
    }

    /// The newest undamaged checkpoint in `folder`; `None` if there is none, or no folder. `damaged` gets an
    /// error for each newer checkpoint that is damaged.
    ///
    /// # Errors
    /// A folder that cannot be read, or a checkpoint of another version of soda.
    pub fn newest(
        folder: &Path,
        mut damaged: impl FnMut(&TrainError),
    ) -> Result<Option<Self>, TrainError> {
        if !folder.is_dir() {
            return Ok(None);
        }
        for path in list(folder)? {
            match Self::read(&path) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                // The checkpoint is undamaged: the run must not start again and overwrite it.
                Err(error @ TrainError::Checkpoint(CheckpointError::OtherVersion { .. })) => {
                    return Err(error);
                }
                Err(error) => damaged(&error),
            }
        }
        Ok(None)
    }

    /// Reads the checkpoint at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or was written by another version of soda.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let bytes =
            input_file::read(path, SizeLimit::TENSORS).map_err(TrainError::io("read", path))?;
        let damaged = || CheckpointError::Damaged { path: path.to_owned() };
        let (header, tensors) = tensor_file::from_bytes(&bytes).ok_or_else(damaged)?;
        let Version { version } = serde_json::from_str(&header).map_err(|_| damaged())?;
        if version != VERSION {
            return Err(CheckpointError::OtherVersion { path: path.to_owned(), version }.into());
        }
        let header = serde_json::from_str(&header).map_err(|_| damaged())?;
        Ok(Self::from_parts(header, tensors))
    }

    /// The checkpoint as bytes for another process.
    pub(crate) fn to_sent_bytes(&self) -> Result<Vec<u8>, TrainError> {
        self.to_bytes(Path::new("for the other ranks"))
    }

    /// Reads the bytes of another process, of the same version of soda. `None` if they are damaged.
    pub(crate) fn from_sent_bytes(bytes: &[u8]) -> Option<Self> {
        let (header, tensors) = tensor_file::from_bytes(bytes)?;
        let header: Header = serde_json::from_str(&header).ok()?;
        (header.version == VERSION).then(|| Self::from_parts(header, tensors))
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, TrainError> {
        let History { steps, validation, scores } = &self.history;
        let values = |step: &StepMetrics| step.named().map(|(_, value)| value);
        let steps = TensorData::new(
            steps.iter().flat_map(values).collect(),
            [steps.len(), StepMetrics::COUNT],
        );
        let metrics = validation.iter().flat_map(|metrics| [metrics.loss, metrics.orthogonality]);
        let metrics = TensorData::new(metrics.collect(), [validation.len(), 2]);
        let scored = scores.iter().map(|of| of.score).collect();
        let scored = TensorData::new(scored, [scores.len()]);
        let TrainerState { step, adapter, average, optimizer, loss_scale } = &self.state;
        let mut tensors = BTreeMap::from([
            (STEPS.to_owned(), steps),
            (VALIDATION.to_owned(), metrics),
            (SCORES.to_owned(), scored),
        ]);
        for (prefix, part) in
            [(ADAPTER, adapter), (AVERAGE, average), (OPTIMIZER, &optimizer.tensors)]
        {
            tensors
                .extend(part.iter().map(|(name, data)| (format!("{prefix}{name}"), data.clone())));
        }
        let refuse = |error: &dyn std::fmt::Display| TrainError::Io {
            action: "write",
            path: path.to_owned(),
            source: std::io::Error::other(error.to_string()),
        };
        let header = Header {
            version: VERSION,
            step: *step,
            seconds: self.seconds,
            data: self.data.clone(),
            fingerprint: self.fingerprint.clone(),
            counts: optimizer.counts.clone(),
            scale: *loss_scale,
            validation: validation.iter().map(|metrics| metrics.step).collect(),
            scores: scores.iter().map(|of| of.step).collect(),
        };
        let header = serde_json::to_string(&header).map_err(|error| refuse(&error))?;
        tensor_file::to_bytes(header, &tensors).map_err(|error| refuse(&error))
    }

    fn from_parts(header: Header, tensors: tensor_file::Tensors) -> Self {
        let mut checkpoint = Self {
            seconds: header.seconds,
            data: header.data,
            fingerprint: header.fingerprint,
            ..Self::default()
        };
        checkpoint.state.step = header.step;
        checkpoint.state.loss_scale = header.scale;
        checkpoint.state.optimizer = OptimizerState { counts: header.counts, ..Default::default() };
        for (name, data) in tensors {
            let state = &mut checkpoint.state;
            if name == STEPS {
                let numbers: Vec<f32> = data.iter::<f32>().collect();
                let (steps, _) = numbers.as_chunks();
                checkpoint.history.steps =
                    steps.iter().copied().map(StepMetrics::from_values).collect();
            } else if name == VALIDATION {
                let numbers: Vec<f32> = data.iter::<f32>().collect();
                let measured = header.validation.iter().zip(numbers.chunks_exact(2));
                let measured = measured.map(|(&step, values)| ValidationMetrics {
                    step,
                    loss: values[0],
                    orthogonality: values[1],
                });
                checkpoint.history.validation = measured.collect();
            } else if name == SCORES {
                let scored = header.scores.iter().zip(data.iter::<f32>());
                let scored = scored.map(|(&step, score)| StepScore { step, score });
                checkpoint.history.scores = scored.collect();
            } else if let Some(path) = name.strip_prefix(ADAPTER) {
                state.adapter.insert(path.to_owned(), data);
            } else if let Some(path) = name.strip_prefix(AVERAGE) {
                state.average.insert(path.to_owned(), data);
            } else if let Some(path) = name.strip_prefix(OPTIMIZER) {
                state.optimizer.tensors.insert(path.to_owned(), data);
            }
        }
        checkpoint
    }
}

fn best_file(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("{BEST}{step:08}.safetensors"))
}

/// Checkpoint files, newest first. Others, such as a temporary one of a killed run, are not counted.
fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(TrainError::io("read", folder))? {
        let path = entry.map_err(TrainError::io("read", folder))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_checkpoint = path.extension().is_some_and(|extension| extension == "safetensors");
        if let (true, Ok(step)) = (is_checkpoint, stem.parse::<u64>()) {
            files.push((step, path));
        }
    }
    files.sort();
    Ok(files.into_iter().rev().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn checkpoint(step: usize) -> Checkpoint {
        let data = |value: f32| TensorData::new(vec![value, -0.0, f32::MIN_POSITIVE], [3]);
        Checkpoint {
            state: TrainerState {
                step,
                adapter: BTreeMap::from([("a.b".to_owned(), data(0.1))]),
                average: BTreeMap::from([("a.b".to_owned(), data(0.2))]),
                optimizer: OptimizerState {
                    tensors: BTreeMap::from([("flat.1x3.m".to_owned(), data(0.3))]),
                    counts: BTreeMap::from([("flat.1x3.time".to_owned(), step as u64)]),
                },
                loss_scale: Some(LossScale { value: 512.0, finite_steps: 7 }),
            },
            history: History {
                steps: vec![StepMetrics::from_values([0.1, 2.0, 3e-3, 1e-3, 1e-4, 1e-5]); step],
                validation: vec![ValidationMetrics { step: 0, loss: 0.3, orthogonality: 1e-7 }],
                scores: vec![StepScore { step: 1, score: -0.25 }],
            },
            seconds: 1.5,
            data: "digest".to_owned(),
            fingerprint: RunFingerprint::default(),
        }
    }

    #[test]
    fn a_read_checkpoint_equals_the_written_one_and_old_ones_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        for step in [5, 10, 100] {
            checkpoint(step).write(folder.path(), 2).unwrap();
        }
        assert_eq!(list(folder.path()).unwrap().len(), 2);
        let newest = Checkpoint::newest(folder.path(), |error| panic!("{error}")).unwrap();
        assert_eq!(newest, Some(checkpoint(100)));
        let sent = checkpoint(7).to_sent_bytes().unwrap();
        assert_eq!(Checkpoint::from_sent_bytes(&sent), Some(checkpoint(7)));
        assert_eq!(Checkpoint::from_sent_bytes(&sent[..sent.len() - 1]), None);
        assert_eq!(Checkpoint::newest(Path::new("/nowhere"), |_| ()).unwrap(), None);
    }

    #[test]
    fn the_best_checkpoint_is_that_of_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for step in [5, 10] {
            checkpoint(step).write_best(folder).unwrap();
        }
        checkpoint(12).write(folder, 1).unwrap();
        assert_eq!(Checkpoint::read_best(folder, 5).unwrap(), checkpoint(5));
        assert_eq!(
            Checkpoint::newest(folder, |error| panic!("{error}")).unwrap(),
            Some(checkpoint(12))
        );
        Checkpoint::remove_bests_but(folder, Some(10)).unwrap();
        assert!(Checkpoint::read_best(folder, 5).is_err());
        assert_eq!(Checkpoint::read_best(folder, 10).unwrap(), checkpoint(10));
        // The name that former versions gave.
        std::fs::copy(best_file(folder, 10), folder.join(FORMER_BEST)).unwrap();
        std::fs::rename(best_file(folder, 10), folder.join("kept")).unwrap();
        assert_eq!(Checkpoint::read_best(folder, 10).unwrap(), checkpoint(10));
        std::fs::remove_file(folder.join(FORMER_BEST)).unwrap();
        std::fs::rename(folder.join("kept"), best_file(folder, 10)).unwrap();
        // A file that was renamed by hand is of another step.
        std::fs::rename(best_file(folder, 10), best_file(folder, 5)).unwrap();
        assert!(Checkpoint::read_best(folder, 5).is_err());
        assert_eq!(list(folder).unwrap().len(), 1);
    }

    /// A run must not start again and overwrite the checkpoints of another version.
    #[test]
    fn a_checkpoint_of_another_version_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(1).write(folder.path(), 2).unwrap();
        let path = list(folder.path()).unwrap().remove(0);
        let (header, tensors) = tensor_file::from_bytes(&std::fs::read(&path).unwrap()).unwrap();
        let old = header.replacen(&format!("\"version\":{VERSION}"), "\"version\":3", 1);
        assert_ne!(old, header);
        std::fs::write(&path, tensor_file::to_bytes(old, &tensors).unwrap()).unwrap();
        let error = Checkpoint::newest(folder.path(), |error| panic!("{error}")).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("00000001.safetensors is of version 3"), "{message}");
        assert!(message.contains("start a new run"), "{message}");
    }

    #[test]
    fn a_checkpoint_with_any_damaged_byte_is_named_and_skipped() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(1).write(folder.path(), 2).unwrap();
        checkpoint(2).write(folder.path(), 2).unwrap();
        let path = list(folder.path()).unwrap().remove(0);
        let whole = std::fs::read(&path).unwrap();
        for position in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let mut named = Vec::new();
            let newest =
                Checkpoint::newest(folder.path(), |error| named.push(error.to_string())).unwrap();
            // A flipped space or a changed letter of a key may not change the content.
            if newest != Some(checkpoint(2)) {
                assert_eq!(newest, Some(checkpoint(1)), "byte {position}");
                assert!(named[0].contains("00000002.safetensors"), "{named:?}");
            }
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(Checkpoint::newest(folder.path(), |_| ()).unwrap(), Some(checkpoint(1)));
    }
}
