//! One file with all networks, in the names of the original checkpoints.
//!
//! Such a file has no configs and no tokenizer: those are taken from a directory in diffusers'
//! layout, whose weights, if it has any, are not read.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use burn_store::ModuleSnapshot;
use burn_store::burn_pack::Tensor as Stored;

use super::Pipeline;
use super::directory::{Configs, LoadOptions, Parts};
use crate::clip::text::ClipTextConfig;
use crate::error::ModelError;
use crate::unet::UnetConfig;
use crate::vae::VaeConfig;
use crate::weights::ldm::{Form, Layout};
use crate::weights::write::{Writable, write};
use crate::weights::{Checkpoint, file_dtype, to_pytorch};

/// The families of original checkpoints, by where their text encoders are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Sd1,
    Sd2,
    Sdxl,
}

/// The names of all networks of a family.
struct Layouts {
    text: Layout,
    text_2: Option<Layout>,
    unet: Layout,
    vae: Layout,
}

impl Layouts {
    fn new(
        family: Family,
        text: &ClipTextConfig,
        text_2: Option<&ClipTextConfig>,
        unet: &UnetConfig,
        vae: &VaeConfig,
    ) -> Self {
        let text = match family {
            Family::Sd1 => Layout::clip("cond_stage_model.transformer."),
            Family::Sd2 => Layout::open_clip("cond_stage_model.model.", text),
            Family::Sdxl => Layout::clip("conditioner.embedders.0.transformer."),
        };
        let text_2 =
            text_2.map(|config| Layout::open_clip("conditioner.embedders.1.model.", config));
        Self { text, text_2, unet: Layout::unet(unet), vae: Layout::vae(vae) }
    }
}

impl Pipeline {
    /// Reads a single file of SD 1, SD 2 or SDXL with the configs and tokenizers of `configs`, a
    /// directory in diffusers' layout.
    ///
    /// # Errors
    ///
    /// A file that is broken, of no known family, or of another one than the directory.
    pub fn load_single_file(
        file: &Path,
        configs: &Path,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let source = configs;
        let checkpoint = Checkpoint::open(file)?;
        let family = family_of(&checkpoint).ok_or_else(|| ModelError::Mismatch {
            path: file.to_path_buf(),
            reason: "it has no text encoder where Stable Diffusion 1, 2 or XL has one".to_string(),
        })?;
        let configs = Configs::read(source)?;
        let Configs { text, text_2, unet, vae, .. } = &configs;
        if (family == Family::Sdxl) != text_2.is_some() {
            let reason = format!(
                "it is of another family than the configs of {}: one is SDXL, the other is not",
                source.display()
            );
            return Err(ModelError::Mismatch { path: file.to_path_buf(), reason });
        }
        let names = Layouts::new(family, text, text_2.as_ref(), unet, vae);
        let parts = Parts {
            text: names.text.read(&checkpoint),
            text_2: names.text_2.map(|names| names.read(&checkpoint)),
            unet: names.unet.read(&checkpoint),
            vae: names.vae.read(&checkpoint),
        };
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        Self::assemble(source, configs, parts, &options, device)
    }

    /// Writes all networks into one file, in the names of the original checkpoints.
    ///
    /// # Errors
    ///
    /// What the operating system says, and a model that has no original form, or new words.
    pub fn save_single_file(&self, file: &Path, dtype: FloatDType) -> Result<(), ModelError> {
        let second = self.second.as_ref().and_then(|second| second.tokenizer.extra_word());
        if let Some(word) = self.tokenizer.extra_word().or(second) {
            let reason = "a single file has no vocabulary to put it in: write it with `soda export --format embeddings`, and \
                          merge an adapter without it"
                .to_string();
            return Err(ModelError::Word { word, reason });
        }
        let configs = Configs::read(&self.source)?;
        let family = match (&self.second, self.unet_config.use_linear_projection) {
            (Some(_), _) => Family::Sdxl,
            (None, true) => Family::Sd2,
            (None, false) => Family::Sd1,
        };
        let Configs { text, text_2, unet, vae, .. } = &configs;
        let names = Layouts::new(family, text, text_2.as_ref(), unet, vae);
        let mut tensors = BTreeMap::new();
        collect(&self.text_encoder, &names.text, dtype, file, &mut tensors)?;
        if let (Some(second), Some(names)) = (&self.second, &names.text_2) {
            collect(&second.text_encoder, names, dtype, file, &mut tensors)?;
        }
        collect(&self.unet, &names.unet, dtype, file, &mut tensors)?;
        collect(&self.vae, &names.vae, dtype, file, &mut tensors)?;
        write(&tensors, file)
    }
}

/// Which family a file is of.
fn family_of(checkpoint: &Checkpoint) -> Option<Family> {
    [
        ("conditioner.embedders.1.model.ln_final.weight", Family::Sdxl),
        ("cond_stage_model.model.ln_final.weight", Family::Sd2),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", Family::Sd1),
    ]
    .into_iter()
    .find(|(key, _)| checkpoint.entries.contains_key(*key))
    .map(|(_, family)| family)
}

/// Adds the weights of a network under the original's names.
fn collect<M: Module>(
    module: &M,
    names: &Layout,
    dtype: FloatDType,
    file: &Path,
    tensors: &mut BTreeMap<String, Writable>,
) -> Result<(), ModelError> {
    for tensor in module.collect(None, Some(Box::new(to_pytorch(dtype))), false) {
        let (key, form) = names.original(&tensor.name).ok_or_else(|| {
            let keys = vec![tensor.name.clone()];
            ModelError::UnusedKeys { path: file.to_path_buf(), keys }
        })?;
        let entry = tensors.entry(key).or_insert_with(|| Writable {
            shape: shape(&tensor, form),
            dtype: file_dtype(dtype),
            transposed: form == Form::Transposed,
            parts: BTreeMap::new(),
        });
        let place = if let Form::Third(index) = form { index } else { 0 };
        entry.parts.insert(place, tensor);
    }
    Ok(())
}

/// A tensor's shape in the original.
fn shape(tensor: &Stored, form: Form) -> Vec<usize> {
    let mut shape = tensor.shape.to_vec();
    match form {
        Form::Same => {}
        Form::Kernel => shape.extend([1, 1]),
        Form::Transposed => shape.reverse(),
        Form::Third(_) => shape[0] *= 3,
    }
    shape
}
