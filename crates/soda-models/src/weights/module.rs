//! Loading and saving one module.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::Dtype;
use burn::module::Module;
use burn::tensor::{FloatDType, TensorData};
use burn_store::burn_pack::Tensor as Stored;
use burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleContext, ModuleSnapshot, bridge,
};

use super::checkpoint::open_renamed;
use super::write::{Order, Writable, check_finite, write};
use crate::error::ModelError;

/// Loads every weight of `module` from a safetensors file, as f32, and freezes the module.
///
/// ```no_run
/// use std::path::Path;
///
/// use burn::tensor::Device;
/// use soda_models::{config, unet::UnetConfig, weights};
///
/// let config: UnetConfig = config::read(Path::new("unet/config.json"))?;
/// let file = Path::new("unet/diffusion_pytorch_model.safetensors");
/// let unet = weights::load(config.init(&Device::default()), file)?;
/// # Ok::<(), soda_models::ModelError>(())
/// ```
///
/// # Errors
///
/// [`ModelError`] for an unreadable file, a key that is missing or unused, a wrong shape, or a weight that is
/// not finite.
pub fn load<M: Module>(module: M, path: &Path) -> Result<M, ModelError> {
    load_renamed(module, path, &[])
}

/// Loads every weight of `module` as [`load`] does, after the file's keys are renamed.
///
/// `renames` are (regular expression, replacement), applied in order and before
/// [`KEY_RENAMES`](crate::weights::KEY_RENAMES).
///
/// # Errors
///
/// The errors of [`load`].
///
/// # Panics
///
/// If a regular expression does not parse.
pub fn load_renamed<M: Module>(
    module: M,
    path: &Path,
    renames: &[(&str, &str)],
) -> Result<M, ModelError> {
    open_renamed(path, renames)?.load_into(module, FloatDType::F32)
}

/// Saves a module's weights as `dtype`, as diffusers and transformers read them.
///
/// The file appears whole or not at all: it is written beside `path`, synced and renamed. Materialize an
/// adapted module first, since otherwise the adapter's tensors are saved too.
///
/// # Errors
///
/// [`ModelError::Io`] if the system refuses to write.
pub fn save<M: Module>(module: &M, path: &Path, dtype: FloatDType) -> Result<(), ModelError> {
    write(&writables(module, dtype), path)
}

/// Checks that a module's weights are finite as `dtype`, before [`save`] writes them to `path`.
///
/// # Errors
///
/// [`WeightsError::NotWritten`](crate::WeightsError::NotWritten), which names the first other weight.
pub(crate) fn check_writable<M: Module>(
    module: &M,
    path: &Path,
    dtype: FloatDType,
) -> Result<(), ModelError> {
    check_finite(&writables(module, dtype), path)
}

fn writables<M: Module>(module: &M, dtype: FloatDType) -> BTreeMap<String, Writable> {
    let tensors = module.collect(None, Some(Box::new(to_pytorch(dtype))), false);
    let tensors = tensors.into_iter().map(|tensor| {
        let writable = Writable {
            dtype: file_dtype(dtype),
            shape: tensor.shape.to_vec(),
            order: Order::Same,
            parts: BTreeMap::from([(0, tensor)]),
        };
        (writable.parts[&0].name.clone(), writable)
    });
    tensors.collect()
}

/// The safetensors name of a dtype.
pub(crate) fn file_dtype(dtype: FloatDType) -> Dtype {
    match dtype {
        FloatDType::F64 => Dtype::F64,
        FloatDType::F16 => Dtype::F16,
        FloatDType::BF16 => Dtype::BF16,
        FloatDType::F32 | FloatDType::Flex32 => Dtype::F32,
    }
}

/// The conversion from burn's tensors to PyTorch's.
pub(crate) fn to_pytorch(dtype: FloatDType) -> impl ModuleAdapter {
    BurnToPyTorchAdapter.chain(FloatCastAdapter::to(dtype.into())).chain(VectorToScalar)
}

/// Keys of tensors that are scalars in a checkpoint and vectors of length 1 in burn.
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
