//! Operations on a batch of small matrices `[b, n, m]`, in batched matrix products that run on any device.

mod algebra;
mod exponential;
mod inverse;
mod layout;
mod newton_schulz;

pub(crate) use algebra::{gram, identity_like, skew_part, symmetric_part};
pub(crate) use exponential::exponential;
pub(crate) use inverse::inverse_of_identity_minus_skew;
pub(crate) use layout::BatchLayout;
pub(crate) use newton_schulz::{iterations, newton_schulz, polar_retraction};
