//! Weights as matrices: every method sees `[in, out]`, for linear layers and convolutions alike.
//!
//! burn stores the weight of a `Linear` as `[in, out]` and the kernel of a `Conv2d` as `[out, in, kh, kw]`.
//! The kernel is read as `out x (in kh kw)`, so that a convolution is the linear map of its patches. LoRA's
//! pair of convolutions (`kh x kw` down, `1 x 1` up) is then a low-rank product, as in PEFT and kohya's
//! scripts.

use burn::tensor::{DType, Device, Tensor, TensorData};
use soda_kernels::{StoredWeight, with_stride_order};
use soda_linalg::{LinalgError, Svd, SvdCache};

use crate::base_weight::BaseWeight;
use crate::directions::Directions;
use crate::error::{AdapterError, TargetError};
use crate::named_params::NamedParam;

/// One selected weight of a network, as a matrix.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The weight as the network has it: `[in, out]`, or `[in kh kw, out]` of a convolution.
    base: BaseWeight,
    /// The float type in which the network will compute.
    network_dtype: DType,
    /// The shape in which burn stores the weight.
    pub shape: Vec<usize>,
    /// The decomposition, if it is already computed.
    svd: Option<WeightSvd>,
    /// Directions for methods that are calibrated.
    directions: Directions,
}

/// The thin singular value decomposition of a weight, in the float type that adapters compute in.
#[derive(Clone, Debug)]
pub(crate) struct WeightSvd {
    /// Decomposition of the matrix `[in, out]`.
    pub(crate) svd: Svd,
    /// Whether the factors were computed in f64 and rounded once, so that their product can replace the
    /// weight.
    pub(crate) exact: bool,
}

impl Weight {
    /// Reads a stored parameter as a matrix.
    ///
    /// # Errors
    /// [`TargetError::NotAMatrix`] for a rank other than 2 (linear) and 4 (convolution);
    /// [`TargetError::OnAutodiffDevice`] for a parameter that tracks gradients.
    pub fn from_param(param: &NamedParam) -> Result<Self, AdapterError> {
        let matrix = match (param.matrix(), &param.shape[..]) {
            (Some(matrix), _) => matrix,
            (None, &[out, input, kh, kw]) => {
                param.value().reshape([out, input * kh * kw]).transpose()
            }
            _ => {
                let (path, shape) = (param.path.clone(), param.shape.clone());
                return Err(TargetError::NotAMatrix { path, shape }.into());
            }
        };
        if matrix.is_autodiff() {
            return Err(TargetError::OnAutodiffDevice { path: param.path.clone() }.into());
        }
        Ok(Self::new(BaseWeight::Float(matrix), param.shape.clone()))
    }

    /// Reads a weight that is stored in the place of `param`. It becomes floats each time that it is read.
    ///
    /// # Errors
    /// [`TargetError::OnAutodiffDevice`] for a weight whose device tracks gradients.
    pub(crate) fn from_stored(
        stored: StoredWeight,
        param: &NamedParam,
    ) -> Result<Self, AdapterError> {
        if stored.device().is_autodiff() {
            return Err(TargetError::OnAutodiffDevice { path: param.path.clone() }.into());
        }
        let shape = stored.dims().to_vec();
        Ok(Self::new(BaseWeight::Stored(stored, param.value().dtype()), shape))
    }

    fn new(base: BaseWeight, shape: Vec<usize>) -> Self {
        let network_dtype = base.dtype();
        Self { base, network_dtype, shape, svd: None, directions: Directions::Unknown }
    }

    /// Makes the weight of a linear layer, `[in, out]`.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_adapters::Weight;
    ///
    /// let weight = Weight::from_matrix(Tensor::<2>::zeros([3, 2], &Device::default()));
    /// assert_eq!((weight.shape.as_slice(), weight.window()), (&[3, 2][..], 1));
    /// ```
    pub fn from_matrix(matrix: Tensor<2>) -> Self {
        let shape = matrix.dims().to_vec();
        Self::new(BaseWeight::Float(matrix), shape)
    }

    /// The weight, `[in, out]`, or `[in kh kw, out]` of a convolution, in its float type on its device. A
    /// weight that is stored otherwise is made anew by each call.
    pub fn matrix(&self) -> Tensor<2> {
        self.base.to_float()
    }

    /// The shape of the matrix.
    pub fn dims(&self) -> [usize; 2] {
        self.base.dims()
    }

    /// The float type of the matrix.
    pub fn dtype(&self) -> DType {
        self.base.dtype()
    }

    /// The device of the network.
    pub fn device(&self) -> Device {
        self.base.device()
    }

