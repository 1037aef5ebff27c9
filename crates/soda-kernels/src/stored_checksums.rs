//! Checksums of the stored weights of a network.

use std::num::NonZero;
use std::thread;

use burn::module::Module;

use crate::device::checksum::{checksum, checksum_of_bytes};
use crate::stored_weight::{StoredFormat, StoredWeight, stored_weights};

/// Returns the stored weights of `module` by path, with their formats and the checksums of their numbers and
/// scales. Numbers in host memory are summed on all cores.
pub fn stored_checksums<M: Module>(module: &M) -> Vec<(String, StoredFormat, u64)> {
    let weights = stored_weights(module);
    let all: Vec<&StoredWeight> = weights.values().collect();
    let on_host = host_checksums(&all);
    // One thread reads the device.
    let stored = weights.iter().zip(on_host).map(|((path, weight), numbers)| {
        let sum = match numbers {
            Some(numbers) => numbers.wrapping_add(checksum(weight.scales()).rotate_left(1)),
            None => checksum_of_bytes(&weight.to_bytes()),
        };
        (path.clone(), weight.format(), sum)
    });
    stored.collect()
}

/// The checksums of the numbers of those weights that have them in host memory.
fn host_checksums(weights: &[&StoredWeight]) -> Vec<Option<u64>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let of_part = |part: &[&StoredWeight]| -> Vec<Option<u64>> {
        part.iter().map(|weight| weight.host_bytes().map(checksum_of_bytes)).collect()
    };
    thread::scope(|scope| {
        let parts = weights.chunks(weights.len().div_ceil(cores).max(1));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || of_part(part))).collect();
        let done = parts.into_iter().map(|part| part.join());
        done.flat_map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
