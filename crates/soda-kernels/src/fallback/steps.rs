//! The operations that fallbacks are composed of and that a backend may implement better than burn does.
//!
//! `backend_steps.rs` implements both traits for every backend, so that a fallback needs no import of it.

use burn::backend::Backend;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::FloatDType;

use crate::quantize::QuantLayout;

/// Operations of the forward pass.
pub(crate) trait ForwardSteps: Backend {
    /// Attention in half precision pads the keys with zeros to a multiple of this number.
    const KEY_MULTIPLE: usize;

    /// The matrix product `lhs rhs`.
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The sum `lhs rhs + addend`.
    fn product_sum(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        addend: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The quantized matrix `[rows, columns]` in `dtype`.
    fn dequantized(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: QuantLayout,
        dtype: FloatDType,
    ) -> FloatTensor<Self>;

    /// Casts two tensors to `dtype`.
    fn cast_both(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The attention `softmax(scale q k') v` of heads. Saves nothing for a gradient.
    fn unsaved_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self>;

    /// The norm of heads and their rotation, by scales, cosines and sines.
    fn rotated(
        x: FloatTensor<Self>,
        constants: [FloatTensor<Self>; 3],
        eps: f64,
    ) -> FloatTensor<Self>;

    /// SwiGLU of the halves of the last axis.
    fn gated(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The softmax over the last axis of `scores`, zero beyond the first `keys` entries.
    fn attention_weights(scores: FloatTensor<Self>, keys: usize) -> FloatTensor<Self>;
}

/// Operations of the backward pass.
pub(crate) trait BackwardSteps: ForwardSteps {
    /// The largest number of attention weights that the forward pass saves.
    const MAX_SAVED: usize;

    /// Attention, and the tensor that its gradient is quicker with, if there is one.
    fn attention_that_saves(
        qkv: [FloatTensor<Self>; 3],
        scale: f64,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// The gradients of attention by queries, keys and values, from its value and the saved tensor.
    fn attention_gradients(
        qkv: [FloatTensor<Self>; 3],
        saved: Option<[FloatTensor<Self>; 2]>,
        grad: FloatTensor<Self>,
        scale: f64,
    ) -> [FloatTensor<Self>; 3];

    /// The gradient of [`ForwardSteps::rotated`] by the heads.
    fn rotated_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        constants: [FloatTensor<Self>; 3],
        eps: f64,
    ) -> FloatTensor<Self>;

    /// The gradient of [`ForwardSteps::gated`].
    fn gated_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of softmax from its value `p` and the gradient `dp` of that value.
    fn attention_weights_gradient(p: FloatTensor<Self>, dp: FloatTensor<Self>)
    -> FloatTensor<Self>;

    /// The gradient of GEGLU without a bias by its input.
    fn plain_geglu_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
}
