//! The tensors of a network, in one file or in several, under the names that the network has.

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

use crate::error::ModelError;
use crate::weights::safetensors::{Entry, open};
use crate::weights::{BUFFERS, RENAMED, checkpoint_key};

/// The largest index of shards that is read, in bytes.
const LARGEST_INDEX: u64 = 64 << 20;

/// Open weight files: what is in them is known, nothing is in memory yet.
#[derive(Debug)]
pub struct Checkpoint {
    /// What was opened: a file, or the index of several.
    pub path: PathBuf,
    /// By the network's key.
    pub(crate) entries: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens a safetensors file, or a `*.safetensors.index*.json` and the files that it names.
    ///
    /// # Errors
    ///
    /// A file that is missing, broken, or a pickle; an index that points outside its directory or
    /// to tensors that are not where it says.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let entries = match path.extension() {
            Some(extension) if extension == "json" => open_shards(path)?,
            _ => open(path)?,
        };
        Ok(Self { path: path.to_path_buf(), entries })
    }

    /// Opens the weights called `stem` in `dir`: one file or several, of the `variant` asked for
    /// (such as `fp16`), or without one the plain file, or else the only variant there is.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`]; a directory that only has pickles is refused by name.
    pub fn find(dir: &Path, stem: &str, variant: Option<&str>) -> Result<Self, ModelError> {
        let plain = dir.join(format!("{stem}.safetensors"));
        let candidates = match variant {
            Some(name) => [
                dir.join(format!("{stem}.{name}.safetensors")),
                dir.join(format!("{stem}.safetensors.index.{name}.json")),
            ],
            None => [plain.clone(), dir.join(format!("{stem}.safetensors.index.json"))],
        };
        if let Some(found) = candidates.iter().find(|path| path.is_file()) {
            return Self::open(found);
        }
        let names: Vec<String> = std::fs::read_dir(dir)
            .map_err(|e| ModelError::io(dir, "a directory of weights", e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(stem))
            .collect();
        let whole = |name: &&String| {
            let (start, end) = (format!("{stem}."), ".safetensors");
            let index = format!("{stem}.safetensors.index.");
            (name.starts_with(&start) && name.ends_with(end))
                || (name.starts_with(&index) && name.ends_with(".json"))
        };
        let mut variants = names.iter().filter(whole);
        match (variant, variants.next(), variants.next()) {
            (None, Some(only), None) => return Self::open(&dir.join(only)),
            (None, Some(one), Some(other)) => {
                return Err(ModelError::InvalidRequest {
                    field: "variant",
                    value: "not given".to_string(),
                    expected: format!("{} has several: {one}, {other}", dir.display()),
                });
            }
            _ => {}
        }
        if let Some(pickle) = names.iter().find(|name| is_pickle(Path::new(name))) {
            return Err(ModelError::Pickle { path: dir.join(pickle) });
        }
        let [path, _] = candidates;
        Err(ModelError::Missing { path, what: "a weight file" })
    }

    /// The same tensors under other keys: (regular expression, replacement), applied in order.
    ///
    /// # Panics
    ///
    /// If a regular expression does not parse.
    pub fn renamed(mut self, table: &[(&str, &str)]) -> Self {
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

    /// Loads every weight of `module` in the precision `dtype`, and freezes the module.
    ///
    /// Memory: the weights, and one tensor as it is in the file.
    ///
    /// # Errors
    ///
    /// A key that is missing or left over, a wrong shape, integers, a weight that is not finite.
    pub fn load_into<M: Module>(self, module: M, dtype: FloatDType) -> Result<M, ModelError> {
        self.load_into_but(module, dtype, BTreeSet::new())
    }

    /// The same with the parameters of the paths `exact` in f32.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::load_into`].
    pub fn load_into_but<M: Module>(
        self,
        module: M,
        dtype: FloatDType,
        exact: BTreeSet<String>,
    ) -> Result<M, ModelError> {
        let mut failure = Failure::default();
        let mut tensors = Vec::with_capacity(self.entries.len());
        for (key, entry) in &self.entries {
            if BUFFERS.iter().any(|buffer| key.ends_with(buffer)) {
                continue;
            }
            tensors.push(stored(key, entry, &failure)?);
        }
        let cast = Cast { dtype, exact: Arc::new(exact) };
        let apply = |(mut module, tensors): (M, Vec<Stored>)| {
            let adapter = ScalarToVector.chain(PyTorchToBurnAdapter.chain(cast.clone()));
            let result = module.apply(tensors, None, Some(Box::new(adapter)), false);
            (module, result)
        };
        // Weights outlive everything else, and keep no page of a pool that way.
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

    /// Turns burn-store's report into an error unless every tensor found its place.
    fn check(&self, result: ApplyResult) -> Result<(), ModelError> {
        let path = self.path.clone();
        let in_file = |key: &String| self.entries.get(key).map_or(key, |entry| &entry.key).clone();
        if !result.missing.is_empty() {
            let keys = result.missing.iter().map(|(name, module)| checkpoint_key(name, module));
            return Err(ModelError::MissingKeys { path, keys: keys.collect() });
        }
        if !result.unused.is_empty() {
            return Err(ModelError::UnusedKeys {
                path,
                keys: result.unused.iter().map(in_file).collect(),
            });
        }
        match result.errors.into_iter().next() {
            None => Ok(()),
            Some(ApplyError::ShapeMismatch { path: name, expected, found }) => {
                let key = checkpoint_key(&name, "Norm");
                let (mut expected, mut found) = (expected.to_vec(), found.to_vec());
                // burn-store compares after the transposition; the person compares with the file.
                if let Some(entry) = self.entries.get(&key)
                    && entry.shape != found
                {
                    expected.reverse();
                    found.reverse();
                }
                Err(ModelError::Shape { path, key: in_file(&key), expected, found })
            }
            Some(other) => Err(ModelError::Safetensors { path, reason: other.to_string() }),
        }
    }
}

/// Whether a file is named as PyTorch's pickles are.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|name| ["bin", "ckpt", "pt", "pth"].contains(&name))
}

/// Opens the files of an index.
fn open_shards(path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let io = |e| ModelError::io(path, "an index of weight files", e);
    let broken = |reason: String| ModelError::Safetensors { path: path.to_path_buf(), reason };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > LARGEST_INDEX {
        return Err(broken(format!("an index of {size} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|source| ModelError::Json { path: path.to_path_buf(), source })?;
    let dir = path.parent().unwrap_or(Path::new("."));

    let mut shards: BTreeMap<&String, BTreeMap<String, Entry>> = BTreeMap::new();
    for name in index.weight_map.values() {
        if shards.contains_key(name) {
            continue;
        }
        // A name, not a path: an index comes from a stranger, and must not reach other folders.
        let plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        if !plain || name.contains(['/', '\\']) {
            return Err(broken(format!("it points to {name:?}, which is no file beside it")));
        }
        shards.insert(name, open(&dir.join(name))?);
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

/// The first failure while tensors are read, which burn-store would report as a string.
#[derive(Debug, Clone, Default)]
struct Failure(Arc<Mutex<Option<ModelError>>>);

impl Failure {
    fn set(&self, error: ModelError) -> PackError {
        let reason = error.to_string();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        PackError::ValidationError(reason)
    }

    fn take(&mut self) -> Option<ModelError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A tensor that burn-store reads when it finds its place.
fn stored(key: &str, entry: &Entry, failure: &Failure) -> Result<Stored, ModelError> {
    let dtype = match entry.dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(ModelError::DType {
                path: entry.source.path.clone(),
                key: entry.key.clone(),
                dtype: format!("{other:?}"),
            });
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
        // Refused here, where a tensor still has a name; later NaN is a black image.
        if let Some((index, value)) = first_bad(&data) {
            return Err(failure.set(ModelError::NonFinite {
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

/// The first element that is NaN or infinite, and its position.
fn first_bad(data: &TensorData) -> Option<(usize, f64)> {
    // All bits of the exponent are set. They lie in the upper two bytes of every type; comparing
    // those is several times as fast as converting each element, and there are a billion.
    let exponent: u16 = match data.dtype() {
        DType::F16 => 0x7c00,
        DType::BF16 | DType::F32 => 0x7f80,
        _ => 0x7ff0,
    };
    let width = data.dtype().size();
    let index = data.as_bytes().chunks_exact(width).position(|bytes| {
        u16::from_le_bytes([bytes[width - 2], bytes[width - 1]]) & exponent == exponent
    })?;
    data.iter::<f64>().nth(index).map(|value| (index, value))
}

/// A matrix whose rows were stored as columns; `shape` is that of the result.
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

/// A tensor without axes, which burn does not have, as one of a single number: CLIP's temperature.
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

/// To one precision, but for some paths.
#[derive(Debug, Clone)]
struct Cast {
    dtype: FloatDType,
    exact: Arc<BTreeSet<String>>,
}

impl ModuleAdapter for Cast {
    fn adapt(&self, tensor: Stored, context: burn_store::ModuleContext<'_>) -> Stored {
        let exact = self.exact.contains(&tensor.name);
        let dtype = if exact { FloatDType::F32 } else { self.dtype };
        FloatCastAdapter::to(dtype.into()).adapt(tensor, context)
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

/// Opens a file under the names of [`RENAMED`], after further `renames`.
pub(crate) fn open_renamed(
    path: &Path,
    renames: &[(&str, &str)],
) -> Result<Checkpoint, ModelError> {
    Ok(Checkpoint::open(path)?.renamed(renames).renamed(RENAMED))
}
