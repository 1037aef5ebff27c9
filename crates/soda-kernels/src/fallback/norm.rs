//! Group norm and layer norm, and their gradients by the input.
//!
//! Statistics are in float32 whatever the dtype of the network.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::{at_least_f32, cast};

/// `Kernels::group_norm_forward`.
pub(crate) fn group_norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let [batch, channels, height, width] = shape.dims();
    let rows = [batch * groups, channels / groups * height * width];
    let maps = [batch, channels, height * width];
    let (xhat, _) = normalized::<B>(B::float_reshape(at_least_f32::<B>(x), rows.into()), eps);
    let z = affine::<B>(B::float_reshape(xhat, maps.into()), gamma, beta, [1, channels, 1]);
    let y = if silu { B::float_mul(z.clone(), B::sigmoid(z)) } else { z };
    cast::<B>(B::float_reshape(y, shape), dtype)
}

/// `KernelGradients::group_norm_gradient`.
pub(crate) fn group_norm_gradient<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let [batch, channels, height, width] = shape.dims();
    let rows = [batch * groups, channels / groups * height * width];
    let maps = [batch, channels, height * width];
    let (xhat, rstd) = normalized::<B>(B::float_reshape(at_least_f32::<B>(x), rows.into()), eps);
    let mut dz = B::float_reshape(at_least_f32::<B>(dy), maps.into());
    if silu {
        // s (1 + z (1 - s)) = s + y (1 - s) with y = z s
        let z = B::float_reshape(xhat.clone(), maps.into());
        let z = affine::<B>(z, gamma.clone(), beta, [1, channels, 1]);
        let s = B::sigmoid(z.clone());
        let y = B::float_mul(z, s.clone());
        let slope = B::float_add(s.clone(), B::float_sub(y.clone(), B::float_mul(y, s)));
        dz = B::float_mul(dz, slope);
    }
    let gamma = B::float_reshape(at_least_f32::<B>(gamma), [1, channels, 1].into());
    let g = B::float_reshape(B::float_mul(dz, gamma), rows.into());
    let dx = input_gradient::<B>(g, xhat, rstd);
    cast::<B>(B::float_reshape(dx, shape), dtype)
}

/// `Kernels::layer_norm_forward`.
pub(crate) fn layer_norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let Some([samples, width]) = scales::<B>(&gamma) else {
        return B::layer_norm(x, gamma, Some(beta), eps);
    };
    let (shape, dtype) = (x.shape(), x.dtype());
    let rows = shape.num_elements() / width.max(1);
    let x = B::float_reshape(at_least_f32::<B>(x), [rows, width].into());
    let (xhat, _) = normalized::<B>(x, eps);
    let xhat = B::float_reshape(xhat, [samples, rows / samples.max(1), width].into());
    let y = affine::<B>(xhat, gamma, beta, [samples, 1, width]);
    cast::<B>(B::float_reshape(y, shape), dtype)
}

/// The sizes of scales `[b, c]`, one row for each sample. `None` if all samples have one scale `[c]`.
fn scales<B: Backend>(gamma: &FloatTensor<B>) -> Option<[usize; 2]> {
    (gamma.rank() == 2).then(|| gamma.shape().dims())
}

/// The sum over the rows of each sample, in the shape of a scale or a shift.
pub(crate) fn sum_like_scale<B: Backend>(
    x: FloatTensor<B>,
    scale: &FloatTensor<B>,
) -> FloatTensor<B> {
    let (shape, dtype) = (scale.shape(), scale.dtype());
    let width = shape[shape.num_dims() - 1];
    let samples = shape.num_elements() / width.max(1);
    let rows = x.shape().num_elements() / (samples * width).max(1);
    let x = B::float_reshape(at_least_f32::<B>(x), [samples, rows, width].into());
    cast::<B>(B::float_reshape(B::float_sum_dim(x, 1), shape), dtype)
}

/// `KernelGradients::layer_norm_gradient`.
pub(crate) fn layer_norm_gradient<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    gamma: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let width = gamma.shape()[gamma.rank() - 1];
    let [samples, _] = scales::<B>(&gamma).unwrap_or([1, width]);
    let rows = [shape.num_elements() / width.max(1), width];
    let (xhat, rstd) = normalized::<B>(B::float_reshape(at_least_f32::<B>(x), rows.into()), eps);
    let of_sample = [samples, rows[0] / samples.max(1), width];
    let dy = B::float_reshape(at_least_f32::<B>(dy), of_sample.into());
    let gamma = B::float_reshape(at_least_f32::<B>(gamma), [samples, 1, width].into());
    let g = B::float_reshape(B::float_mul(dy, gamma), rows.into());
    cast::<B>(B::float_reshape(input_gradient::<B>(g, xhat, rstd), shape), dtype)
}

/// `xhat` and `rstd` of the rows of a matrix.
fn normalized<B: Backend>(x: FloatTensor<B>, eps: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 1);
    let rstd = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, eps.into())));
    (B::float_mul(centred, rstd.clone()), rstd)
}

/// `rstd (g - mean(g) - xhat mean(g xhat))`.
fn input_gradient<B: Backend>(
    g: FloatTensor<B>,
    xhat: FloatTensor<B>,
    rstd: FloatTensor<B>,
) -> FloatTensor<B> {
    let along = B::float_mean_dim(B::float_mul(g.clone(), xhat.clone()), 1);
    let centred = B::float_sub(g.clone(), B::float_mean_dim(g, 1));
    B::float_mul(B::float_sub(centred, B::float_mul(xhat, along)), rstd)
}

/// `gamma xhat + beta`, with the parameters reshaped to `shape`.
fn affine<B: Backend>(
    xhat: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    shape: [usize; 3],
) -> FloatTensor<B> {
    let [gamma, beta] = [gamma, beta].map(|p| B::float_reshape(at_least_f32::<B>(p), shape.into()));
    B::float_add(B::float_mul(xhat, gamma), beta)
}
