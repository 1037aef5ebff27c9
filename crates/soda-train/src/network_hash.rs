//! A hash that identifies a network.

use std::fmt;

use burn::module::Module;
use sha2::{Digest as _, Sha256};
use soda_adapters::{NamedParam, read_params};
use soda_kernels::{checksum, stored_checksums};

use crate::output::tensor_file::hex;

/// Identifies a network by its settings and all its weights. A checksum of each weight suffices against
/// mistakes, and a GPU computes it without sending gigabytes to the host.
pub(crate) fn network_hash<M: Module + fmt::Display>(module: &M) -> String {
    let line = |param: NamedParam| {
        let (value, shape) = (param.value(), &param.shape);
        let dtype = value.dtype();
        format!("{} {shape:?} {dtype:?} {:016x} ", param.path, checksum(value))
    };
    let weights = read_params(module, line);
    let stored = stored_checksums(module).into_iter();
    let stored = stored.map(|(path, format, sum)| format!("{path} {format:?} {sum:016x} "));
    let stored: String = stored.collect();
    // The settings that are not weights, such as the activation function, are in the module's description.
    hex(Sha256::new_with_prefix(format!("{module} {}{stored}", weights.concat())))
}
