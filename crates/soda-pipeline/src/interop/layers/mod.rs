//! The tensors of one weight as an adapter, whatever dialect they are in.
//!
//! | form | dialects |
//! |---|---|
//! | [`LowRank`] | LoRA and DoRA, with LyCORIS' middle convolution; PEFT's PiSSA |
//! | [`Hadamard`] | LoHa of LyCORIS and PEFT |
//! | [`Kronecker`] | LoKr of LyCORIS and PEFT |
//! | [`Rotation`] | OFT of PEFT, OneTrainer, LyCORIS and kohya's scripts; BOFT and HRA of PEFT |
//! | a delta | LyCORIS' `diff`; any of the above with a magnitude that its method does not have |

mod delta;
mod form;
mod hadamard;
mod joined;
mod joined_lora;
mod kronecker;
mod low_rank;
mod network;
mod rotations;

pub(super) use form::LayerForm;
pub(super) use hadamard::Hadamard;
pub(super) use joined_lora::{join_loras, join_outputs};
pub(super) use kronecker::Kronecker;
pub(super) use low_rank::LowRank;
pub(super) use network::Layers;
pub(super) use rotations::Rotation;
