//! One training step: loss, gradients, loss scale, and the state between steps.

pub(crate) mod adapted_networks;
pub(crate) mod backward;
pub(crate) mod calibration;
#[cfg(test)]
mod checkpointing_tests;
mod decompositions;
pub(crate) mod error_graph;
mod gradient_sum;
pub(crate) mod graph;
pub(crate) mod loss;
pub(crate) mod loss_scale;
pub(crate) mod metrics;
pub(crate) mod param_groups;
pub(crate) mod precision;
pub(crate) mod ranks;
pub(crate) mod text_encoding;
#[cfg(test)]
mod text_encoding_tests;
pub(crate) mod trainer;
