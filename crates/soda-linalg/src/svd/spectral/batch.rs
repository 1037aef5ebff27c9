//! Matrices grouped by dtype and shape, and each group decomposed as batches.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorReadError};

use super::decompose::{ThinBatch, thin};
use super::norms::total;
use crate::host;
use crate::svd::factors::Svd;

/// The largest number of entries of a batch, of whose size some twenty tensors exist at once.
const MAX_ENTRIES: usize = 1 << 26;

/// The largest accepted error of factors, in `eps √m` and `eps √k`; the host's factors have about 1.
const MAX_ERROR: f64 = 16.0;

/// Decomposes each matrix on its device.
///
/// A result is `None` if the matrix is empty, an entry is not finite, the device fails, or the factors are
/// inaccurate.
pub(in crate::svd) fn thin_batch(matrices: &[&Tensor<2>]) -> Vec<Option<Svd>> {
    let mut results: Vec<Option<Svd>> = matrices.iter().map(|_| None).collect();
    let mut groups = BTreeMap::<(bool, [usize; 2]), Vec<usize>>::new();
    for (i, a) in matrices.iter().enumerate() {
        groups.entry((host::is_f64(a), a.dims())).or_default().push(i);
    }
    for ((is_f64, [rows, cols]), members) in groups {
        if rows * cols == 0 {
            continue;
        }
        let dtype = if is_f64 { DType::F64 } else { DType::F32 };
        let batches = members.len().div_ceil((MAX_ENTRIES / (rows * cols)).max(1));
        // Batches of about one size, because a small one takes nearly as many launches as a large one.
        for members in members.chunks(members.len().div_ceil(batches)) {
            let plain = |&i: &usize| matrices[i].clone().without_autodiff().cast(dtype);
            let batch = Tensor::stack(members.iter().map(plain).collect(), 0);
            for (&i, svd) in members.iter().zip(thin_of_batch(batch).unwrap_or_default()) {
                results[i] = svd;
            }
        }
    }
    results
}

fn thin_of_batch(batch: Tensor<3>) -> Result<Vec<Option<Svd>>, TensorReadError> {
    // Zero times a number that is not finite is NaN, which would end the iterations of the whole batch.
    let finite = total(batch.clone().mul_scalar(0)).equal_scalar(0);
    let zeros = batch.zeros_like();
    let finite = finite.expand(batch.dims());
    let ThinBatch { u, s, vt, error } = thin(zeros.mask_where(finite.clone(), batch))?;
    let finite = finite.narrow(1, 0, 1).narrow(2, 0, 1).try_to_vec_as::<bool>()?;
    let member = |x: &Tensor<3>, i: usize| x.clone().narrow(0, i, 1).squeeze_dim::<2>(0);
    let accepted = |(i, (error, finite)): (usize, (f64, bool))| {
        // False for a NaN.
        (finite && error <= MAX_ERROR).then(|| Svd {
            u: member(&u, i),
            s: member(&s, i).squeeze_dim(0),
            vt: member(&vt, i),
        })
    };
    Ok(error.into_iter().zip(finite).enumerate().map(accepted).collect())
}
