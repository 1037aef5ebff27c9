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
    /// Reads a file with tensors in F32, F16, BF16 or F64, and converts them to f32. A single number may be
    /// an integer, as `α` of some tools.
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
        Dtype::F64 => DType::F64,
        Dtype::I64 if is_number(view) => DType::I64,
        Dtype::I32 if is_number(view) => DType::I32,
        other => {
            return Err(FormatError::DType { key: key.to_owned(), found: other.to_string() });
        }
    };
    let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
    Ok(data.convert_dtype(DType::F32))
}

fn is_number(view: &TensorView<'_>) -> bool {
    view.shape().iter().all(|size| *size == 1)
}
