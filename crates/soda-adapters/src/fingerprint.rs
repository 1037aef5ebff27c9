//! The identity of a base: a hash of the very weights an adapter turns.
//!
//! It covers the targeted weights' paths, shapes and values as f32, so it is the same for a diffusers
//! directory, a single-file checkpoint and either float width they were loaded from.

use std::collections::BTreeMap;

use burn::tensor::DType;
use sha2::{Digest, Sha256};

use crate::fold::Weight;

/// SHA-256, in hex, of the weights an adapter is made for.
pub fn fingerprint(weights: &BTreeMap<String, Weight>) -> String {
    let mut hash = Sha256::new();
    for (path, weight) in weights {
        let [rows, cols] = weight.matrix.dims();
        hash.update(format!("{path} {rows} {cols}\n"));
        let data = weight.matrix.clone().cast(DType::F32).into_data();
        for value in data.iter::<f32>() {
            hash.update(value.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
