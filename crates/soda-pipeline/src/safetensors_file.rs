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
        Ok(Self::read_where(path, |_| true)?.0)
    }

    /// Reads the metadata of a file.
    ///
    /// # Errors
    /// [`FormatError`] for a file that cannot be read or is not a safetensors file.
    pub(crate) fn read_metadata(path: &Path) -> Result<HashMap<String, String>, FormatError> {
        let file = SafetensorsReader::open(path).map_err(|error| refusal(path, error))?;
        Ok(file.metadata().clone().into_iter().collect())
    }

    /// [`SafetensorsFile::read`] of a file that may have tensors of other types. Those whose name `is_known`
    /// does not hold for are left out, and their names are returned.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read`].
    pub(crate) fn read_where(
        path: &Path,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<(Self, Vec<String>), FormatError> {
        let file = SafetensorsReader::open(path).map_err(|error| refusal(path, error))?;
        let metadata = file.metadata().clone().into_iter().collect();
        let (mut tensors, mut others) = (BTreeMap::new(), Vec::new());
        for (key, dtype, shape) in file.tensors() {
            let dtype = match number_dtype(dtype, shape) {
                Some(dtype) => dtype,
                None if !is_known(key) => {
                    others.push(key.to_owned());
                    continue;
                }
                None => {
                    let (path, key) = (path.to_owned(), key.to_owned());
                    return Err(FormatError::DType { path, key, found: dtype.to_string() });
                }
            };
            let bytes = file.read(key).map_err(|source| FormatError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            })?;
            let data = TensorData::from_bytes_vec(bytes, shape.to_vec(), dtype);
            let data = data.convert_dtype(DType::F32);
            if data.iter::<f32>().any(|value| !value.is_finite()) {
                return Err(FormatError::NonFinite { path: path.to_owned(), key: key.to_owned() });
            }
            tensors.insert(key.to_owned(), data);
        }
        Ok((Self { tensors, metadata }, others))
    }

    /// Writes all tensors as F32. `path` never holds an incomplete file.
    ///
    /// # Errors
    /// [`FormatError::Io`] with the reason from the operating system.
    pub(crate) fn write(&self, path: &Path) -> Result<(), FormatError> {
        write_atomically(path, &encode(&self.tensors, &self.metadata, DType::F32, path)?)
    }

    /// Writes the tensors as `dtype`, F32, F16 or BF16. Tensors without axes are F32. `path` never holds an
    /// incomplete file.
    ///
    /// # Errors
    /// [`FormatError::NonFinite`] and [`FormatError::OutOfRange`] with the name of a tensor, and
    /// [`FormatError::Io`] with the reason from the operating system.
    pub(crate) fn write_as(&self, path: &Path, dtype: DType) -> Result<(), FormatError> {
        for (key, data) in &self.tensors {
            if data.iter::<f32>().any(|value| !value.is_finite()) {
                return Err(FormatError::NonFinite { path: path.to_owned(), key: key.clone() });
            }
            let rounded = data.clone().convert_dtype(dtype);
            let beyond = data.iter::<f32>().zip(rounded.iter::<f32>());
            if let Some((value, _)) = beyond.into_iter().find(|(_, rounded)| !rounded.is_finite()) {
                let dtype = dtype.name();
                let (path, key) = (path.to_owned(), key.clone());
                return Err(FormatError::OutOfRange { path, key, value, dtype });
            }
        }
        write_atomically(path, &encode(&self.tensors, &self.metadata, dtype, path)?)
    }
}

/// The bytes of a file at `path` with these tensors as `dtype`. Tensors without axes are F32.
///
/// The same contents give the same bytes.
pub(crate) fn encode(
    tensors: &BTreeMap<String, TensorData>,
    metadata: &HashMap<String, String>,
    dtype: DType,
    path: &Path,
) -> Result<Vec<u8>, FormatError> {
    let malformed = |reason: String| FormatError::Malformed { path: path.to_owned(), reason };
    let tensors: Vec<(&String, Dtype, TensorData)> = tensors
        .iter()
        .map(|(key, data)| {
            // A number such as `α` is exact in f32, and takes no room.
            let dtype = if data.shape().as_slice().is_empty() { DType::F32 } else { dtype };
            let stored = match dtype {
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
                _ => Dtype::F32,
            };
            (key, stored, data.clone().convert_dtype(dtype))
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(key, dtype, data)| {
            Ok((key, TensorView::new(*dtype, data.shape().as_slice().to_vec(), data.as_bytes())?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| malformed(error.to_string()))?;
    let mut bytes = safetensors::serialize(views, Some(metadata.clone()))
        .map_err(|error| malformed(error.to_string()))?;
    sort_metadata(&mut bytes).map_err(|error| malformed(error.to_string()))?;
    Ok(bytes)
}

/// Sorts the metadata in the header of a file, which the safetensors crate writes in random order.
fn sort_metadata(bytes: &mut [u8]) -> serde_json::Result<()> {
    let Some((length, rest)) = bytes.split_first_chunk_mut::<8>() else { return Ok(()) };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some(header) = rest.get_mut(..length) else { return Ok(()) };
    let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)?;
    let Some(metadata) = fields.remove(METADATA) else { return Ok(()) };
    let metadata: BTreeMap<String, String> = serde_json::from_value(metadata)?;
    let sorted = serde_json::to_string(&metadata)?;
    // The field comes first, and its order does not change its length.
    let begin = format!("{{\"{METADATA}\":").len();
    if let Some(place) = header.get_mut(begin..begin + sorted.len()) {
        place.copy_from_slice(sorted.as_bytes());
    }
    Ok(())
}

/// The field of a header with the metadata.
const METADATA: &str = "__metadata__";

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
        // The code has the system's own words, "No such file or directory", on Unix and on Windows.
        ModelError::Missing { path, .. } => io(path, std::io::Error::from_raw_os_error(2)),
        ModelError::Weights(WeightsError::Safetensors { reason, .. }) => {
            FormatError::Malformed { path, reason }
        }
        ModelError::Weights(WeightsError::Pickle { .. }) => FormatError::Pickle { path },
        ModelError::Weights(WeightsError::NotSafetensors { .. }) => {
            FormatError::NotSafetensors { path }
        }
        other => FormatError::Malformed { path, reason: other.to_string() },
    }
}

/// The type of a tensor whose values are converted to f32. A single number may be an integer. `None` for
/// other types.
fn number_dtype(dtype: Dtype, shape: &[usize]) -> Option<DType> {
    let is_number = shape.iter().all(|size| *size == 1);
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F64 => Some(DType::F64),
        Dtype::I64 if is_number => Some(DType::I64),
        Dtype::I32 if is_number => Some(DType::I32),
        Dtype::I16 if is_number => Some(DType::I16),
        Dtype::I8 if is_number => Some(DType::I8),
        Dtype::U8 if is_number => Some(DType::U8),
        _ => None,
    }
}
