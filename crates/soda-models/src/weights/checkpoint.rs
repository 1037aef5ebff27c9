//! The tensors of a network in one weight file or several, under the network's keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::{Bytes, DType, FloatDType, TensorData, shape};
use burn_store::burn_pack::{Error as PackError, Tensor as Stored};
use burn_store::{
    ApplyError, ApplyResult, FloatCastAdapter, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter,
    bridge,
};
use regex::Regex;
use safetensors::Dtype;
use serde::Deserialize;

use crate::error::{ConfigError, ModelError, WeightsError};
use crate::input_file::{SizeLimit, read_text};
use crate::weights::finite::first_non_finite;
use crate::weights::keys::{BUFFERS, KEY_RENAMES, checkpoint_key};
use crate::weights::safetensors::{Entry, SafetensorsReader};

/// The number of weights that may be missing until they are listed.
const SMALL_NETWORK: usize = 1 << 24;

/// Open weight files. The headers are read; the tensors are read when a module is loaded.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file that was opened: a weight file, or the index of several.
    pub path: PathBuf,
    /// The tensors by the network's keys.
    pub(crate) entries: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens a safetensors file, or an index `*.safetensors.index*.json` with the files that it names.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if a file is missing, broken or a pickle, or if an index names files outside its
    /// directory or tensors that are not there.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let entries = match path.extension() {
            Some(extension) if extension == "json" => open_shards(path)?,
            _ => SafetensorsReader::open(path)?.into_entries(),
        };
        Ok(Self { path: path.to_path_buf(), entries })
    }

    /// Renames the keys by (regular expression, replacement), applied in order.
    ///
    /// # Panics
    ///
    /// If a regular expression does not parse.
    pub fn with_renamed_keys(mut self, table: &[(&str, &str)]) -> Self {
        for (from, to) in table {
            let from = Regex::new(from).expect("a regular expression of a table");
            let renamed = self.entries.into_iter().map(|(key, entry)| {
                let key = from.replace(&key, *to).into_owned();
                (key, entry)
            });
            self.entries = renamed.collect();
        }
        self
    }

    /// Loads every weight of `module` as `dtype` and freezes the module.
    ///
    /// The memory is that of the weights plus one tensor as it is in the file.
    ///
    /// # Errors
    ///
    /// [`ModelError::Weights`] for a key that is missing or unused, a wrong shape, an integer tensor or a
    /// weight that is not finite.
    pub fn load_into<M: Module>(self, module: M, dtype: FloatDType) -> Result<M, ModelError> {
        self.load_into_mixed(module, dtype, BTreeSet::new())
    }

    /// Loads every weight of `module` as `dtype`, except those at the paths `keep_f32`, which are loaded as
    /// f32.
    ///
    /// # Errors
    ///
    /// The errors of [`Checkpoint::load_into`].
    pub fn load_into_mixed<M: Module>(
        self,
        module: M,
        dtype: FloatDType,
        keep_f32: BTreeSet<String>,
    ) -> Result<M, ModelError> {
        self.check_size(&module)?;
        let mut failure = Failure::default();
        let mut tensors = Vec::with_capacity(self.entries.len());
        for (key, entry) in &self.entries {
            if BUFFERS.iter().any(|buffer| key.ends_with(buffer)) {
                continue;
            }
            tensors.push(stored(key, entry, &failure)?);
        }
        let cast = Cast { dtype, keep_f32: Arc::new(keep_f32) };
        let apply = |(mut module, tensors): (M, Vec<Stored>)| {
            let adapter = ScalarToVector.chain(PyTorchToBurnAdapter.chain(cast.clone()));
            let result = module.apply(tensors, None, Some(Box::new(adapter)), false);
            (module, result)
        };
        // Weights live longer than all other tensors, and must not hold pages of the device's memory pools.
        let (module, result) = match module.devices().first() {
            Some(device) => device.memory_persistent_allocations((module, tensors), apply),
            None => apply((module, tensors)),
        };
        if let Some(error) = failure.take() {
            return Err(error);
        }
        self.check(result)?;
        Ok(module.no_grad())
    }

    /// Refuses a network that is much larger than the file.
    ///
    /// Its weights would be initialised before the report says which of them the file lacks.
    fn check_size<M: Module>(&self, module: &M) -> Result<(), ModelError> {
        let stored: usize = self.entries.values().map(Entry::elements).sum();
        let needed = module.num_params();
        if needed / 4 <= stored + SMALL_NETWORK {
            return Ok(());
        }
        let reason = format!(
            "config.json describes a network of {needed} numbers, and the file has {stored}"
        );
        Err(WeightsError::Mismatch { path: self.path.clone(), reason }.into())
    }

    /// Turns burn-store's report into an error, unless every tensor was loaded.
    fn check(&self, result: ApplyResult) -> Result<(), ModelError> {
        let path = self.path.clone();
        let in_file = |key: &String| self.entries.get(key).map_or(key, |entry| &entry.key).clone();
        if !result.missing.is_empty() {
            let keys = result.missing.iter().map(|(name, module)| checkpoint_key(name, module));
            return Err(WeightsError::MissingKeys { path, keys: keys.collect() }.into());
        }
        if !result.unused.is_empty() {
            return Err(WeightsError::UnusedKeys {
                path,
                keys: result.unused.iter().map(in_file).collect(),
            }
            .into());
        }
        match result.errors.into_iter().next() {
            None => Ok(()),
            Some(ApplyError::ShapeMismatch { path: name, expected, found }) => {
                let key = checkpoint_key(&name, "Norm");
                let (mut expected, mut found) = (expected.to_vec(), found.to_vec());
                // burn-store compares shapes after the transposition; the message has the shapes of the file.
                if let Some(entry) = self.entries.get(&key)
                    && entry.shape != found
                {
                    expected.reverse();
                    found.reverse();
                }
                Err(WeightsError::Shape { path, key: in_file(&key), expected, found }.into())
            }
            Some(other) => {
                Err(WeightsError::Safetensors { path, reason: other.to_string() }.into())
            }
        }
    }
}

