//! Named f32 tensors with text metadata in a safetensors file: the only code of this crate that reads or
//! writes tensors.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

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
    /// Reads a file with tensors in F32, F16 or BF16, and widens them to f32.
    ///
    /// # Errors
    /// [`FormatError`] for a file that cannot be read or is not a safetensors file, for a tensor of another
    /// type, and for a tensor with NaN or infinity.
    pub(crate) fn read(path: &Path) -> Result<Self, FormatError> {
        let io = |source| FormatError::Io { action: "read", path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(io)?;
        let malformed = |error: safetensors::SafeTensorError| FormatError::Malformed {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(malformed)?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).map_err(malformed)?;
        let mut tensors = BTreeMap::new();
        for (key, view) in file.tensors() {
            let data = widen(&key, &view)?;
            if data.iter::<f32>().any(|value| !value.is_finite()) {
                return Err(FormatError::NonFinite { key });
            }
            tensors.insert(key, data);
        }
        Ok(Self { tensors, metadata })
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
                return Err(FormatError::NonFinite { key: key.clone() });
            }
            let rounded = data.clone().convert_dtype(dtype);
            let beyond = data.iter::<f32>().zip(rounded.iter::<f32>());
            if let Some((value, _)) = beyond.into_iter().find(|(_, rounded)| !rounded.is_finite()) {
                let dtype = dtype.name();
                return Err(FormatError::OutOfRange { key: key.clone(), value, dtype });
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

/// Writes `bytes` to a temporary file beside `path`, syncs it and renames it to `path`.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = temporary_file().tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| FormatError::Io { action: "write", path: path.to_owned(), source })
}

/// A temporary file that other users may read, up to the umask, as any new file. The default is the owner
/// alone.
#[cfg(unix)]
fn temporary_file() -> tempfile::Builder<'static, 'static> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut builder = tempfile::Builder::new();
    builder.permissions(std::fs::Permissions::from_mode(0o666));
    builder
}

#[cfg(not(unix))]
fn temporary_file() -> tempfile::Builder<'static, 'static> {
    tempfile::Builder::new()
}

fn widen(key: &str, view: &TensorView<'_>) -> Result<TensorData, FormatError> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(FormatError::DType { key: key.to_owned(), found: other.to_string() });
        }
    };
    let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
    Ok(data.convert_dtype(DType::F32))
}
