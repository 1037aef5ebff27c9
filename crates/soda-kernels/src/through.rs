//! A linear layer whose weight is made at the moment of use, by someone who may know a shorter way.
//!
//! burn's reparameterizations (LoRA and its relatives) turn a stored weight into the one to use, and never see
//! what it is used on. For a few rows that is the long way: the weight is formed whole, and so is its
//! gradient, where `x W0 + (x A) B` needs neither. So the rows are laid open while the weight is made: who
//! makes it may [`offer_product`] with the product instead.

use std::cell::RefCell;

use burn::tensor::Tensor;

use crate::matmul::matmul;
use crate::plus::plus;

/// `x W + b` for `x` `[..., in]`, `W = weight()` `[in, out]` and `b` `[out]`; the result is `[..., out]`.
///
/// While `weight` runs, on this thread, [`offer_product`] offers it `x`.
pub fn linear_deferred<const D: usize>(
    x: Tensor<D>,
    weight: impl FnOnce() -> Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    linear_residual(x, weight, bias, None)
}

/// [`linear_deferred`], and `rest` `[..., out]` that its value is added to.
pub fn linear_residual<const D: usize>(
    x: Tensor<D>,
    weight: impl FnOnce() -> Tensor<2>,
    bias: Option<Tensor<1>>,
    rest: Option<Tensor<D>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let x = x.reshape([rows, dims[D - 1]]);
    let open = Open::new(x.clone());
    let weight = weight();
    let y = open.close().unwrap_or_else(|| matmul(x, weight));
    dims[D - 1] = y.dims()[1];
    plus(y.reshape(dims), bias.map(|bias| bias.unsqueeze()), rest)
}

/// Offers the rows that the weight being made is for, `[rows, in]`, to `product`; if that gives `x W`, the
/// weight itself is not used and may be anything. Says whether it did; false where no rows lie open.
pub fn offer_product(product: impl FnOnce(Tensor<2>) -> Option<Tensor<2>>) -> bool {
    let rows = PRODUCT.take();
    let Some(Product::Rows(x)) = rows else {
        PRODUCT.set(rows);
        return false;
    };
    let answered = product(x.clone());
    let done = answered.is_some();
    PRODUCT.set(Some(answered.map_or(Product::Rows(x), Product::Result)));
    done
}

enum Product {
    Rows(Tensor<2>),
    Result(Tensor<2>),
}

thread_local! {
    static PRODUCT: RefCell<Option<Product>> = const { RefCell::new(None) };
}

/// Lays rows open, and clears them away on unwinding too: a later layer must not find them.
struct Open(Option<Product>);

impl Open {
    fn new(x: Tensor<2>) -> Self {
        Self(PRODUCT.replace(Some(Product::Rows(x))))
    }

    fn close(self) -> Option<Tensor<2>> {
        match PRODUCT.take() {
            Some(Product::Result(y)) => Some(y),
            _ => None,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        PRODUCT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::matmul::linear;

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Default, &Device::default())
    }

    #[test]
    fn an_answer_stands_for_the_product_and_only_for_its_own() {
        let (x, w, bias) = (random([3, 4]), random([4, 5]), random([1, 5]).flatten(0, 1));
        let expected = linear(x.clone(), w.clone(), Some(bias.clone()));
        let mut inner = false;
        let found = linear_deferred(
            x.clone(),
            || {
                // A layer inside a layer: its rows are its own, and the outer ones lie open again after.
                let silent = linear_deferred(random([2, 4]), || w.clone(), None);
                inner = silent.dims() == [2, 5];
                assert!(offer_product(|rows| Some(rows.matmul(w.clone()))));
                random([4, 5])
            },
            Some(bias),
        );
        assert!(inner && found.equal(expected).all().into_scalar::<bool>());
        assert!(!offer_product(|_| panic!("no rows lie open")));
        let kept = linear_deferred(
            x.clone(),
            || {
                assert!(!offer_product(|_| None));
                w.clone()
            },
            None,
        );
        assert!(kept.equal(x.matmul(w)).all().into_scalar::<bool>());
    }

    #[test]
    fn a_panic_leaves_no_rows_open() {
        let broken = std::panic::catch_unwind(|| {
            linear_deferred(random([1, 2]), || std::panic::resume_unwind(Box::new(())), None)
        });
        assert!(broken.is_err());
        assert!(!offer_product(|_| panic!("no rows lie open")));
    }
}
