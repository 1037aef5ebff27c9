//! Linear layers with a deferred weight: the weight is formed at the moment of use, by code that may know a
//! shorter way.
//!
//! burn's reparameterizations (LoRA and its relatives) turn a stored weight into the effective weight and
//! never see the layer's input. For few rows that is the long way: it forms a whole weight and a whole weight
//! gradient, where `x W0 + (x A) B` needs neither. Here the input is on offer while the weight is formed, and
//! a reparameterization may return the product instead, with [`offer_product`].

use std::cell::RefCell;

use burn::tensor::Tensor;

use crate::ops::bias_residual::bias_residual;
use crate::ops::matmul::matmul;

/// The linear layer `x W + b` for `x` `[.., in]`, `W = weight()` `[in, out]` and `b` `[out]`: `[.., out]`.
///
/// While `weight` runs, [`offer_product`] on the same thread can replace the product `x W`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_kernels::{linear_deferred, offer_product};
///
/// let device = Device::default();
/// let (x, w) = (Tensor::<2>::ones([1, 2], &device), Tensor::<2>::ones([2, 3], &device));
/// let y = linear_deferred(x, || {
///     offer_product(|rows| Some(rows.matmul(w.clone()) * 2));
///     w.clone()
/// }, None);
/// assert_eq!(y.into_data().iter::<f32>().collect::<Vec<_>>(), [4.0; 3]);
/// ```
pub fn linear_deferred<const D: usize>(
    x: Tensor<D>,
    weight: impl FnOnce() -> Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    linear_residual(x, weight, bias, None)
}

/// [`linear_deferred`] plus a residual `[.., out]`.
pub fn linear_residual<const D: usize>(
    x: Tensor<D>,
    weight: impl FnOnce() -> Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let x = x.reshape([rows, dims[D - 1]]);
    let scope = DeferredScope::open(x.clone());
    let weight = weight();
    let y = scope.close().unwrap_or_else(|| matmul(x, weight));
    dims[D - 1] = y.dims()[1];
    bias_residual(y.reshape(dims), bias.map(|bias| bias.unsqueeze()), residual)
}

/// Offers a product in place of the weight of the innermost deferred layer on this thread.
///
/// `product` receives the rows `[rows, in]` of the layer's input. If it returns `x W`, the layer uses that
/// product and ignores the weight. The result says whether the layer took a product; it is false outside a
/// deferred layer.
pub fn offer_product(product: impl FnOnce(Tensor<2>) -> Option<Tensor<2>>) -> bool {
    let state = DEFERRED.take();
    let Some(Deferred::Input(x)) = state else {
        DEFERRED.set(state);
        return false;
    };
    let offered = product(x.clone());
    let taken = offered.is_some();
    DEFERRED.set(Some(offered.map_or(Deferred::Input(x), Deferred::Product)));
    taken
}

/// The state of a deferred layer while its weight is formed.
enum Deferred {
    /// The rows of the input.
    Input(Tensor<2>),
    /// The product that was offered.
    Product(Tensor<2>),
}

thread_local! {
    static DEFERRED: RefCell<Option<Deferred>> = const { RefCell::new(None) };
}

/// Makes the input of a layer available to [`offer_product`]. Restores the outer layer's state on drop, also
/// during unwinding, so that a later layer never finds the rows of an earlier one.
struct DeferredScope(Option<Deferred>);

impl DeferredScope {
    fn open(x: Tensor<2>) -> Self {
        Self(DEFERRED.replace(Some(Deferred::Input(x))))
    }

    /// The product that was offered, if there was one.
    fn close(self) -> Option<Tensor<2>> {
        match DEFERRED.take() {
            Some(Deferred::Product(y)) => Some(y),
            _ => None,
        }
    }
}

impl Drop for DeferredScope {
    fn drop(&mut self) {
        DEFERRED.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use soda_testing::assert_close;

    use super::*;
    use crate::ops::linear::linear;
    use crate::ops::matmul::matmul;

    /// A GPU adds the bias in the product, or after it.
    const ROUNDING: f64 = 1e-6;

    fn values(x: &Tensor<2>) -> Vec<f32> {
        x.to_data().iter::<f32>().collect()
    }

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Default, &Device::default())
    }

    #[test]
    fn an_offered_product_replaces_the_product_of_its_own_layer_only() {
        let (x, w, bias) = (random([3, 4]), random([4, 5]), random([1, 5]).flatten(0, 1));
        let expected = linear(x.clone(), w.clone(), Some(bias.clone()));
        let mut inner_shape_fits = false;
        let found = linear_deferred(
            x.clone(),
            || {
                // A layer inside a layer has its own input, and the outer input is on offer again afterwards.
                let inner = linear_deferred(random([2, 4]), || w.clone(), None);
                inner_shape_fits = inner.dims() == [2, 5];
                assert!(offer_product(|rows| Some(matmul(rows, w.clone()))));
                random([4, 5])
            },
            Some(bias),
        );
        assert!(inner_shape_fits);
        assert_close("the offered product", &values(&found), &values(&expected), ROUNDING);
        assert!(!offer_product(|_| panic!("no layer is deferred")));
        let without_offer = linear_deferred(
            x.clone(),
            || {
                assert!(!offer_product(|_| None));
                w.clone()
            },
            None,
        );
        let product = matmul(x, w);
        assert_close(
            "the layer's own product",
            &values(&without_offer),
            &values(&product),
            ROUNDING,
        );
    }

    #[test]
    fn a_panic_leaves_no_layer_deferred() {
        let broken = std::panic::catch_unwind(|| {
            linear_deferred(random([1, 2]), || std::panic::resume_unwind(Box::new(())), None)
        });
        assert!(broken.is_err());
        assert!(!offer_product(|_| panic!("no layer is deferred")));
    }
}
