//! Reading and writing a network's weights in PyTorch's layout, by the checkpoint's own keys.
//!
//! The checkpoint is the schema: a field of a module is named as the key that it is loaded from, so
//! the burn path `down_blocks.0.attentions.0...to_out.0.weight` is the diffusers key too. What
//! remains between the two worlds is done by burn-store's adapters: a `Linear` is stored `[out, in]`
//! by PyTorch and `[in, out]` by burn, and a norm's `gamma` and `beta` are called `weight` and
//! `bias` there. The few keys that older exporters wrote otherwise are in [`RENAMED`].

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use ::safetensors::Dtype;
use burn::module::Module;
use burn::tensor::{FloatDType, TensorData};
use burn_store::burn_pack::Tensor as Stored;
use burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleContext, ModuleSnapshot, bridge,
};
use sha2::{Digest, Sha256};

use crate::error::ModelError;

pub mod checkpoint;
pub(crate) mod ldm;
pub(crate) mod safetensors;
pub(crate) mod write;

pub use checkpoint::Checkpoint;

use write::Writable;

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

/// Tensors of files that no forward pass reads: the numbers 0, 1, 2, ... of older exporters, and what stood for
/// the hidden patches while DINOv2 was trained.
const BUFFERS: &[&str] = &["position_ids", "mask_token"];

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
    module: M,
    path: &Path,
    renames: &[(&str, &str)],
) -> Result<M, ModelError> {
    checkpoint::open_renamed(path, renames)?.load_into(module, FloatDType::F32)
}

/// Writes a module's weights as diffusers and transformers read them.
///
/// The file appears at `path` whole or not at all: it is written beside it, synced and renamed. An
/// adapted module must be materialized first, or the adapter's own tensors are written too.
pub fn save<M: Module>(module: &M, path: &Path, dtype: FloatDType) -> Result<(), ModelError> {
    let tensors = module.collect(None, Some(Box::new(to_pytorch(dtype))), false);
    let tensors = tensors.into_iter().map(|tensor| {
        let writable = Writable {
            dtype: file_dtype(dtype),
            shape: tensor.shape.to_vec(),
            transposed: false,
            parts: BTreeMap::from([(0, tensor)]),
        };
        (writable.parts[&0].name.clone(), writable)
    });
    write::write(&tensors.collect(), path)
}

/// A precision as a file names it.
pub(crate) fn file_dtype(dtype: FloatDType) -> Dtype {
    match dtype {
        FloatDType::F64 => Dtype::F64,
        FloatDType::F16 => Dtype::F16,
        FloatDType::BF16 => Dtype::BF16,
        FloatDType::F32 | FloatDType::Flex32 => Dtype::F32,
    }
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

/// The checkpoint's key of a burn parameter: only the norms' parameters have other names.
fn checkpoint_key(name: &str, module: &str) -> String {
    match name.rsplit_once('.') {
        Some((layer, "gamma")) if module.ends_with("Norm") => format!("{layer}.weight"),
        Some((layer, "beta")) if module.ends_with("Norm") => format!("{layer}.bias"),
        _ => name.to_string(),
    }
}

/// What makes burn's tensors PyTorch's.
pub(crate) fn to_pytorch(dtype: FloatDType) -> impl ModuleAdapter {
    BurnToPyTorchAdapter.chain(FloatCastAdapter::to(dtype.into())).chain(VectorToScalar)
}

/// Keys of tensors that have no axes in a checkpoint, and one of length 1 here.
const SCALARS: &[&str] = &["logit_scale"];

#[derive(Debug, Clone)]
struct VectorToScalar;

impl ModuleAdapter for VectorToScalar {
    fn adapt(&self, tensor: Stored, _context: ModuleContext<'_>) -> Stored {
        if !SCALARS.contains(&tensor.name.as_str()) {
            return tensor;
        }
        let (name, dtype) = (tensor.name.clone(), tensor.dtype);
        let shape: [usize; 0] = [];
        bridge::map_data(tensor, name, dtype, shape.into(), move |data| {
            TensorData::from_bytes_vec(data.as_bytes().to_vec(), shape, dtype)
        })
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}
