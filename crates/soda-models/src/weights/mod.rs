//! Reading and writing a network's weights in PyTorch's layout, by the checkpoint's own keys.
//!
//! The checkpoint is the schema: a module's field is named as the key that it is loaded from. So the burn
//! path `down_blocks.0.attentions.0...to_out.0.weight` is the diffusers key too. The remaining differences
//! are:
//!
//! | | PyTorch | burn |
//! | --- | --- | --- |
//! | weight of a `Linear` | `[out, in]` | `[in, out]` |
//! | parameters of a norm | `weight`, `bias` | `gamma`, `beta` |
//! | scalars | `[]` | `[1]` |
//!
//! [`KEY_RENAMES`] lists keys that older exporters wrote otherwise.

pub(crate) mod checkpoint;
mod eight_bit;
mod find;
mod finite;
mod four_bit;
mod keys;
pub(crate) mod ldm;
mod load;
mod memory;
mod module;
mod parameters;
mod precision;
mod prefetch;
mod published;
mod safetensors;
mod sha256;
mod storage;
pub(crate) mod write;

pub use checkpoint::Checkpoint;
pub use keys::KEY_RENAMES;
pub use memory::{BlockWeights, WeightMemory};
pub(crate) use module::{check_writable, file_dtype, to_pytorch};
pub use module::{load, load_renamed, save};
pub use precision::WeightPrecision;
pub use safetensors::SafetensorsReader;
pub use sha256::sha256;
pub use storage::{NetworkStorage, WeightStorage, store};
