//! The constructors of [`Svd`], and which of two algorithms decomposes a matrix of a batch.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::factors::Svd;
use super::spectral;
use crate::error::LinalgError;
use crate::host::HostMatrix;
use crate::host::svd::{self as on_host, Arithmetic, ThinFactors};

impl Svd {
    /// Decomposes the `[m, n]` matrix `a`, on all cores of the host.
    ///
    /// An autodiff tensor is read as a constant: no gradient flows through the factors.
    ///
    /// # Errors
    ///
    /// - [`LinalgError::Empty`] or [`LinalgError::NotFinite`] if `a` is empty, or an entry is NaN or
    ///   infinite.
    /// - [`LinalgError::Overflow`] if a singular value exceeds the range of the dtype.
    /// - [`LinalgError::NoConvergence`] if the iteration does not converge.
    /// - [`LinalgError::Read`] if `a` cannot be read from its device.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Svd;
    ///
    /// let a = Tensor::<2>::from_data([[0.0, 3.0], [-4.0, 0.0]], &Device::default());
    /// let svd = Svd::thin(&a)?;
    /// assert_eq!(svd.s.to_data().try_to_vec::<f32>()?, [4.0, 3.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thin(a: &Tensor<2>) -> Result<Self, LinalgError> {
        on_host::thin(a).map(from_factors)
    }

    /// Decomposes many matrices; each result is in the place of its matrix, with its own error.
    ///
    /// A GPU with a vendor's BLAS library ([`soda_kernels::has_vendor_blas`]) takes large matrices, by
    /// [`Svd::thin_batch_spectral_divide`]. A matrix is large if its smaller side is at least 1024, or at
    /// least 512 if 16 or more have its shape.
    ///
    /// The host decomposes all others, and every matrix that the GPU does not decompose accurately. It takes
    /// one matrix per core, because the iteration on one bidiagonal matrix leaves cores idle.
    ///
    /// # Errors
    ///
    /// Each result has the errors of [`Svd::thin`].
    pub fn thin_batch(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        let mut same_shape = BTreeMap::<[usize; 2], usize>::new();
        for a in matrices {
            *same_shape.entry(a.dims()).or_default() += 1;
        }
        let is_large = |a: &Tensor<2>| {
            let [rows, cols] = a.dims();
            let many = same_shape[&[rows, cols]] >= MANY;
            rows.min(cols) >= if many { MANY_ON_GPU } else { ONE_ON_GPU }
        };
        thin_batch_split(matrices, |a| is_large(a) && soda_kernels::has_vendor_blas(a))
    }

    /// Decomposes many matrices in f64 on the host; factors of matrices that are not f64 are rounded to f32
    /// once.
    ///
    /// `U diag(s) Vᵀ` is then as near to the matrix as f32 factors can be, and `((x U) diag(s)) Vᵀ` has the
    /// accuracy of an f32 product `x A`. The factors of [`Svd::thin`] carry the rounding errors of the whole
    /// decomposition instead (see `docs/math.md`).
    ///
    /// # Errors
    ///
    /// Each result has the errors of [`Svd::thin`].
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Svd;
    ///
    /// let a = Tensor::<2>::from_data([[0.1, 0.2], [0.3, 0.4]], &Device::default());
    /// let svd = Svd::thin_batch_via_f64(&[a.clone()]).remove(0)?;
    /// assert!(svd.recompose().all_close(a, None, Some(1e-7)));
    /// # Ok::<(), soda_linalg::LinalgError>(())
    /// ```
    pub fn thin_batch_via_f64(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        thin_batch_on_host(&matrices.iter().collect::<Vec<_>>(), Arithmetic::F64Rounded)
    }

    /// Decomposes many matrices on their device by spectral divide and conquer, in matrix products alone.
    ///
    /// Matrices of one shape form one batch. The algorithm is a polar decomposition, and then a symmetric
    /// eigensolver that divides the spectrum (Nakatsukasa and Higham, SIAM J. Sci. Comput. 2013).
    ///
    /// An `n x n` matrix of random entries takes about `400 n³` flops, twenty times as many as on the host.
    /// Nearly all of them are in matrix products.
    ///
    /// # Errors
    ///
    /// Each result has the errors of [`Svd::thin`]. Factors with an error above `16 eps √max(m, n)` count as
    /// [`LinalgError::NoConvergence`], as on a device that rounds its products to less than f32.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Svd;
    ///
    /// let a = Tensor::<2>::from_data([[0.0, 3.0], [-4.0, 0.0]], &Device::default());
    /// let svd = Svd::thin_batch_spectral_divide(&[a]).remove(0)?;
    /// let s: Vec<f32> = svd.s.try_to_vec_as()?;
    /// assert!((s[0] - 4.0).abs() < 1e-5 && (s[1] - 3.0).abs() < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thin_batch_spectral_divide(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        let found = spectral::thin_batch(&matrices.iter().collect::<Vec<_>>());
        let or_error = |(svd, a): (Option<Self>, &Tensor<2>)| match svd {
            Some(svd) => Ok(svd),
            None => Err(HostMatrix::<f64>::read(a)?.no_convergence()),
        };
        found.into_iter().zip(matrices).map(or_error).collect()
    }
}

