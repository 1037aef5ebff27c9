//! Evaluation of the networks: validation loss, samples, snapshots and scores.

pub(crate) mod dataset_images;
pub(crate) mod sampling;
pub(crate) mod scores;
pub(crate) mod snapshots;
pub(crate) mod validation;
