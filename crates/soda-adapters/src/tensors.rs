//! Named f32 tensors and text metadata in a safetensors file: the one place that reads and writes bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::AdapterError;

/// A safetensors file in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tensors {
    /// f32, by name.
    pub(crate) tensors: BTreeMap<String, TensorData>,
    pub(crate) metadata: HashMap<String, String>,
}

impl Tensors {
    /// Reads a file whose tensors are F32, F16 or BF16.
    ///
    /// # Errors
    /// A file that cannot be read or is no safetensors file, a tensor of another type, or one with NaN
    /// or infinity.
    pub(crate) fn read(path: &Path) -> Result<Self, AdapterError> {
        let io = |source| AdapterError::Io { action: "read", path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(io)?;
        let malformed = |error: safetensors::SafeTensorError| AdapterError::Malformed {
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
                return Err(AdapterError::NonFinite { key });
            }
            tensors.insert(key, data);
        }
        Ok(Self { tensors, metadata })
    }

    /// Writes all tensors as F32: to a temporary file beside `path`, synced, then renamed, so that `path`
    /// never holds half a file.
    ///
    /// # Errors
    /// What the operating system says (no such folder, no room, no permission).
    pub(crate) fn write(&self, path: &Path) -> Result<(), AdapterError> {
        let bytes: Vec<(&String, Vec<u8>, Vec<usize>)> = self
            .tensors
            .iter()
            .map(|(key, data)| {
                let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
                (key, bytes, data.shape().as_slice().to_vec())
            })
            .collect();
        let malformed = |error: safetensors::SafeTensorError| AdapterError::Malformed {
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
        write_whole(path, &bytes)
    }
}

/// Writes `bytes` so that `path` appears whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = builder().tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| AdapterError::Io { action: "write", path: path.to_owned(), source })
}

/// A temporary file is its owner's alone; what it becomes is as open as the user's other files.
#[cfg(unix)]
fn builder() -> tempfile::Builder<'static, 'static> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut builder = tempfile::Builder::new();
    // Less the umask, as for every new file.
    builder.permissions(std::fs::Permissions::from_mode(0o666));
    builder
}

#[cfg(not(unix))]
fn builder() -> tempfile::Builder<'static, 'static> {
    tempfile::Builder::new()
}

fn widen(key: &str, view: &TensorView<'_>) -> Result<TensorData, AdapterError> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(AdapterError::DType { key: key.to_owned(), found: other.to_string() });
        }
    };
    let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
    Ok(data.convert_dtype(DType::F32))
}
