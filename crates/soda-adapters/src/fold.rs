//! Weights as matrices: every method sees `[in, out]`, whatever the layer.
//!
//! burn stores a `Linear` as `[in, out]` and a `Conv2d` as `[out, in, kh, kw]`; the kernel is read as
//! `out x (in kh kw)`, so that a convolution is the linear map of its patches and LoRA's pair of
//! convolutions (`kh x kw` down, `1 x 1` up) is a low-rank product, as in the rest of the field.

use burn::tensor::{DType, Tensor};
use soda_kernels::{has_library, in_order};
use soda_linalg::{LinalgError, Svd, SvdCache};

use crate::error::AdapterError;
use crate::leaf::Leaf;

/// One targeted weight.
#[derive(Clone, Debug)]
pub struct Weight {
    /// `[in, out]`, or `[in kh kw, out]` of a convolution, in the network's float type.
    pub matrix: Tensor<2>,
    /// The shape it is stored in.
    pub shape: Vec<usize>,
    /// Its decomposition, where it is there already.
    svd: Option<Decomposed>,
}

/// The thin singular value decomposition of a weight, in the type that adapters compute in.
#[derive(Clone, Debug)]
pub(crate) struct Decomposed {
    /// Of `[in, out]`.
    pub(crate) svd: Svd,
    /// Whether its factors were rounded once, so that their product is the weight as nearly as can be.
    pub(crate) exact: bool,
}

impl Weight {
    /// A stored weight.
    ///
    /// # Errors
    /// A rank other than 2 (linear) and 4 (convolution), and one on the tape.
    pub fn of(leaf: &Leaf) -> Result<Self, AdapterError> {
        let matrix = match (leaf.matrix(), &leaf.shape[..]) {
            (Some(matrix), _) => matrix,
            (None, &[out, input, kh, kw]) => {
                leaf.value().reshape([out, input * kh * kw]).transpose()
            }
            _ => {
                let (path, shape) = (leaf.path.clone(), leaf.shape.clone());
                return Err(AdapterError::NotAMatrix { path, shape });
            }
        };
        if matrix.is_autodiff() {
            return Err(AdapterError::OnTape { path: leaf.path.clone() });
        }
        Ok(Self { matrix, shape: leaf.shape.clone(), svd: None })
    }

    /// Its decomposition.
    ///
    /// # Errors
    /// A weight that cannot be decomposed.
    pub(crate) fn svd(&self) -> Result<Decomposed, LinalgError> {
        if let Some(svd) = &self.svd {
            return Ok(svd.clone());
        }
        // One weight has one.
        decompositions(&[self], None).remove(0)
    }

    /// Has its decomposition ready.
    pub(crate) fn with_svd(self, svd: Decomposed) -> Self {
        Self { svd: Some(svd), ..self }
    }

    /// Entries of the convolution's window, `kh kw`; 1 for a linear layer.
    pub fn window(&self) -> usize {
        self.shape.get(2..).unwrap_or_default().iter().product()
    }
}

/// The decompositions of several weights at once, in their order; from `cache` where they are there, and into it where not.
///
/// What the network computes in f32 is decomposed in f64 and rounded once, unless a GPU does it.
pub(crate) fn decompositions(
    weights: &[&Weight],
    cache: Option<&SvdCache>,
) -> Vec<Result<Decomposed, LinalgError>> {
    let exact = |weight: &Weight| {
        let matrix = &weight.matrix;
        compute_dtype(matrix.dtype()) == matrix.dtype() && !has_library(matrix)
    };
    // All of a network are of one kind.
    let exact = weights.iter().all(|weight| exact(weight));
    let cast = |weight: &&Weight| {
        let matrix = weight.matrix.clone();
        let dtype = compute_dtype(matrix.dtype());
        matrix.cast(dtype)
    };
    let matrices: Vec<_> = weights.iter().map(cast).collect();
    let found = match (cache, exact) {
        (None, false) => Svd::thin_batch(&matrices),
        (None, true) => Svd::thin_batch_rounded(&matrices),
        (Some(cache), false) => cache.thin_batch(&matrices),
        (Some(cache), true) => cache.thin_batch_rounded(&matrices),
    };
    found.into_iter().map(|svd| Ok(Decomposed { svd: svd?, exact })).collect()
}

/// `[in, out]` of a stored weight, in the float type that adapters compute in.
///
/// # Panics
/// On a rank that [`Weight::of`] refuses; nothing is attached to such a weight.
pub(crate) fn fold<const D: usize>(weight: Tensor<D>) -> Tensor<2> {
    let dims = weight.dims();
    let weight = weight.clone().cast(compute_dtype(weight.dtype()));
    match dims[..] {
        // In order, for the same bits in every run.
        [_, _] => in_order(weight.reshape([dims[0], dims[1]]), [0, 1]),
        _ => weight.reshape([dims[0] as i32, -1]).transpose(),
    }
}

/// The inverse of [`fold`].
pub(crate) fn unfold<const D: usize>(
    matrix: Tensor<2>,
    dims: [usize; D],
    dtype: DType,
) -> Tensor<D> {
    let matrix = if D == 2 { matrix } else { matrix.transpose() };
    matrix.reshape(dims).cast(dtype)
}

/// f32 whatever the network computes in, but f64 for a network in f64 (to check gradients with).
pub(crate) fn compute_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
