//! [`Kernels`] for the autodiff backend: every operation records the tape node of its file in `ops/`.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend};
use burn::tensor::FloatDType;
use burn::tensor::ops::ConvOptions;

use crate::backend::{KernelGradients, Kernels};
use crate::fallback::parallel_attention::ParallelOptions;
use crate::host_matrix::HostMatrix;
use crate::ops::linear::{low_rank, stored};
use crate::ops::{
    attention, bias_residual, concat_channels, conv, geglu, matmul, norm, parallel_attention,
    rms_norm_rotary, scale_columns, swiglu, upsample,
};
use crate::quantize::QuantLayout;

impl<B: KernelGradients, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        matmul::record::<B, C>(lhs, rhs)
    }

    fn linear_low_rank(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        low_rank::record_product::<B, C>(x, w, a, b)
    }

    fn add_low_rank(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        low_rank::record_sum::<B, C>(y, x, a, b)
    }

    fn dequantize_matrix(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: QuantLayout,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::dequantize_matrix(
            words,
            scales.into_primitive(),
            layout,
            dtype,
        ))
    }

    fn linear_quantized(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: QuantLayout,
    ) -> FloatTensor<Self> {
        stored::record_quantized::<B, C>(x, words, scales, layout)
    }

    fn matrix_from_host(
        matrix: HostMatrix,
        scales: FloatTensor<Self>,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::matrix_from_host(
            matrix,
            scales.into_primitive(),
            dtype,
        ))
    }

    fn linear_from_host(
        x: FloatTensor<Self>,
        matrix: HostMatrix,
        scales: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        stored::record_from_host::<B, C>(x, matrix, scales)
    }

    fn conv2d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        conv::record::<B, C>(x, weight, options)
    }

    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        attention::record::<B, C>(q, k, v, scale)
    }

    fn group_norm_forward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        // The tape node holds the statistics.
        (norm::record_group_norm::<B, C>(x, gamma, beta, groups, eps, silu), None)
    }

    fn layer_norm_forward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::record_layer_norm::<B, C>(x, gamma, beta, eps)
    }

    fn geglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        geglu::record::<B, C>(x, None)
    }

    fn geglu_with_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        geglu::record::<B, C>(x, Some(bias))
    }

    fn swiglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::record::<B, C>(x)
    }

    fn rms_norm_rotary(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        rms_norm_rotary::record::<B, C>(x, gamma, cos, sin, eps)
    }

    fn parallel_attention(
        x: FloatTensor<Self>,
        gamma_q: FloatTensor<Self>,
        gamma_k: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: usize,
        eps: f64,
    ) -> FloatTensor<Self> {
        let gammas = [gamma_q, gamma_k].map(|gamma| gamma.into_primitive());
        let rotation = [cos, sin].map(|table| table.into_primitive());
        parallel_attention::record::<B, C>(x, ParallelOptions { gammas, rotation, heads, eps })
    }

    fn add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        bias_residual::record_bias::<B, C>(x, bias)
    }

    fn add_bias_residual(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        bias_residual::record_bias_residual::<B, C>(x, bias, residual)
    }

    fn concat_channels(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        concat_channels::record::<B, C>(a, b)
    }

    fn scale_columns(
        l: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        floor: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        scale_columns::record::<B, C>(l, gain, floor)
    }

    fn upsample_nearest(x: FloatTensor<Self>, height: usize, width: usize) -> FloatTensor<Self> {
        upsample::record::<B, C>(x, height, width)
    }
}