/// Whether a file has the extension of a PyTorch pickle.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|name| ["bin", "ckpt", "pt", "pth"].contains(&name))
}

/// Opens the files of an index.
fn open_shards(path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let io = |e| ModelError::io(path, "an index of weight files", e);
    let broken = |reason: String| {
        ModelError::from(WeightsError::Safetensors { path: path.to_path_buf(), reason })
    };
    let text = read_text(path, SizeLimit::INDEX).map_err(io)?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|source| ConfigError::Json { path: path.to_path_buf(), source })?;
    let dir = path.parent().unwrap_or(Path::new("."));

    let mut shards: BTreeMap<&String, BTreeMap<String, Entry>> = BTreeMap::new();
    for name in index.weight_map.values() {
        if shards.contains_key(name) {
            continue;
        }
        // Only file names are accepted: an index may come from a stranger and must not reach other folders.
        let plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        if !plain || name.contains(['/', '\\']) {
            return Err(broken(format!("it points to {name:?}, which is no file beside it")));
        }
        shards.insert(name, SafetensorsReader::open(&dir.join(name))?.into_entries());
    }
    let mut entries = BTreeMap::new();
    for (key, name) in &index.weight_map {
        match shards.get_mut(name).and_then(|shard| shard.remove(key)) {
            Some(entry) => entries.insert(key.clone(), entry),
            None => {
                return Err(broken(format!("it says that `{key}` is in {name}, but it is not")));
            }
        };
    }
    Ok(entries)
}

/// The first error while tensors are read. burn-store would report it as a string.
#[derive(Debug, Clone, Default)]
struct Failure(Arc<Mutex<Option<ModelError>>>);

impl Failure {
    fn set(&self, error: impl Into<ModelError>) -> PackError {
        let error = error.into();
        let reason = error.to_string();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        PackError::ValidationError(reason)
    }

