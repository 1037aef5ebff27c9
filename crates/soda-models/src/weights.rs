//! Reading and writing a network's weights in PyTorch's layout, by the checkpoint's own keys.
//!
//! The checkpoint is the schema: a field of a module is named as the key that it is loaded from, so
//! the burn path `down_blocks.0.attentions.0...to_out.0.weight` is the diffusers key too. What
//! remains between the two worlds is done by burn-store's adapters: a `Linear` is stored `[out, in]`
//! by PyTorch and `[in, out]` by burn, and a norm's `gamma` and `beta` are called `weight` and
//! `bias` there. The few keys that older exporters wrote otherwise are in [`RENAMED`].

use std::io::Read;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, FloatDType, TensorData};
use burn_store::burn_pack::Tensor as Stored;
use burn_store::{
    ApplyError, ApplyResult, BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleSnapshot,
    ModuleStore, PyTorchToBurnAdapter, SafetensorsStore, SafetensorsStoreError, bridge,
};
use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// Keys of older files, as (regular expression, today's key). Tried in order.
///
/// diffusers renamed the autoencoder's attention in 0.13, so every Stable Diffusion 1.x file has
/// the left names; diffusers itself applies the same table when it loads one.
pub const RENAMED: &[(&str, &str)] = &[
    (r"(mid_block\.attentions\.0)\.query\.", "$1.to_q."),
    (r"(mid_block\.attentions\.0)\.key\.", "$1.to_k."),
    (r"(mid_block\.attentions\.0)\.value\.", "$1.to_v."),
    (r"(mid_block\.attentions\.0)\.proj_attn\.", "$1.to_out.0."),
];

/// Buffers that older exporters stored although they are no weights: 0, 1, 2, ...
const BUFFERS: &[&str] = &["position_ids"];

/// Loads every weight of `module` from a safetensors file, as f32, and freezes the module.
///
/// # Errors
///
/// Besides an unreadable file: a key that is missing or left over, a wrong shape, a weight that is
/// not finite. Nothing is loaded partially.
pub fn load<M: Module>(module: M, path: &Path) -> Result<M, ModelError> {
    load_renamed(module, path, &[])
}

/// [`load`] after further renames of the file's keys, for a network stored under another prefix.
///
/// `renames` are (regular expression, replacement); they come before [`RENAMED`].
///
/// # Panics
///
/// If a regular expression does not parse.
pub fn load_renamed<M: Module>(
    mut module: M,
    path: &Path,
    renames: &[(&str, &str)],
) -> Result<M, ModelError> {
    // burn-store maps the file into memory; a missing one deserves its own message.
    std::fs::metadata(path).map_err(|e| ModelError::io(path, "a weight file", e))?;

    let to_f32 = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
    // Partial here means that burn-store reports what is missing instead of formatting it.
    let store = SafetensorsStore::from_file(path)
        .with_from_adapter(to_f32)
        .validate(false)
        .allow_partial(true);
    let mut store = renames
        .iter()
        .chain(RENAMED)
        .fold(store, |store, (from, to)| store.with_key_remapping(from, *to));

    let tensors = store.get_all_tensors().map_err(|e| store_error(path, e))?;
    for tensor in tensors.values() {
        check_finite(path, tensor)?;
    }
    let result = module.load_from(&mut store).map_err(|e| store_error(path, e))?;
    check_applied(path, &mut store, result)?;
    Ok(module.no_grad())
}

/// Writes a module's weights as diffusers and transformers read them.
///
/// The file appears at `path` whole or not at all: it is written beside it, synced and renamed. An
/// adapted module must be materialized first, or the adapter's own tensors are written too.
pub fn save<M: Module>(module: &M, path: &Path, dtype: FloatDType) -> Result<(), ModelError> {
    let mut store = SafetensorsStore::from_file(path)
        .with_to_adapter(BurnToPyTorchAdapter.chain(FloatCastAdapter::to(dtype.into())))
        .clear_metadata()
        // transformers refuses a file that does not say which framework's layout it has.
        .metadata("format", "pt")
        .overwrite(true);
    module.save_into(&mut store).map_err(|e| store_error(path, e))
}

/// The SHA-256 of a file's bytes in lower-case hexadecimal: the name of a base model.
pub fn sha256(path: &Path) -> Result<String, ModelError> {
    let io = |e| ModelError::io(path, "a weight file", e);
    let mut file = std::fs::File::open(path).map_err(io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Refuses NaN and infinity here, where the tensor still has a name; later they are a black image.
fn check_finite(path: &Path, tensor: &Stored) -> Result<(), ModelError> {
    if !tensor.dtype.is_float() {
        return Ok(());
    }
    let data: TensorData = bridge::to_data(tensor).map_err(|e| invalid(path, e.to_string()))?;
    let bad = data.iter::<f64>().enumerate().find(|(_, value)| !value.is_finite());
    match bad {
        None => Ok(()),
        Some((index, value)) => Err(ModelError::NonFinite {
            path: path.to_path_buf(),
            key: tensor.name.clone(),
            index,
            value,
        }),
    }
}

/// Turns burn-store's report into an error unless every tensor found its place.
fn check_applied(
    path: &Path,
    store: &mut SafetensorsStore,
    result: ApplyResult,
) -> Result<(), ModelError> {
    let path = path.to_path_buf();
    let is_buffer = |key: &String| BUFFERS.iter().any(|buffer| key.ends_with(buffer));
    let missing: Vec<_> =
        result.missing.iter().map(|(name, module)| checkpoint_key(name, module)).collect();
    let unused: Vec<_> = result.unused.into_iter().filter(|key| !is_buffer(key)).collect();

    if !missing.is_empty() {
        return Err(ModelError::MissingKeys { path, keys: missing });
    }
    if !unused.is_empty() {
        return Err(ModelError::UnusedKeys { path, keys: unused });
    }
    match result.errors.into_iter().next() {
        None => Ok(()),
        Some(ApplyError::ShapeMismatch { path: name, expected, found }) => {
            let key = checkpoint_key(&name, "Norm");
            let (mut expected, mut found) = (expected.to_vec(), found.to_vec());
            // burn-store compares after the transposition; the person compares with the file.
            if let Ok(Some(stored)) = store.get_tensor(&key)
                && stored.shape.to_vec() != found
            {
                expected.reverse();
                found.reverse();
            }
            Err(ModelError::Shape { path, key, expected, found })
        }
        Some(ApplyError::DTypeMismatch { path: name, found, .. }) => Err(ModelError::DType {
            path,
            key: checkpoint_key(&name, "Norm"),
            dtype: format!("{found:?}"),
        }),
        Some(other) => Err(ModelError::Safetensors { path, reason: other.to_string() }),
    }
}

/// The checkpoint's key of a burn parameter: only the norms' parameters have other names.
fn checkpoint_key(name: &str, module: &str) -> String {
    match name.rsplit_once('.') {
        Some((layer, "gamma")) if module.ends_with("Norm") => format!("{layer}.weight"),
        Some((layer, "beta")) if module.ends_with("Norm") => format!("{layer}.bias"),
        _ => name.to_string(),
    }
}

fn store_error(path: &Path, error: SafetensorsStoreError) -> ModelError {
    match error {
        SafetensorsStoreError::Io(source) if source.kind() != std::io::ErrorKind::InvalidInput => {
            ModelError::io(path, "a weight file", source)
        }
        // An empty file cannot be mapped: the system calls that invalid input.
        other => invalid(path, other.to_string()),
    }
}

fn invalid(path: &Path, reason: String) -> ModelError {
    ModelError::Safetensors { path: path.to_path_buf(), reason }
}
