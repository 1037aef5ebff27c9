//! A linear layer whose weight is made at the moment of use, by someone who may know a shorter way.
//!
//! burn's reparameterizations (LoRA and its relatives) turn a stored weight into the one to use, and never see
//! what it is used on. For a few rows that is the long way: the weight is formed whole, and so is its
//! gradient, where `x W0 + (x A) B` needs neither. So the rows are laid open while the weight is made: who
//! makes it may [`answer`] with the product instead.

use std::cell::RefCell;

use burn::tensor::Tensor;

use crate::matmul::linear;

/// `x W + b` for `x` `[..., in]`, `W = weight()` `[in, out]` and `b` `[out]`; the result is `[..., out]`.
///
/// While `weight` runs, on this thread, [`answer`] offers it `x`.
pub fn linear_through<const D: usize>(
    x: Tensor<D>,
    weight: impl FnOnce() -> Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let open = Open::new(x.clone().reshape([rows, dims[D - 1]]));
    let weight = weight();
    match open.close() {
        None => linear(x, weight, bias),
        Some(mut y) => {
            if let Some(bias) = bias {
                y = y + bias.unsqueeze();
            }
            dims[D - 1] = y.dims()[1];
            y.reshape(dims)
        }
    }
}

/// Offers the rows that the weight being made is for, `[rows, in]`, to `product`; if that gives `x W`, the
/// weight itself is not used and may be anything. Says whether it did; false where no rows lie open.
pub fn answer(product: impl FnOnce(Tensor<2>) -> Option<Tensor<2>>) -> bool {
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
