//! The networks of Stable Diffusion on burn, read from and written to diffusers' directories.
//!
//! | module | what | mirrors |
//! | --- | --- | --- |
//! | [`unet`] | the denoiser | `UNet2DConditionModel` |
//! | [`error`], [`config`], [`weights`] | what every network is read by | |
//!
//! **Invariant:** nothing here knows about adapters or training. A network is a plain burn module
//! whose field names are the checkpoint's keys; a `&Device` goes in, tensors come out.

pub mod config;
pub mod error;
pub mod unet;
pub mod weights;

pub use error::ModelError;
