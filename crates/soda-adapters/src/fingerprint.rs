//! The hash that identifies a base model by the weights that an adapter changes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use soda_kernels::checksum;

use crate::weight::Weight;

/// The begin of a fingerprint of checksums. Those of earlier files are the SHA-256 of all values.
const OF_CHECKSUMS: &str = "2-";

/// Returns the fingerprint of weights by path: `2-` and the SHA-256 of their paths, shapes and
/// [checksums](soda_kernels::checksum) as 64 hexadecimal digits.
///
/// The checksums are those of the values as f32. A diffusers directory and a single-file checkpoint of one
/// model have the same fingerprint, as have its weights loaded as f16 and widened to f32.
///
/// ```
/// use burn::{nn::LinearConfig, tensor::Device};
/// use soda_adapters::{Targets, fingerprint};
///
/// let layer = LinearConfig::new(12, 8).init(&Device::default());
/// let weights = Targets(vec!["^weight$".into()]).select(&layer)?;
/// assert_eq!(fingerprint(&weights).len(), 66);
/// # Ok::<(), soda_adapters::AdapterError>(())
/// ```
pub fn fingerprint(weights: &BTreeMap<String, Weight>) -> String {
    let on_host: Vec<_> = weights.par_iter().map(|(_, weight)| weight.host_checksum()).collect();
    let mut lines = String::new();
    for ((path, weight), sum) in weights.iter().zip(on_host) {
        let [rows, cols] = weight.dims();
        // A device is used by this thread alone: each thread has memory pools of its own.
        let sum = sum.unwrap_or_else(|| checksum(flat(weight)));
        // Writing to a string never fails.
        let _ = writeln!(lines, "{path} {rows} {cols} {sum:016x}");
    }
    format!("{OF_CHECKSUMS}{}", hex(Sha256::new_with_prefix(lines)))
}

/// The fingerprint of weights of the kind that `like` is.
pub(crate) fn fingerprint_like(like: &str, weights: &BTreeMap<String, Weight>) -> String {
    if like.starts_with(OF_CHECKSUMS) { fingerprint(weights) } else { sha256(weights) }
}

/// The SHA-256 of the weights by path, as adapter files had it first.
fn sha256(weights: &BTreeMap<String, Weight>) -> String {
    let mut hash = Sha256::new();
    for (path, weight) in weights {
        let [rows, cols] = weight.dims();
        hash.update(format!("{path} {rows} {cols}\n"));
        let data = weight.host_floats().unwrap_or_else(|| flat(weight).into_data());
        if cfg!(target_endian = "little") {
            hash.update(data.as_bytes());
        } else {
            data.iter::<f32>().for_each(|value| hash.update(value.to_le_bytes()));
        }
    }
    hex(hash)
}

/// The values of a weight as f32.
fn flat(weight: &Weight) -> Tensor<1> {
    let [rows, cols] = weight.dims();
    weight.matrix().cast(DType::F32).reshape([rows * cols])
}

fn hex(hash: Sha256) -> String {
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::module::Param;
    use burn::nn::LinearConfig;
    use burn::tensor::Device;

    use super::*;
    use crate::targets::Targets;

    /// Both fingerprints of a weight, as `soda_adapters.targets.base_hash` of the Python package gives them.
    #[test]
    fn fingerprints_are_those_of_the_python_package() {
        let device = Device::default();
        let mut layer = LinearConfig::new(3, 2).with_bias(false).init(&device);
        let weight = Tensor::from_floats([[0.0, 0.75], [0.25, 1.0], [0.5, 1.25]], &device);
        layer.weight = Param::from_tensor(weight);
        let weights = Targets(vec!["^weight$".into()]).select(&layer).unwrap();
        let of_checksums = "2-8b5d469680eb21cb34356e81b5827805d9531791a6b62f765cf787cc005b66c4";
        let of_values = "c0b4aecf4b6381afcd7009d8964e926c6f9f74a4c05f21f591fbfe5218d33fa4";
        assert_eq!(fingerprint(&weights), of_checksums);
        for like in [of_checksums, of_values] {
            assert_eq!(fingerprint_like(like, &weights), like);
        }
    }
}