    /// The matrix in f32, if it is floats in host memory.
    pub(crate) fn host_floats(&self) -> Option<TensorData> {
        self.base.host_floats()
    }

    /// The checksum of the matrix in f32, if it is floats in host memory.
    pub(crate) fn host_checksum(&self) -> Option<u64> {
        self.base.host_checksum()
    }

    /// The matrix in the float type that adapters compute in.
    pub(crate) fn compute_matrix(&self) -> Tensor<2> {
        self.matrix().cast(compute_dtype(self.dtype()))
    }

    /// Whether the device multiplies with its vendor's library.
    pub(crate) fn has_vendor_blas(&self) -> bool {
        self.base.has_vendor_blas()
    }

    /// The float type in which an adapter keeps large constant factors of products. A vendor's library
    /// multiplies in the type of the network; everywhere else it is that of the adapter's parameters.
    pub(crate) fn factor_dtype(&self) -> DType {
        if self.has_vendor_blas() { self.network_dtype } else { compute_dtype(self.dtype()) }
    }

    /// Names the float type in which the network will compute, where its weights are in another still.
    pub(crate) fn in_network_of(self, network_dtype: DType) -> Self {
        Self { network_dtype, ..self }
    }

    /// Number of entries of the convolution's window, `kh kw`; 1 for a linear layer.
    pub fn window(&self) -> usize {
        self.shape.get(2..).unwrap_or_default().iter().product()
    }

    /// Returns the decomposition, and computes it if the plan has not.
    ///
    /// # Errors
    /// A weight that cannot be decomposed.
    pub(crate) fn svd(&self) -> Result<WeightSvd, LinalgError> {
        if let Some(svd) = &self.svd {
            return Ok(svd.clone());
        }
        decompose_batch(&[self], None).remove(0)
    }

    /// What is known of the weight's directions.
    pub(crate) fn directions(&self) -> &Directions {
        &self.directions
    }

    /// Stores what is known of the weight's directions.
    pub(crate) fn with_directions(self, directions: Directions) -> Self {
        Self { directions, ..self }
    }

    /// Stores a computed decomposition.
    pub(crate) fn with_svd(self, svd: WeightSvd) -> Self {
        Self { svd: Some(svd), ..self }
    }
}

/// Decomposes several weights at once, in their order. `cache` provides known decompositions and stores new
/// ones.
///
/// Weights are decomposed in f64 and rounded once, except on a GPU with a vendor's library. Those of 16 bits
/// have the decomposition of the same weights in f32.
pub(crate) fn decompose_batch(
    weights: &[&Weight],
    cache: Option<&SvdCache>,
) -> Vec<Result<WeightSvd, LinalgError>> {
    let exact = is_exact(weights);
    let matrices: Vec<_> = weights.iter().map(|weight| weight.compute_matrix()).collect();
    let found = match (cache, exact) {
        (None, false) => Svd::thin_batch(&matrices),
        (None, true) => Svd::thin_batch_via_f64(&matrices),
        (Some(cache), false) => cache.thin_batch(&matrices),
        (Some(cache), true) => cache.thin_batch_via_f64(&matrices),
    };
    found.into_iter().map(|svd| Ok(WeightSvd { svd: svd?, exact })).collect()
}

/// Whether these weights are decomposed in f64. All weights of a network have the same device.
pub(crate) fn is_exact(weights: &[&Weight]) -> bool {
    weights.iter().all(|weight| !weight.has_vendor_blas())
}

/// Converts a stored weight to its matrix `[in, out]`, in the float type that adapters compute in.
///
/// # Panics
/// On a rank that [`Weight::from_param`] refuses. Nothing is attached to such a weight.
pub(crate) fn to_matrix<const D: usize>(stored: Tensor<D>) -> Tensor<2> {
    let dims = stored.dims();
    let stored = stored.clone().cast(compute_dtype(stored.dtype()));
    match dims[..] {
        // A fixed memory order gives the same bits in every run.
        [_, _] => with_stride_order(stored.reshape([dims[0], dims[1]]), [0, 1]),
        _ => stored.reshape([dims[0] as i32, -1]).transpose(),
    }
}

/// Converts a matrix `[in, out]` to the stored shape `dims` and float type: the inverse of [`to_matrix`].
pub(crate) fn from_matrix<const D: usize>(
    matrix: Tensor<2>,
    dims: [usize; D],
    dtype: DType,
) -> Tensor<D> {
    let matrix = if D == 2 { matrix } else { matrix.transpose() };
    matrix.reshape(dims).cast(dtype)
}

/// The float type in which adapters of a network in `dtype` compute: f64 for f64 (tests of gradients), else
/// f32.
pub(crate) fn compute_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
