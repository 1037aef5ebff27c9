//! [`Kernels`] and [`KernelGradients`] for the CubeCL backend: libraries and kernels where they take the
//! operands.

use burn::backend::TensorMetadata;
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, FloatDType};

use super::launch::attention::Attention;
use super::launch::attention::parallel::ParallelAttention;
use super::launch::attention::rms_norm_rotary::NormRotary;
use super::launch::fp8::Fp8Products;
use super::launch::group_norm::GroupNorm;
use super::launch::{
    bias_residual, cast_pair, concat_channels, dequantize, geglu, layer_norm, scale_columns,
    softmax, swiglu, upsample,
};
use super::support::{Cube, cublas_takes, kernels_take, on_cuda, row_kernels_take};
use super::{cublas, cublaslt, cudnn, dlopen, offload};
use crate::backend::{KernelGradients, Kernels};
use crate::fallback;
use crate::fallback::attention::AttentionGradient;
use crate::fallback::parallel_attention::ParallelOptions;
use crate::host_matrix::HostMatrix;
use crate::quantize::QuantLayout;

type Float = FloatTensor<Cube>;

impl Kernels for Cube {
    // Rows of scores then begin at multiples of 16 bytes, without which cuBLAS has no fast product.
    const HALF_KEY_MULTIPLE: usize = 8;

    fn matmul(lhs: Float, rhs: Float) -> Float {
        if cublas_takes(&lhs) && lhs.dtype == rhs.dtype {
            return cublas::matmul(lhs, rhs);
        }
        Self::float_matmul(lhs, rhs)
    }

    fn addmm(lhs: Float, rhs: Float, addend: Float) -> Float {
        if cublas_takes(&lhs) && [&rhs, &addend].iter().all(|x| x.dtype == lhs.dtype) {
            if cublas::adds_in_place(&addend) {
                return cublas::addmm_in_place(lhs, rhs, addend);
            }
            if cublaslt::takes([&lhs, &rhs, &addend]) {
                return cublaslt::addmm(lhs, rhs, &addend);
            }
        }
        Self::float_add(Self::matmul(lhs, rhs), addend)
    }

    fn matmul_to_f32(lhs: Float, rhs: Float) -> Float {
        let half = matches!(lhs.dtype, DType::F16 | DType::BF16) && lhs.dtype == rhs.dtype;
        if half && cublas_takes(&lhs) {
            return cublas::matmul_to_f32(lhs, rhs);
        }
        fallback::low_rank::matmul_to_f32::<Self>(lhs, rhs)
    }

    fn cast_pair(a: Float, b: Float, dtype: FloatDType) -> (Float, Float) {
        let to = DType::from(dtype);
        let narrower = matches!(to, DType::F16 | DType::BF16);
        if narrower && kernels_take(&a) && a.dtype == DType::F32 && b.dtype == DType::F32 {
            return cast_pair::f32_to_half(a, b, to);
        }
        fallback::low_rank::cast_pair::<Self>(a, b, dtype)
    }

    fn dequantize_matrix(
        words: IntTensor<Self>,
        scales: Float,
        layout: QuantLayout,
        dtype: FloatDType,
    ) -> Float {
        if kernels_take(&scales) && dtype != FloatDType::F64 {
            return dequantize::dequantize(words, scales, layout, dtype.into());
        }
        fallback::dequantize::dequantize::<Self>(words, scales, layout, dtype)
    }

    fn linear_quantized(
        x: Float,
        words: IntTensor<Self>,
        scales: Float,
        layout: QuantLayout,
    ) -> Float {
        match Fp8Products::new(&x, layout) {
            Some(products) => products.product(x, words, scales),
            None => fallback::dequantize::product::<Self>(x, words, scales, layout),
        }
    }

    fn floats_from_host(matrix: HostMatrix, like: Float) -> Float {
        if on_cuda(&like) {
            return offload::fetch(&matrix, &like);
        }
        fallback::host_matrix::floats::<Self>(&matrix, &like)
    }

