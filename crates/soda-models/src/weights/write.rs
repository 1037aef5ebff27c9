//! Writing safetensors files. Each tensor is read from the network while it is written.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn_store::burn_pack::Tensor as Stored;
use safetensors::{Dtype, SafeTensorError, View};
use soda_files::StagedFile;

use crate::error::{ModelError, WeightsError};
use crate::weights::finite::first_non_finite;

/// A tensor to be written.
pub(crate) struct Writable {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Where the file has the network's elements.
    pub(crate) order: Order,
    /// The tensors that are concatenated along the first axis, by position.
    pub(crate) parts: BTreeMap<usize, Stored>,
}

/// The order of a tensor's elements in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// That of the network.
    Same,
    /// A matrix is written `[columns, rows]`.
    Transposed,
    /// The second half is written before the first.
    HalvesSwapped,
}

impl Writable {
    fn bytes(&self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(self.len());
        for part in self.parts.values() {
            bytes.extend_from_slice(&part.to_bytes().map_err(|e| e.to_string())?);
        }
        match self.order {
            Order::Same => {}
            Order::Transposed => bytes = self.exchange(&bytes),
            Order::HalvesSwapped => {
                let half = bytes.len() / 2;
                bytes.rotate_left(half);
            }
        }
        Ok(bytes)
    }

    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }

    /// Transposes a matrix of the network for the file.
    fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let [rows, columns] = self.shape[..] else { return bytes.to_vec() };
        let width = self.dtype.bitsize() / 8;
        let mut out = Vec::with_capacity(bytes.len());
        for row in 0..rows {
            for column in 0..columns {
                let at = (column * rows + row) * width;
                out.extend_from_slice(&bytes[at..at + width]);
            }
        }
        out
    }
}

/// A tensor during writing. The safetensors crate cannot report that a tensor could not be read, so the
/// failure is stored here and the file is discarded.
struct Writing<'a> {
    tensor: &'a Writable,
    failure: &'a RefCell<Option<String>>,
}

impl View for Writing<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.tensor.bytes().unwrap_or_else(|reason| {
            self.failure.replace(Some(reason));
            Vec::new()
        });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.len()
    }
}

/// Refuses tensors with a value that is NaN or infinite, by the name of the first.
///
/// A merge at an absurd strength gives such values, and so does a dtype that cannot hold them. A file with
/// them could not be loaded again.
pub(crate) fn check_finite(
    tensors: &BTreeMap<String, Writable>,
    path: &Path,
) -> Result<(), ModelError> {
    for (key, tensor) in tensors {
        let bytes = tensor.bytes().map_err(|reason| ModelError::Io {
            path: path.to_path_buf(),
            source: std::io::Error::other(reason),
        })?;
        if let Some(index) = first_non_finite(tensor.dtype, &bytes) {
            let (path, key) = (path.to_path_buf(), key.clone());
            return Err(WeightsError::NotWritten { path, key, index, dtype: tensor.dtype }.into());
        }
    }
    Ok(())
}

/// Writes a file whole or not at all: beside its place, synced, then renamed.
pub(crate) fn write(tensors: &BTreeMap<String, Writable>, path: &Path) -> Result<(), ModelError> {
    let io = |source| ModelError::Io { path: path.to_path_buf(), source };
    let staged = StagedFile::new(path).map_err(io)?;
    let failure = RefCell::new(None);
    let views = tensors.iter().map(|(key, tensor)| (key, Writing { tensor, failure: &failure }));
    // transformers refuses a file that does not state its framework.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let written = safetensors::serialize_to_file(views, Some(metadata), staged.path());
    if let Some(reason) = failure.into_inner() {
        return Err(io(std::io::Error::other(reason)));
    }
    match written {
        Ok(()) => staged.commit().map_err(io),
        // The kind of the system's error tells what to do about it.
        Err(SafeTensorError::IoError(source)) => Err(io(source)),
        Err(other) => Err(io(std::io::Error::other(other.to_string()))),
    }
}
