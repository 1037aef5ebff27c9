//! Single files in the keys of the original checkpoints.
//!
//! | family | networks of the file | from a directory in diffusers' layout |
//! | --- | --- | --- |
//! | Stable Diffusion | all | configs, tokenizers |
//! | FLUX.2, Z-Image | the transformer | configs, tokenizer, text encoder, autoencoder |

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use burn_store::ModuleSnapshot;
use burn_store::burn_pack::Tensor as Stored;

use super::families::{
    Flux2KleinConfigs, StableDiffusionConfigs, StableDiffusionWeights, TransformerFile,
    ZImageConfigs,
};
use super::family::{Configs, LoadOptions};
use super::family_name::{FamilyName, model_index};
use super::model::Pipeline;
use super::prompt_encoding::PromptEncoding;
use super::text_encoders::ClipEncoders;
use crate::clip::ClipTextConfig;
use crate::error::{ModelError, WeightsError};
use crate::unet::UnetConfig;
use crate::vae::VaeConfig;
use crate::weights::ldm::{Form, Layout};
use crate::weights::write::{Order, Writable, check_finite, write};
use crate::weights::{Checkpoint, file_dtype, to_pytorch};

/// The families of original checkpoints, which differ in their text encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Sd1,
    Sd2,
    Sdxl,
}

/// The key layouts of all networks of a family.
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
    /// Loads a single file of SD 1, SD 2, SDXL, FLUX.2 klein or Z-Image, as `dtype`.
    ///
    /// Configs and tokenizers are read from `configs`, a directory in diffusers' layout. A file of FLUX.2 or
    /// Z-Image is the transformer alone, and the directory's text encoder and autoencoder are read too. The
    /// marks `v_pred` and `ztsnr` of a file of Stable Diffusion override its noise schedule, with a warning.
    ///
    /// # Errors
    ///
    /// - [`ModelError::InvalidRequest`] for the mark `ztsnr` on a model that predicts noise.
    /// - [`WeightsError::Mismatch`] for a file of no known family, or of another family than the directory.
    /// - The errors of [`Pipeline::load`].
    pub fn load_single_file(
        file: &Path,
        configs: &Path,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(file)?;
        let index = model_index(configs)?;
        let family = FamilyName::of(configs, &index)?;
        let reason = match (family, TransformerFile::of(&checkpoint)) {
            (FamilyName::StableDiffusion, None) => {
                return Self::load_stable_diffusion_file(&checkpoint, configs, dtype, device);
            }
            (FamilyName::Flux2Klein, Some(found)) if found.family == family => {
                return found.load::<Flux2KleinConfigs>(configs, dtype, device);
            }
            (FamilyName::ZImage, Some(found)) if found.family == family => {
                return found.load::<ZImageConfigs>(configs, dtype, device);
            }
            (_, Some(found)) => format!(
                "it is a transformer of {}, and the configs of {} are {family}'s",
                found.family,
                configs.display()
            ),
            (_, None) => format!(
                "it does not have `{}`, as a transformer of {family} in the original names does, and the \
                 configs of {} are {family}'s",
                family.marks().join("` and `"),
                configs.display()
            ),
        };
        Err(WeightsError::Mismatch { path: file.to_path_buf(), reason }.into())
    }

    /// Loads the networks of Stable Diffusion from a single file.
    fn load_stable_diffusion_file(
        checkpoint: &Checkpoint,
        configs: &Path,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (source, file) = (configs, &checkpoint.path);
        let family = family_of(checkpoint).ok_or_else(|| WeightsError::Mismatch {
            path: file.to_path_buf(),
            reason: "it has no text encoder where Stable Diffusion 1, 2 or XL has one".to_string(),
        })?;
        let configs = Configs::<StableDiffusionConfigs>::read(
            source,
            &model_index(source)?,
            &PromptEncoding::default(),
        )?;
        let StableDiffusionConfigs { text, text_2, unet, .. } = &configs.family;
        if (family == Family::Sdxl) != text_2.is_some() {
            let reason = format!(
                "it is of another family than the configs of {}: one is SDXL, the other is not",
                source.display()
            );
            return Err(WeightsError::Mismatch { path: file.to_path_buf(), reason }.into());
        }
        let names = Layouts::new(family, text, text_2.as_ref(), unet, &configs.vae);
        let weights = StableDiffusionWeights {
            text: names.text.read(checkpoint),
            text_2: names.text_2.map(|names| names.read(checkpoint)),
            unet: names.unet.read(checkpoint),
        };
        let vae = names.vae.read(checkpoint);
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let mut pipeline = Self::assemble(source, configs, weights, vae, &options, device)?;
        pipeline.follow_marks(checkpoint)?;
        Ok(pipeline)
    }

    /// Saves one file of `dtype`, in the keys of the original checkpoints. It holds all networks of Stable
    /// Diffusion, or the transformer of FLUX.2 or Z-Image. The marks `v_pred` and `ztsnr` say what a UNet
    /// predicts.
    ///
    /// # Errors
    ///
    /// - [`ModelError::Token`] if the vocabulary has new tokens, which such a file cannot hold.
    /// - [`WeightsError::UnusedKeys`] for a network that has no original layout.
    /// - [`WeightsError::NotWritten`] for a weight that is not finite as `dtype`.
    /// - [`WeightsError::NoSingleFile`] for a denoiser that predicts images.
    /// - [`ModelError::Io`] if the system refuses to write.
    pub fn save_single_file(&self, file: &Path, dtype: FloatDType) -> Result<(), ModelError> {
        let mut tensors = BTreeMap::new();
        if let Some(names) = self.denoiser_config.original_layout("") {
            collect(&self.denoiser, &names, dtype, file, &mut tensors)?;
            check_finite(&tensors, file)?;
            return write(&tensors, file);
        }
        let (Some(clip), Some(unet)) = (self.text.clip(), self.denoiser.as_unet()) else {
            let reason = "only models with a UNet and CLIP, FLUX.2 and Z-Image are written; write a directory";
            return Err(WeightsError::NoSingleFile { path: file.to_path_buf(), reason }.into());
        };
        let ClipEncoders { tokenizer, text_encoder, second } = clip;
        let extra = second.as_ref().and_then(|second| second.tokenizer.extra_token());
        if let Some(token) = tokenizer.extra_token().or(extra) {
            let reason =
                "a single file has no vocabulary to put it in: write it with `soda export \
                          --format embeddings`, and merge an adapter without it"
                    .to_string();
            return Err(ModelError::Token { token, reason });
        }
        self.check_markable(file)?;
        let configs = Configs::<StableDiffusionConfigs>::read(
            &self.source,
            &model_index(&self.source)?,
            &PromptEncoding::default(),
        )?;
        let StableDiffusionConfigs { text, text_2, unet: unet_config, .. } = &configs.family;
        let family = match (second, unet_config.use_linear_projection) {
            (Some(_), _) => Family::Sdxl,
            (None, true) => Family::Sd2,
            (None, false) => Family::Sd1,
        };
        let names = Layouts::new(family, text, text_2.as_ref(), unet_config, &configs.vae);
        collect(text_encoder, &names.text, dtype, file, &mut tensors)?;
        if let (Some(second), Some(names)) = (second, &names.text_2) {
            collect(&second.text_encoder, names, dtype, file, &mut tensors)?;
        }
        collect(unet, &names.unet, dtype, file, &mut tensors)?;
        collect(&self.vae, &names.vae, dtype, file, &mut tensors)?;
        check_finite(&tensors, file)?;
        self.mark(&mut tensors);
        write(&tensors, file)
    }
}