    fn words_from_host(matrix: HostMatrix, like: Float) -> IntTensor<Self> {
        if on_cuda(&like) {
            return offload::fetch(&matrix, &like);
        }
        fallback::host_matrix::words::<Self>(&matrix, &like)
    }

    fn conv2d_forward(x: Float, weight: Float, options: ConvOptions<2>) -> Float {
        if on_cuda(&x) && x.dtype == weight.dtype && dlopen::cudnn_present() {
            return cudnn::forward(x, weight, &options);
        }
        Self::conv2d(x, weight, None, options)
    }

    fn attention_forward(q: Float, k: Float, v: Float, scale: f64) -> Float {
        match Attention::new(&q, &k, &v, scale) {
            Some(attention) => attention.forward([q, k, v], None),
            None => fallback::attention::forward::<Self>(q, k, v, scale),
        }
    }

    fn masked_softmax(scores: Float, keys: usize) -> Float {
        if row_kernels_take(&scores) {
            return softmax::masked_softmax(scores, keys);
        }
        fallback::attention::masked_softmax::<Self>(scores, keys)
    }

    fn group_norm_forward(
        x: Float,
        gamma: Float,
        beta: Float,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> (Float, Option<Float>) {
        if kernels_take(&x) && x.dtype == gamma.dtype {
            let norm = GroupNorm { groups, eps: eps as f32, silu };
            let (y, stats) = norm.forward(x, gamma, beta);
            return (y, Some(stats));
        }
        (fallback::norm::group_norm::<Self>(x, gamma, beta, groups, eps, silu), None)
    }

    fn layer_norm_forward(x: Float, gamma: Float, beta: Float, eps: f64) -> Float {
        if row_kernels_take(&x) && x.dtype == gamma.dtype {
            return layer_norm::layer_norm(x, gamma, beta, eps as f32);
        }
        fallback::norm::layer_norm::<Self>(x, gamma, beta, eps)
    }

    fn geglu(x: Float) -> Float {
        if kernels_take(&x) {
            return geglu::geglu(x, None);
        }
        fallback::geglu::forward::<Self>(x)
    }

    fn geglu_with_bias(x: Float, bias: Float) -> Float {
        if kernels_take(&x) && bias.dtype == x.dtype {
            return geglu::geglu(x, Some(bias));
        }
        Self::geglu(fallback::geglu::add_bias::<Self>(x, bias))
    }

    fn swiglu(x: Float) -> Float {
        if kernels_take(&x) {
            return swiglu::swiglu(x);
        }
        fallback::swiglu::forward::<Self>(x)
    }

    fn rms_norm_rotary(x: Float, gamma: Float, cos: Float, sin: Float, eps: f64) -> Float {
        match norm_rotary(&x, [&gamma, &cos, &sin], eps) {
            Some(norm) => norm.forward(x),
            None => fallback::rms_norm_rotary::forward::<Self>(x, [gamma, cos, sin], eps),
        }
    }

    fn parallel_attention(
        x: Float,
        gamma_q: Float,
        gamma_k: Float,
        cos: Float,
        sin: Float,
        heads: usize,
        eps: f64,
    ) -> Float {
        let (gammas, rotation) = ([gamma_q, gamma_k], [cos, sin]);
        let options = ParallelOptions { gammas, rotation, heads, eps };
        match ParallelAttention::new(&x, &options) {
            Some(layer) => layer.forward(x, false).0,
            None => fallback::parallel_attention::forward::<Self>(x, &options),
        }
    }

    fn add_bias(x: Float, bias: Float) -> Float {
        if kernels_take(&x) && bias.dtype == x.dtype {
            return bias_residual::bias_residual(x, bias, None);
        }
        fallback::bias_residual::add_bias::<Self>(x, bias)
    }

    fn add_bias_residual(x: Float, bias: Float, residual: Float) -> Float {
        if kernels_take(&x) && bias.dtype == x.dtype && residual.dtype == x.dtype {
            return bias_residual::bias_residual(x, bias, Some(residual));
        }
        Self::float_add(fallback::bias_residual::add_bias::<Self>(x, bias), residual)
    }

    fn concat_channels(a: Float, b: Float) -> Float {
        if kernels_take(&a) && a.dtype == b.dtype {
            return concat_channels::concat_channels(a, b);
        }
        Self::float_cat(vec![a, b], 1)
    }

    fn scale_columns(l: Float, gain: Float, floor: Float) -> Float {
        if kernels_take(&l) && gain.dtype == DType::F32 {
            return scale_columns::scale_columns(l, gain, floor);
        }
        fallback::scale_columns::forward::<Self>(l, gain, floor)
    }

    fn scale_columns_gradient(l: Float, dy: Float, gain: Float, floor: Float) -> Float {
        if kernels_take(&l) && gain.dtype == DType::F32 {
            return scale_columns::gradient(l, dy, gain, floor);
        }
        fallback::scale_columns::gradient::<Self>(l, dy, gain, floor)
    }
}

impl KernelGradients for Cube {
    fn linear_quantized_gradient(
        dy: Float,
        words: IntTensor<Self>,
        scales: Float,
        layout: QuantLayout,
    ) -> Float {
        match Fp8Products::new(&dy, layout) {
            Some(products) => products.gradient(dy, words, scales),
            None => fallback::dequantize::gradient::<Self>(dy, words, scales, layout),
        }
    }

