//! Replacing the weights of a pipeline by adapted ones.

use burn::tensor::Tensor;
use soda_adapters::{AnyAdapter, Plan, fuse_all};
use soda_kernels::StoredWeight;
use soda_models::pipeline::Pipeline;
use soda_models::weights::{NetworkStorage, WeightPrecision};

use crate::component::Component;

/// Replaces the weights of the pipeline by their weighted sum with the adapters of plans, by paths of
/// `pipeline.networks()`.
///
/// The weights of the denoiser are stored as `precision` says, each before the next is made: weights that
/// wait in host memory never are in floats on the device together.
pub fn fuse_plans(
    pipeline: &mut Pipeline,
    plans: impl IntoIterator<Item = (Plan<AnyAdapter>, f64)>,
    precision: &WeightPrecision,
) {
    let prefix = Component::from(&pipeline.denoiser).prefix();
    let storage = NetworkStorage::new(&pipeline.denoiser, precision.storage, precision.dtype);
    let store = |path: &str, matrix: &Tensor<2>| -> Option<StoredWeight> {
        let path = path.strip_prefix(&prefix)?;
        let data = || matrix.clone().transpose().into_data();
        storage.store(path, matrix.dims(), &matrix.device(), data)
    };
    pipeline.set_networks(fuse_all(plans, pipeline.networks(), store));
}
