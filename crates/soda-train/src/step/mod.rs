//! One training step: loss, gradients, optimizer, and the state between steps.

pub(crate) mod adamw_8bit;
pub(crate) mod adapted_networks;
pub(crate) mod backward;
#[cfg(test)]
mod checkpointing_tests;
pub(crate) mod ema;
pub(crate) mod gradients;
pub(crate) mod graph;
pub(crate) mod loss;
pub(crate) mod loss_scale;
pub(crate) mod metrics;
pub(crate) mod optimizer;
pub(crate) mod optimizer_state;
pub(crate) mod precision;
pub(crate) mod prodigy;
pub(crate) mod stacks;
pub(crate) mod text_encoding;
#[cfg(test)]
mod text_encoding_tests;
pub(crate) mod trainer;