/// The smaller side from which one matrix is decomposed on a GPU.
const ONE_ON_GPU: usize = 1024;
/// The smaller side from which [`MANY`] matrices of one shape are decomposed on a GPU.
const MANY_ON_GPU: usize = 512;
/// How many matrices of one shape are many.
const MANY: usize = 16;

/// Decomposes the matrices that `on_device` selects by spectral divide and conquer, and all others on the
/// host.
fn thin_batch_split(
    matrices: &[Tensor<2>],
    on_device: impl Fn(&Tensor<2>) -> bool,
) -> Vec<Result<Svd, LinalgError>> {
    let (device_indices, mut host_indices): (Vec<_>, Vec<_>) =
        (0..matrices.len()).partition(|&i| on_device(&matrices[i]));
    let select = |indices: &[usize]| indices.iter().map(|&i| &matrices[i]).collect::<Vec<_>>();
    let mut results: Vec<(usize, Result<Svd, LinalgError>)> = Vec::with_capacity(matrices.len());
    let found = spectral::thin_batch(&select(&device_indices));
    for (i, svd) in device_indices.iter().copied().zip(found) {
        match svd {
            Some(svd) => results.push((i, Ok(svd))),
            None => host_indices.push(i),
        }
    }
    let found = thin_batch_on_host(&select(&host_indices), Arithmetic::F32);
    results.extend(host_indices.iter().copied().zip(found));
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, svd)| svd).collect()
}

fn thin_batch_on_host(
    matrices: &[&Tensor<2>],
    arithmetic: Arithmetic,
) -> Vec<Result<Svd, LinalgError>> {
    let results = on_host::thin_batch(matrices, arithmetic).into_iter();
    results.map(|factors| factors.map(from_factors)).collect()
}

fn from_factors((u, s, vt): ThinFactors) -> Svd {
    Svd { u, s, vt }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Some matrices go to the device, some to the host, and one from the device back to the host.
    #[test]
    fn results_are_in_the_order_of_the_matrices() {
        let device = Device::default();
        let diagonal = |s: f32, n: usize| Tensor::<2>::eye(n, &device).mul_scalar(s);
        let mut matrices: Vec<_> = (1..13).map(|i| diagonal(i as f32, 2 + i % 3)).collect();
        matrices[3] = matrices[3].clone().mul_scalar(f32::NAN);
        matrices[8] = Tensor::zeros([0, 4], &device);
        for divisor in 1..4 {
            let on_device = |a: &Tensor<2>| a.dims()[1].is_multiple_of(divisor);
            let results = thin_batch_split(&matrices, on_device);
            assert_eq!(results.len(), 12);
            for (i, result) in results.into_iter().enumerate() {
                match (i, result) {
                    (3, result) => {
                        assert!(matches!(result, Err(LinalgError::NotFinite { .. })));
                    }
                    (8, result) => assert!(matches!(result, Err(LinalgError::Empty { .. }))),
                    (i, result) => {
                        let s: Vec<f32> =
                            result.expect("finite").s.try_to_vec_as().expect("readable");
                        assert_eq!(s.len(), 2 + (i + 1) % 3);
                        assert!(s.iter().all(|s| (s - (i + 1) as f32).abs() < 1e-4), "{i}: {s:?}");
                    }
                }
            }
        }
    }
}