    fn attention_saving(q: Float, k: Float, v: Float, scale: f64) -> (Float, Option<Float>) {
        let Some(attention) = Attention::new(&q, &k, &v, scale) else {
            return fallback::attention::forward_saving::<Self>(q, k, v, scale);
        };
        let logsumexp = attention.empty_logsumexp(&q);
        (attention.forward([q, k, v], Some(&logsumexp)), Some(logsumexp))
    }

    fn attention_gradient(
        [q, k, v]: [Float; 3],
        saved: Option<[Float; 2]>,
        grad: Float,
        scale: f64,
        wanted: [bool; 3],
    ) -> AttentionGradient<Self> {
        let Some([value, saved]) = saved else {
            return fallback::attention::gradient::<Self>([q, k, v], grad, None, scale, wanted);
        };
        // The same operands as in the forward pass, so `saved` is the log-sum-exp if the kernels take them.
        let Some(attention) = Attention::new(&q, &k, &v, scale) else {
            let weights = Some(saved);
            return fallback::attention::gradient::<Self>([q, k, v], grad, weights, scale, wanted);
        };
        let [dq, dk, dv] = attention.gradient([q, k, v], grad, value, &saved);
        (wanted[0].then_some(dq), wanted[1].then_some(dk), wanted[2].then_some(dv))
    }

    fn softmax_gradient(p: Float, dp: Float) -> Float {
        if row_kernels_take(&p) {
            return softmax::gradient(p, dp);
        }
        fallback::attention::softmax_gradient::<Self>(p, dp)
    }

    fn conv2d_input_gradient(
        grad: Float,
        weight: Float,
        size: [usize; 2],
        options: ConvOptions<2>,
    ) -> Float {
        if on_cuda(&grad) && grad.dtype == weight.dtype && dlopen::cudnn_present() {
            return cudnn::input_gradient(grad, weight, size, &options);
        }
        flipped_convolution(grad, weight, size, options)
    }

