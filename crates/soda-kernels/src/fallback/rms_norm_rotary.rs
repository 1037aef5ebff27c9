//! RMS norm of heads and their rotation, and the gradient. In float32 whatever the dtype.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::{at_least_f32, cast, columns};

/// `Kernels::rms_norm_rotary`.
pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    [gamma, cos, sin]: [FloatTensor<B>; 3],
    eps: f64,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = at_least_f32::<B>(x);
    let r = inverse_rms::<B>(&x, eps);
    let n = B::float_mul(B::float_mul(x, r), scale::<B>(gamma));
    let swapped = swap_pairs::<B>(n.clone());
    let y = B::float_add(B::float_mul(n, cos), B::float_mul(swapped, sin));
    cast::<B>(y, dtype)
}

/// `KernelGradients::rms_norm_rotary_gradient`.
pub(crate) fn gradient<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    [gamma, cos, sin]: [FloatTensor<B>; 3],
    eps: f64,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [x, dy] = [x, dy].map(at_least_f32::<B>);
    let r = inverse_rms::<B>(&x, eps);
    let turned_back =
        B::float_add(B::float_mul(dy.clone(), cos), swap_pairs::<B>(B::float_mul(dy, sin)));
    let g = B::float_mul(turned_back, scale::<B>(gamma));
    // dx = r (g - xhat mean(g xhat)) with xhat = x r
    let xhat = B::float_mul(x, r.clone());
    let along = B::float_mean_dim(B::float_mul(g.clone(), xhat.clone()), 3);
    let dx = B::float_mul(B::float_sub(g, B::float_mul(xhat, along)), r);
    cast::<B>(dx, dtype)
}

/// `1 / sqrt(mean(x²) + eps)` of each head.
fn inverse_rms<B: Backend>(x: &FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 3);
    B::float_recip(B::float_sqrt(B::float_add_scalar(mean, eps.into())))
}

/// The scale of each channel, in float32 and with the axes of heads.
fn scale<B: Backend>(gamma: FloatTensor<B>) -> FloatTensor<B> {
    let width = gamma.shape()[0];
    B::float_reshape(at_least_f32::<B>(gamma), [1, 1, 1, width].into())
}

/// Swaps the channels `2i` and `2i + 1` of `[b, n, heads, d]`.
fn swap_pairs<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let [batch, tokens, heads, width] = shape.dims();
    let pairs = B::float_reshape(x, [batch, tokens, heads, width / 2, 2].into());
    let swapped = vec![columns::<B>(&pairs, 1..2), columns::<B>(&pairs, 0..1)];
    B::float_reshape(B::float_cat(swapped, 4), shape)
}
