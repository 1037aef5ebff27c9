//! GEGLU and its gradient.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::columns;
use super::steps::BackwardSteps;

/// `Kernels::geglu`.
pub(crate) fn forward<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [a, b] = halves::<B>(&x);
    B::float_mul(a, B::gelu(b))
}

/// `KernelGradients::geglu_gradient`.
pub(crate) fn gradient<B: BackwardSteps>(
    x: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    if let Some(bias) = bias {
        return B::plain_geglu_gradient(add_bias::<B>(x, bias), dy);
    }
    let last = x.rank() - 1;
    let [a, b] = halves::<B>(&x);
    let erf = B::float_erf(B::float_mul_scalar(b.clone(), std::f64::consts::FRAC_1_SQRT_2.into()));
    let cdf = B::float_mul_scalar(B::float_add_scalar(erf, 1.0.into()), 0.5.into());
    let exponent = B::float_mul_scalar(B::float_mul(b.clone(), b.clone()), (-0.5).into());
    let peak = (2.0 * std::f64::consts::PI).sqrt().recip();
    let density = B::float_mul_scalar(B::float_exp(exponent), peak.into());
    let da = B::float_mul(dy.clone(), B::float_mul(b.clone(), cdf.clone()));
    let slope = B::float_add(cdf, B::float_mul(b, density));
    let db = B::float_mul(dy, B::float_mul(a, slope));
    B::float_cat(vec![da, db], last)
}

/// The sum `x + bias`, with the bias along the last axis.
pub(crate) fn add_bias<B: Backend>(x: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    for axis in 0..last {
        shape[axis] = 1;
    }
    B::float_add(x, B::float_reshape(bias, shape))
}

/// The two halves of the last axis.
pub(super) fn halves<B: Backend>(x: &FloatTensor<B>) -> [FloatTensor<B>; 2] {
    let half = x.shape()[x.rank() - 1] / 2;
    [columns::<B>(x, 0..half), columns::<B>(x, half..2 * half)]
}
