//! Reproducible random matrices.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

/// Uniform deviates in `[-√3, √3)`, of variance 1, `[1, m, n]`; every call gives the same ones.
pub(super) fn noise([m, n]: [usize; 2], like: &Tensor<3>) -> Tensor<3> {
    // splitmix64 of the entry's index.
    let entry = |i: usize| {
        let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) as i64 as f64 / 2f64.powi(63) * 3f64.sqrt()) as f32
    };
    let entries: Vec<f32> = (0..m * n).into_par_iter().map(entry).collect();
    Tensor::from_data(TensorData::new(entries, [1, m, n]), (&like.device(), like.dtype()))
}
