//! The networks of Stable Diffusion, FLUX.2 and Z-Image on burn, read from and written to diffusers'
//! directories.
//!
//! | module | contents | mirrors |
//! | --- | --- | --- |
//! | [`pipeline`] | a whole model directory, which draws | `StableDiffusionPipeline`, `ZImagePipeline`, ... |
//! | [`unet`] | the denoiser | `UNet2DConditionModel` |
//! | [`flux2`] | the denoiser of FLUX.2 klein | `Flux2Transformer2DModel` |
//! | [`z_image`] | the denoiser of Z-Image | `ZImageTransformer2DModel` |
//! | [`original_names`] | layers of transformers in the names of their authors | `convert_*_to_diffusers` |
//! | [`rotary`] | rotary position embeddings over several axes | `apply_rotary_emb` |
//! | [`stages`] | denoisers as sequences of stages, for gradient checkpointing | |
//! | [`condition`] | inputs of a denoiser beside the latents | `encoder_hidden_states`, `added_cond_kwargs` |
//! | [`vae`] | images to latents and back | `AutoencoderKL`, `AutoencoderKLFlux2` |
//! | [`scheduler`] | noise schedules, training noise, samplers | `DDPMScheduler`, `DDIMScheduler`, ... |
//! | [`tokenizer`] | prompts to token ids | `CLIPTokenizer`, `Qwen2Tokenizer` |
//! | [`clip`] | token ids to prompt embeds; texts and images in one space | `CLIPTextModel`, `CLIPModel` |
//! | [`qwen3`] | token ids to prompt embeds, of several layers of a language model | `Qwen3Model` |
//! | [`vit`] | the vision transformers DINO and DINOv2 | `ViTModel`, `Dinov2Model` |
//! | [`image`] | image files, tensors, Pillow's resampling | `CLIPImageProcessor`, `ViTImageProcessor` |
//! | [`metrics`] | the scores CLIP-T, CLIP-I and DINO | |
//! | [`noise`] | seeded noise that is the same on every backend | `torch.randn` |
//! | [`batch_shards`] | a batch spread over CPU threads | |
//! | [`config`], [`weights`] | reading of `config.json` and of safetensors files | |
//! | [`input_file`] | files from outside, which are regular and of bounded size | |
//!
//! **Invariant:** this crate knows nothing of adapters or training. A network is a plain burn module whose
//! field names are the checkpoint's keys. Functions take a `&Device` and return tensors.

pub mod batch_shards;
pub mod clip;
pub mod condition;
pub mod config;
mod error;
pub mod flux2;
pub mod image;
pub mod input_file;
mod layers;
pub mod metrics;
mod module_enum;
pub mod noise;
pub mod original_names;
pub mod pipeline;
pub mod qwen3;
pub mod rotary;
pub mod scheduler;
pub mod stages;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod vit;
pub mod weights;
pub mod z_image;

pub use error::{ConfigError, ImageError, ModelError, WeightsError};