    fn group_norm_gradient(
        x: Float,
        dy: Float,
        gamma: Float,
        beta: Float,
        stats: Option<Float>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> Float {
        match stats {
            Some(stats) => {
                let norm = GroupNorm { groups, eps: eps as f32, silu };
                norm.gradient(x, dy, gamma, beta, stats)
            }
            None => {
                fallback::norm::group_norm_gradient::<Self>(x, dy, gamma, beta, groups, eps, silu)
            }
        }
    }

    fn layer_norm_gradient(x: Float, dy: Float, gamma: Float, eps: f64) -> Float {
        if row_kernels_take(&x) && x.dtype == gamma.dtype {
            return layer_norm::gradient(x, dy, gamma, eps as f32);
        }
        fallback::norm::layer_norm_gradient::<Self>(x, dy, gamma, eps)
    }

    fn geglu_gradient(x: Float, bias: Option<Float>, dy: Float) -> Float {
        if kernels_take(&x) && bias.as_ref().is_none_or(|bias| bias.dtype == x.dtype) {
            return geglu::gradient(x, bias, dy);
        }
        fallback::geglu::gradient::<Self>(x, bias, dy)
    }

    fn swiglu_gradient(x: Float, dy: Float) -> Float {
        if kernels_take(&x) {
            return swiglu::gradient(x, dy);
        }
        fallback::swiglu::gradient::<Self>(x, dy)
    }

    fn rms_norm_rotary_gradient(
        x: Float,
        dy: Float,
        [gamma, cos, sin]: [Float; 3],
        eps: f64,
    ) -> Float {
        match norm_rotary(&x, [&gamma, &cos, &sin], eps) {
            Some(norm) => norm.gradient(x, dy),
            None => fallback::rms_norm_rotary::gradient::<Self>(x, dy, [gamma, cos, sin], eps),
        }
    }

    fn parallel_attention_saving(
        x: Float,
        options: &ParallelOptions<Float>,
    ) -> (Float, Option<Float>) {
        match ParallelAttention::new(&x, options) {
            Some(layer) => layer.forward(x, true),
            None => fallback::parallel_attention::forward_saving::<Self>(x, options),
        }
    }

    fn parallel_attention_gradient(
        x: Float,
        value_and_gradient: [Float; 2],
        saved: Option<Float>,
        options: &ParallelOptions<Float>,
    ) -> Float {
        // The same operands as in the forward pass, so `saved` is the log-sum-exp if the kernels take them.
        match (ParallelAttention::new(&x, options), saved) {
            (Some(layer), Some(logsumexp)) => layer.gradient(x, value_and_gradient, &logsumexp),
            (_, saved) => {
                let values = value_and_gradient;
                fallback::parallel_attention::gradient::<Self>(x, values, saved, options)
            }
        }
    }

    fn upsample_nearest_gradient(dy: Float) -> Float {
        if kernels_take(&dy) {
            return upsample::gradient(dy);
        }
        fallback::upsample::gradient::<Self>(dy)
    }

    fn split_channels(dy: Float, channels: usize) -> (Float, Float) {
        if kernels_take(&dy) {
            return concat_channels::split_channels(dy, channels);
        }
        fallback::concat_channels::split_channels::<Self>(dy, channels)
    }
}

/// The kernels for the norm and the rotation of heads `[b, n, heads, d]`, if they take them.
fn norm_rotary(x: &Float, constants: [&Float; 3], eps: f64) -> Option<NormRotary> {
    let same = constants[0].dtype == x.dtype;
    same.then(|| NormRotary::new(x.shape().dims(), constants.map(Clone::clone), eps)).flatten()
}

/// The gradient of a convolution by its input without cuDNN: a forward convolution with the flipped kernel.
///
/// Only the kernel of the forward pass is compiled that way. A stride or a large padding takes a transposed
/// convolution.
fn flipped_convolution(
    dy: Float,
    weight: Float,
    size: [usize; 2],
    options: ConvOptions<2>,
) -> Float {
    let [_, _, kh, kw] = weight.shape().dims();
    let padding = options.padding_begin();
    if options.stride != [1, 1] || padding[0] >= kh || padding[1] >= kw {
        return fallback::conv::transposed::<Cube>(dy, weight, size, options);
    }
    let weight = Cube::float_flip(Cube::float_swap_dims(weight, 0, 1), &[2, 3]);
    let padding = [kh - 1 - padding[0], kw - 1 - padding[1]];
    Cube::conv2d_forward(dy, weight, ConvOptions::new([1, 1], padding, [1, 1], 1))
}
