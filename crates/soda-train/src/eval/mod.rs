//! What is measured of the networks: validation loss, sampled pictures, scores.

pub(crate) mod pictures;
pub(crate) mod sampling;
pub(crate) mod scores;
pub(crate) mod validation;
