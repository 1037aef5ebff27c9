//! The hash that identifies a base model by the weights that an adapter changes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use burn::tensor::{DType, TensorData};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use soda_kernels::{checksum, checksum_of_data};

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
    let mut lines = String::new();
    for_each(weights, checksum_of_data, |path, [rows, cols], weight, on_host| {
        let sum = on_host.unwrap_or_else(|| checksum(flat(weight)));
        // Writing to a string never fails.
        let _ = writeln!(lines, "{path} {rows} {cols} {sum:016x}");
    });
    format!("{OF_CHECKSUMS}{}", hex(Sha256::new_with_prefix(lines)))
}

/// The fingerprint of weights of the kind that `like` is.
pub(crate) fn fingerprint_like(like: &str, weights: &BTreeMap<String, Weight>) -> String {
    if like.starts_with(OF_CHECKSUMS) { fingerprint(weights) } else { sha256(weights) }
}

/// The SHA-256 of the weights by path, as adapter files had it first.
fn sha256(weights: &BTreeMap<String, Weight>) -> String {
    let mut hash = Sha256::new();
    for_each(weights, TensorData::clone, |path, [rows, cols], weight, data| {
        hash.update(format!("{path} {rows} {cols}\n"));
        let data = data.unwrap_or_else(|| flat(weight).into_data());
        if cfg!(target_endian = "little") {
            hash.update(data.as_bytes());
        } else {
            data.iter::<f32>().for_each(|value| hash.update(value.to_le_bytes()));
        }
    });
    hex(hash)
}

/// Calls `each` with every weight in the order of the paths, and with `read` of those that are in host memory,
/// which is called on all cores.
fn for_each<T: Send>(
    weights: &BTreeMap<String, Weight>,
    read: impl Fn(&TensorData) -> T + Sync,
    mut each: impl FnMut(&str, [usize; 2], &Weight, Option<T>),
) {
    let weights: Vec<_> = weights.iter().collect();
    // A device is read by the thread that hashes. With another thread the hash changed from run to run on
    // CUDA. A window bounds what is in memory as f32.
    for window in weights.chunks(rayon::current_num_threads()) {
        let on_host = window.par_iter().map(|(_, weight)| Some(read(&weight.host_floats()?)));
        let on_host: Vec<_> = on_host.collect();
        for ((path, weight), value) in window.iter().zip(on_host) {
            each(path, weight.dims(), weight, value);
        }
    }
}

/// The values of a weight as f32.
fn flat(weight: &Weight) -> burn::tensor::Tensor<1> {
    let [rows, cols] = weight.dims();
    weight.matrix().cast(DType::F32).reshape([rows * cols])
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
