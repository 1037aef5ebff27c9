//! The vision transformer (Dosovitskiy et al., arXiv 2010.11929) of DINO (Caron et al., arXiv 2104.14294) and
//! of DINOv2.
//!
//! DINO's class token tells individuals of one kind apart. The cosine of two class tokens therefore measures
//! whether two images show the same object. Mirrors transformers' `ViTModel` without the pooler, and
//! `Dinov2Model`.

mod config;
mod dinov2;
mod load;
mod model;
mod positions;

pub use config::VitConfig;
pub use dinov2::Dinov2Config;
pub use load::{KEY_RENAMES, load};
pub use model::{PatchEmbeddings, VitEmbeddings, VitModel};
