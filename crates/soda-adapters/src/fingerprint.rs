//! The hash that identifies a base model by the weights that an adapter changes.

use std::collections::BTreeMap;

use burn::tensor::{DType, TensorData};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::weight::Weight;

/// Returns the SHA-256 of the weights by path, as 64 hexadecimal digits.
///
/// The hash covers the paths, shapes and values as f32 of the selected weights. A diffusers directory and a
/// single-file checkpoint of one model have the same hash, as have its weights loaded as f16 and widened to
/// f32.
///
/// ```
/// use burn::{nn::LinearConfig, tensor::Device};
/// use soda_adapters::{Targets, fingerprint};
///
/// let layer = LinearConfig::new(12, 8).init(&Device::default());
/// let weights = Targets(vec!["^weight$".into()]).select(&layer)?;
/// assert_eq!(fingerprint(&weights).len(), 64);
/// # Ok::<(), soda_adapters::AdapterError>(())
/// ```
pub fn fingerprint(weights: &BTreeMap<String, Weight>) -> String {
    let mut hash = Sha256::new();
    let weights: Vec<_> = weights.iter().collect();
    // A device is read by the thread that hashes. With another thread the hash changed from run to run on
    // CUDA.
    for window in weights.chunks(rayon::current_num_threads()) {
        let on_host: Vec<_> = window.par_iter().map(|(_, weight)| weight.host_floats()).collect();
        for ((path, weight), data) in window.iter().zip(on_host) {
            let [rows, cols] = weight.dims();
            hash.update(format!("{path} {rows} {cols}\n"));
            let read = || weight.matrix().cast(DType::F32).into_data();
            update(&mut hash, &data.unwrap_or_else(read));
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds f32 values to a hash, in little-endian order.
fn update(hash: &mut Sha256, data: &TensorData) {
    if cfg!(target_endian = "little") {
        hash.update(data.as_bytes());
    } else {
        data.iter::<f32>().for_each(|value| hash.update(value.to_le_bytes()));
    }
}
