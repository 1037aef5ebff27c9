//! The operations that fallbacks are composed of, for every backend: its own kernels, or the fallbacks again.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::FloatDType;

use crate::backend::{KernelGradients, Kernels};
use crate::fallback::steps::{BackwardSteps, ForwardSteps};
use crate::quantize::QuantLayout;

impl<B: Kernels> ForwardSteps for B {
    const KEY_MULTIPLE: usize = B::HALF_KEY_MULTIPLE;

    fn product(lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
        <B as Kernels>::matmul(lhs, rhs)
    }

    fn product_sum(
        lhs: FloatTensor<B>,
        rhs: FloatTensor<B>,
        addend: FloatTensor<B>,
    ) -> FloatTensor<B> {
        B::addmm(lhs, rhs, addend)
    }

    fn dequantized(
        words: IntTensor<B>,
        scales: FloatTensor<B>,
        layout: QuantLayout,
        dtype: FloatDType,
    ) -> FloatTensor<B> {
        B::dequantize_matrix(words, scales, layout, dtype)
    }

    fn cast_both(
        a: FloatTensor<B>,
        b: FloatTensor<B>,
        dtype: FloatDType,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        B::cast_pair(a, b, dtype)
    }

    fn unsaved_attention(
        q: FloatTensor<B>,
        k: FloatTensor<B>,
        v: FloatTensor<B>,
        scale: f64,
    ) -> FloatTensor<B> {
        B::attention_forward(q, k, v, scale)
    }

    fn rotated(
        x: FloatTensor<B>,
        [gamma, cos, sin]: [FloatTensor<B>; 3],
        eps: f64,
    ) -> FloatTensor<B> {
        B::rms_norm_rotary(x, gamma, cos, sin, eps)
    }

    fn gated(x: FloatTensor<B>) -> FloatTensor<B> {
        B::swiglu(x)
    }

    fn attention_weights(scores: FloatTensor<B>, keys: usize) -> FloatTensor<B> {
        B::masked_softmax(scores, keys)
    }
}

impl<B: KernelGradients> BackwardSteps for B {
    const MAX_SAVED: usize = B::MAX_SAVED_SCORES;

    fn attention_that_saves(
        [q, k, v]: [FloatTensor<B>; 3],
        scale: f64,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        B::attention_saving(q, k, v, scale)
    }

    fn attention_gradients(
        qkv: [FloatTensor<B>; 3],
        saved: Option<[FloatTensor<B>; 2]>,
        grad: FloatTensor<B>,
        scale: f64,
    ) -> [FloatTensor<B>; 3] {
        match B::attention_gradient(qkv, saved, grad, scale, [true; 3]) {
            (Some(dq), Some(dk), Some(dv)) => [dq, dk, dv],
            _ => unreachable!("all three gradients are wanted"),
        }
    }

    fn rotated_gradient(
        x: FloatTensor<B>,
        dy: FloatTensor<B>,
        constants: [FloatTensor<B>; 3],
        eps: f64,
    ) -> FloatTensor<B> {
        B::rms_norm_rotary_gradient(x, dy, constants, eps)
    }

    fn gated_gradient(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
        B::swiglu_gradient(x, dy)
    }

    fn attention_weights_gradient(p: FloatTensor<B>, dp: FloatTensor<B>) -> FloatTensor<B> {
        B::softmax_gradient(p, dp)
    }

    fn plain_geglu_gradient(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
        B::geglu_gradient(x, None, dy)
    }
}