    fn take(&mut self) -> Option<ModelError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A tensor that burn-store reads when it loads the parameter.
fn stored(key: &str, entry: &Entry, failure: &Failure) -> Result<Stored, ModelError> {
    let dtype = match entry.dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(WeightsError::DType {
                path: entry.source.path.clone(),
                key: entry.key.clone(),
                dtype: format!("{other:?}"),
            }
            .into());
        }
    };
    let mut dims = entry.shape.clone();
    if entry.transposed {
        dims.reverse();
    }
    let (entry, failure, shape) = (entry.clone(), failure.clone(), dims.clone());
    Ok(bridge::deferred(key.to_string(), dtype, dims.into(), None, move || {
        let path = &entry.source.path;
        let bytes =
            entry.read().map_err(|e| failure.set(ModelError::io(path, "a weight file", e)))?;
        let invalid = |e: String| PackError::ValidationError(e);
        let mut data =
            TensorData::try_from_bytes(Bytes::from_bytes_vec(bytes), entry.shape.clone(), dtype)
                .map_err(|e| invalid(e.to_string()))?;
        // Checked here, where the tensor has a name. Later, NaN would be a black image.
        if let Some((index, value)) = first_bad(entry.dtype, &data) {
            return Err(failure.set(WeightsError::NonFinite {
                path: path.clone(),
                key: entry.key.clone(),
                index,
                value,
            }));
        }
        if entry.transposed {
            data = transposed(data, &shape);
        }
        Ok(data)
    }))
}

/// The position and value of the first element that is NaN or infinite.
fn first_bad(dtype: Dtype, data: &TensorData) -> Option<(usize, f64)> {
    let index = first_non_finite(dtype, data.as_bytes())?;
    data.iter::<f64>().nth(index).map(|value| (index, value))
}

/// Transposes a matrix. `shape` is that of the result.
fn transposed(data: TensorData, shape: &[usize]) -> TensorData {
    let [rows, columns] = *shape else { return data };
    let (width, dtype) = (data.dtype().size(), data.dtype());
    let bytes = data.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        for column in 0..columns {
            let at = (column * rows + row) * width;
            out.extend_from_slice(&bytes[at..at + width]);
        }
    }
    TensorData::from_bytes_vec(out, shape.to_vec(), dtype)
}

/// Reads a scalar, which burn does not have, as a vector of length 1: CLIP's `logit_scale`.
#[derive(Debug, Clone)]
struct ScalarToVector;

impl ModuleAdapter for ScalarToVector {
    fn adapt(&self, tensor: Stored, _context: burn_store::ModuleContext<'_>) -> Stored {
        if !tensor.shape.is_empty() {
            return tensor;
        }
        let (name, dtype) = (tensor.name.clone(), tensor.dtype);
        bridge::map_data(tensor, name, dtype, shape![1], move |data| {
            TensorData::from_bytes_vec(data.as_bytes().to_vec(), [1], dtype)
        })
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

/// Casts to one dtype, except at some paths.
#[derive(Debug, Clone)]
struct Cast {
    dtype: FloatDType,
    keep_f32: Arc<BTreeSet<String>>,
}

impl ModuleAdapter for Cast {
    fn adapt(&self, tensor: Stored, context: burn_store::ModuleContext<'_>) -> Stored {
        let keep_f32 = self.keep_f32.contains(&tensor.name);
        let dtype = if keep_f32 { FloatDType::F32 } else { self.dtype };
        FloatCastAdapter::to(dtype.into()).adapt(tensor, context)
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

/// Opens a file with its keys renamed by `renames` and then by [`KEY_RENAMES`].
pub(crate) fn open_renamed(
    path: &Path,
    renames: &[(&str, &str)],
) -> Result<Checkpoint, ModelError> {
    Ok(Checkpoint::open(path)?.with_renamed_keys(renames).with_renamed_keys(KEY_RENAMES))
}
