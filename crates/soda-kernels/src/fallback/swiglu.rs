//! SwiGLU and its gradient.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::geglu::halves;

/// `Kernels::swiglu`.
pub(crate) fn forward<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [a, b] = halves::<B>(&x);
    let open = B::float_mul(a.clone(), B::sigmoid(a));
    B::float_mul(open, b)
}

/// `KernelGradients::swiglu_gradient`.
pub(crate) fn gradient<B: Backend>(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    let [a, b] = halves::<B>(&x);
    // s (1 + a (1 - s)) = s + y (1 - s) with y = a s
    let s = B::sigmoid(a.clone());
    let y = B::float_mul(a, s.clone());
    let slope = B::float_add(s.clone(), B::float_sub(y.clone(), B::float_mul(y.clone(), s)));
    let da = B::float_mul(B::float_mul(dy.clone(), b), slope);
    let db = B::float_mul(dy, y);
    B::float_cat(vec![da, db], x.rank() - 1)
}
