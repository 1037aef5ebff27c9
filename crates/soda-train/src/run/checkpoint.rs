//! A training in progress on disk, `checkpoints/<step>.safetensors`.
//!
//! A file appears by rename, so a crash leaves a whole one or none; its digest tells a whole one from one
//! that the disk damaged. The newest that is whole counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::output::run_folder::write_file;
use crate::output::tensor_file;
use crate::run::history::{History, Measured};
use crate::step::loss_scale::LossScale;
use crate::step::metrics::Step;
use crate::step::optimizer_state::OptimizerState;
use crate::step::trainer::TrainerState;

/// What a run needs to go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// The trainer's part.
    pub state: TrainerState,
    /// What was measured so far.
    pub history: History,
    /// Seconds of training so far.
    pub seconds: f64,
    /// What tells the data from others.
    pub data: String,
}

/// The part that is no tensor.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    step: usize,
    seconds: f64,
    data: String,
    counts: BTreeMap<String, u64>,
    #[serde(default)]
    scale: Option<LossScale>,
    /// Steps after which the validation was measured.
    validation: Vec<usize>,
}

/// 5: paths begin with the network's name, and text encoders and new words have rates.
const VERSION: u32 = 5;

/// What all versions say.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

const STEPS: &str = "steps";
const VALIDATION: &str = "validation";
const ADAPTER: &str = "adapter/";
const AVERAGE: &str = "average/";
const OPTIMIZER: &str = "optimizer/";

impl Checkpoint {
    /// Writes the checkpoint into `folder` and removes all but the newest `keep`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, folder: &Path, keep: usize) -> Result<(), TrainError> {
        std::fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
        let path = folder.join(format!("{:08}.safetensors", self.state.step));
        write_file(&path, &self.to_bytes(&path)?)?;
        for old in list(folder)?.into_iter().skip(keep.max(1)) {
            std::fs::remove_file(&old).map_err(TrainError::io("remove", &old))?;
        }
        Ok(())
    }

    /// The newest checkpoint in `folder` that is whole; `damaged` is told of newer ones that are not.
    ///
    /// # Errors
    /// A folder that cannot be read, a checkpoint of another version of soda. A folder that is not there has no
    /// checkpoint.
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
                // Whole, and the run is not to begin anew over it.
                Err(error @ TrainError::OtherCheckpoint { .. }) => return Err(error),
                Err(error) => damaged(&error),
            }
        }
        Ok(None)
    }

    /// Reads one file.
    ///
    /// # Errors
    /// A file that cannot be read, is not what was written, or was written by another version of soda.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let bytes = std::fs::read(path).map_err(TrainError::io("read", path))?;
        let damaged = || TrainError::Checkpoint { path: path.to_owned() };
        let (header, tensors) = tensor_file::from_bytes(&bytes).ok_or_else(damaged)?;
        let Version { version } = serde_json::from_str(&header).map_err(|_| damaged())?;
        if version != VERSION {
            return Err(TrainError::OtherCheckpoint { path: path.to_owned(), version });
        }
        let header = serde_json::from_str(&header).map_err(|_| damaged())?;
        Ok(Self::from_parts(header, tensors))
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, TrainError> {
        let History { steps, validation } = &self.history;
        let fields = |step: &Step| step.named().map(|(_, number)| number);
        let steps =
            TensorData::new(steps.iter().flat_map(fields).collect(), [steps.len(), Step::NUMBERS]);
        let measured =
            validation.iter().flat_map(|measured| [measured.loss, measured.orthogonality]);
        let measured = TensorData::new(measured.collect(), [validation.len(), 2]);
        let TrainerState { step, adapter, average, optimizer, scale } = &self.state;
        let mut tensors =
            BTreeMap::from([(STEPS.to_owned(), steps), (VALIDATION.to_owned(), measured)]);
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
            counts: optimizer.counts.clone(),
            scale: *scale,
            validation: validation.iter().map(|measured| measured.step).collect(),
        };
        let header = serde_json::to_string(&header).map_err(|error| refuse(&error))?;
        tensor_file::to_bytes(header, &tensors).map_err(|error| refuse(&error))
    }

    fn from_parts(header: Header, tensors: tensor_file::Tensors) -> Self {
        let mut checkpoint = Self { seconds: header.seconds, data: header.data, ..Self::default() };
        checkpoint.state.step = header.step;
        checkpoint.state.scale = header.scale;
        checkpoint.state.optimizer = OptimizerState { counts: header.counts, ..Default::default() };
        for (name, data) in tensors {
            let state = &mut checkpoint.state;
            if name == STEPS {
                let numbers: Vec<f32> = data.iter::<f32>().collect();
                let (steps, _) = numbers.as_chunks();
                checkpoint.history.steps = steps.iter().copied().map(Step::from_numbers).collect();
            } else if name == VALIDATION {
                let numbers: Vec<f32> = data.iter::<f32>().collect();
                let measured = header.validation.iter().zip(numbers.chunks_exact(2));
                let measured = measured.map(|(&step, of)| Measured {
                    step,
                    loss: of[0],
                    orthogonality: of[1],
                });
                checkpoint.history.validation = measured.collect();
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

/// Checkpoint files, newest first. Others, such as a temporary one of a killed run, are not counted.
fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(TrainError::io("read", folder))? {
        let path = entry.map_err(TrainError::io("read", folder))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let ours = path.extension().is_some_and(|extension| extension == "safetensors");
        if let (true, Ok(step)) = (ours, stem.parse::<u64>()) {
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
                scale: Some(LossScale { value: 512.0, good: 7 }),
            },
            history: History {
                steps: vec![Step::from_numbers([0.1, 2.0, 3e-3, 1e-3, 1e-4, 1e-5]); step],
                validation: vec![Measured { step: 0, loss: 0.3, orthogonality: 1e-7 }],
            },
            seconds: 1.5,
            data: "digest".to_owned(),
        }
    }

    #[test]
    fn what_is_read_is_what_was_written_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        for step in [5, 10, 100] {
            checkpoint(step).write(folder.path(), 2).unwrap();
        }
        assert_eq!(list(folder.path()).unwrap().len(), 2);
        let newest = Checkpoint::newest(folder.path(), |error| panic!("{error}")).unwrap();
        assert_eq!(newest, Some(checkpoint(100)));
        assert_eq!(Checkpoint::newest(Path::new("/nowhere"), |_| ()).unwrap(), None);
    }

    /// A run must not begin anew over what another version has done.
    #[test]
    fn one_of_another_version_is_refused_with_the_remedy() {
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
    fn a_damaged_one_is_named_and_passed_over_whichever_byte_it_is() {
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
            // A flipped space or a changed key's letter may leave the content as it was.
            if newest != Some(checkpoint(2)) {
                assert_eq!(newest, Some(checkpoint(1)), "byte {position}");
                assert!(named[0].contains("00000002.safetensors"), "{named:?}");
            }
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(Checkpoint::newest(folder.path(), |_| ()).unwrap(), Some(checkpoint(1)));
    }
}
