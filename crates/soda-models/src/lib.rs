//! The networks of Stable Diffusion on burn, read from and written to diffusers' directories.
//!
//! | module | what | mirrors |
//! | --- | --- | --- |
//! | [`pipeline`] | text to pictures, a whole model directory | `StableDiffusionPipeline` |
//! | [`unet`] | the denoiser | `UNet2DConditionModel` |
//! | [`vae`] | pictures to latents and back | `AutoencoderKL` |
//! | [`scheduler`] | noise schedules, training noise, samplers | `DDPMScheduler`, `DDIMScheduler` |
//! | [`tokenizer`], [`clip`] | prompts to tokens to text states; texts and pictures in one space | `CLIPTokenizer`, `CLIPTextModel`, `CLIPModel` |
//! | [`vit`] | which object a picture shows | `ViTModel` |
//! | [`image`] | pictures: files, tensors, Pillow's resampling | `CLIPImageProcessor`, `ViTImageProcessor` |
//! | [`metrics`] | CLIP-T, CLIP-I, DINO | |
//! | [`noise`] | seeded noise, the same on every backend | |
//! | [`error`], [`config`], [`weights`] | what every network is read by | |
//!
//! **Invariant:** nothing here knows about adapters or training. A network is a plain burn module
//! whose field names are the checkpoint's keys; a `&Device` goes in, tensors come out.

pub mod clip;
pub mod config;
pub mod error;
pub mod image;
pub mod metrics;
pub mod noise;
pub mod pipeline;
pub mod scheduler;
pub mod shards;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod vit;
pub mod weights;

pub use error::ModelError;