/// The family of a file, by the key of its text encoder.
fn family_of(checkpoint: &Checkpoint) -> Option<Family> {
    [
        ("conditioner.embedders.1.model.ln_final.weight", Family::Sdxl),
        ("cond_stage_model.model.ln_final.weight", Family::Sd2),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", Family::Sd1),
        // Without `text_model.`, as some converters write it.
        ("cond_stage_model.transformer.final_layer_norm.weight", Family::Sd1),
    ]
    .into_iter()
    .find(|(key, _)| checkpoint.entries.contains_key(*key))
    .map(|(_, family)| family)
}

/// Adds the weights of a network under their original keys.
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
            WeightsError::UnusedKeys { path: file.to_path_buf(), keys }
        })?;
        let entry = tensors.entry(key).or_insert_with(|| Writable {
            shape: shape(&tensor, form),
            dtype: file_dtype(dtype),
            order: match form {
                Form::Transposed => Order::Transposed,
                Form::HalvesSwapped => Order::HalvesSwapped,
                Form::Same | Form::Kernel | Form::Third(_) => Order::Same,
            },
            parts: BTreeMap::new(),
        });
        let place = if let Form::Third(index) = form { index } else { 0 };
        entry.parts.insert(place, tensor);
    }
    Ok(())
}

/// A tensor's shape in the original checkpoint.
fn shape(tensor: &Stored, form: Form) -> Vec<usize> {
    let mut shape = tensor.shape.to_vec();
    match form {
        Form::Same | Form::HalvesSwapped => {}
        Form::Kernel => shape.extend([1, 1]),
        Form::Transposed => shape.reverse(),
        Form::Third(_) => shape[0] *= 3,
    }
    shape
}
