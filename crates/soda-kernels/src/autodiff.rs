//! [`Kernels`] on the tape: which gradient belongs to which operation.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::tensor::ops::ConvOptions;

use crate::backend::Kernels;
use crate::{attention, columns, conv, geglu, join, low_rank, matmul, norm, plus};

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        matmul::tracked::<B, C>(lhs, rhs)
    }

    fn low_rank(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        low_rank::tracked::<B, C>(x, w, a, b)
    }

    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        conv::tracked::<B, C>(x, weight, options)
    }

    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        attention::tracked::<B, C>(q, k, v, scale)
    }

    fn normalize_groups(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        // What is kept is on the tape.
        (norm::groups_tracked::<B, C>(x, gamma, beta, groups, eps, act), None)
    }

    fn normalize_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::rows_tracked::<B, C>(x, gamma, beta, eps)
    }

    fn gate(x: FloatTensor<Self>) -> FloatTensor<Self> {
        geglu::tracked::<B, C>(x)
    }

    fn join(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        join::tracked::<B, C>(a, b)
    }

    fn gate_biased(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        geglu::biased_tracked::<B, C>(x, bias)
    }

    fn add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        plus::tracked::<B, C>(x, bias)
    }

    fn add_bias_to(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rest: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plus::tracked_to::<B, C>(x, bias, rest)
    }

    fn columns(
        l: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        least: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        columns::tracked::<B, C>(l, gain, least)
    }
}
