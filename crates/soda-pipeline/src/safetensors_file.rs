//! Named f32 tensors with text metadata in a safetensors file: the only code of this crate that reads or
//! writes tensors.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, TensorView};
use soda_models::weights::SafetensorsReader;
use soda_models::{ModelError, WeightsError};

use crate::error::FormatError;

/// The contents of a safetensors file.
#[derive(Clone, Debug, Default)]
pub(crate) struct SafetensorsFile {
    /// The tensors in f32, by name.
    pub(crate) tensors: BTreeMap<String, TensorData>,
    /// The metadata of the header.
    pub(crate) metadata: HashMap<String, String>,
}

impl SafetensorsFile {
    /// Reads a file with tensors in F32, F16, BF16 or F64, and converts them to f32. A single number may be
    /// an integer, as `α` of some tools.
    ///
    /// # Errors
    /// [`FormatError`] for a file that cannot be read or is not a safetensors file, for a tensor of another
    /// type, and for a tensor with NaN or infinity.
    pub(crate) fn read(path: &Path) -> Result<Self, FormatError> {
        let file = SafetensorsReader::open(path).map_err(|error| refusal(path, error))?;
        let metadata = file.metadata().clone().into_iter().collect();
        let mut tensors = BTreeMap::new();
        for (key, dtype, shape) in file.tensors() {
            let dtype = number_dtype(key, dtype, shape)?;
            let bytes = file.read(key).map_err(|source| FormatError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            })?;
            let data = TensorData::from_bytes_vec(bytes, shape.to_vec(), dtype);
            let data = data.convert_dtype(DType::F32);
            if data.iter::<f32>().any(|value| !value.is_finite()) {
                return Err(FormatError::NonFinite { key: key.to_owned() });
            }
            tensors.insert(key.to_owned(), data);
        }
        Ok(Self { tensors, metadata })
    }

    /// Writes all tensors as F32. `path` never holds an incomplete file.
    ///
    /// # Errors
    /// [`FormatError::Io`] with the reason from the operating system.
    pub(crate) fn write(&self, path: &Path) -> Result<(), FormatError> {
        let bytes: Vec<(&String, Vec<u8>, Vec<usize>)> = self
            .tensors
            .iter()
            .map(|(key, data)| {
                let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
                (key, bytes, data.shape().as_slice().to_vec())
            })
            .collect();
        let malformed = |error: safetensors::SafeTensorError| FormatError::Malformed {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let views = bytes
            .iter()
            .map(|(key, bytes, shape)| {
                Ok((key, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(malformed)?;
        let bytes =
            safetensors::serialize(views, Some(self.metadata.clone())).map_err(malformed)?;
        write_atomically(path, &bytes)
    }
}

/// Writes `bytes` to `path` whole or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let io = |source| FormatError::Io { action: "write", path: path.to_owned(), source };
    soda_files::write(path, bytes).map_err(io)
}

/// The refusal of the reader in this crate's words.
fn refusal(path: &Path, error: ModelError) -> FormatError {
    let path = path.to_owned();
    let io = |path, source| FormatError::Io { action: "read", path, source };
    match error {
        ModelError::Io { path, source } => io(path, source),
        ModelError::Missing { path, .. } => io(path, std::io::ErrorKind::NotFound.into()),
        ModelError::Weights(WeightsError::Safetensors { reason, .. }) => {
            FormatError::Malformed { path, reason }
        }
        ModelError::Weights(WeightsError::Pickle { .. }) => {
            let reason = "it is a pickle, which can run any code when it is read".to_owned();
            FormatError::Malformed { path, reason }
        }
        other => FormatError::Malformed { path, reason: other.to_string() },
    }
}

/// The type of a tensor whose values are converted to f32. A single number may be an integer.
fn number_dtype(key: &str, dtype: Dtype, shape: &[usize]) -> Result<DType, FormatError> {
    let is_number = shape.iter().all(|size| *size == 1);
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        Dtype::F64 => Ok(DType::F64),
        Dtype::I64 if is_number => Ok(DType::I64),
        Dtype::I32 if is_number => Ok(DType::I32),
        other => Err(FormatError::DType { key: key.to_owned(), found: other.to_string() }),
    }
}
