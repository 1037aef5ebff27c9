//! The methods, one file or folder each, the table that lists them, and what several of them share.

mod block_rotation;
pub(crate) mod bounds;
mod cost_model;
mod low_rank;
mod permutation;
mod table;
mod timestep_mask;

pub mod boft;
pub mod dora;
pub mod full;
pub mod loha;
pub mod lokr;
pub mod lora;
pub mod oft;
pub mod soda;

pub use block_rotation::{BlockRotation, CayleyForm};
pub use table::{AnyAdapter, METHOD_PRESETS, MethodConfig, MethodPreset};
pub use timestep_mask::TimestepMask;
