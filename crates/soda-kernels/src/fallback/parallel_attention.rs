//! Attention and a gated MLP side by side, as operations on the parts of their common input.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::columns;
use super::steps::{BackwardSteps, ForwardSteps};

/// What [`Kernels::parallel_attention`](crate::Kernels::parallel_attention) needs beside its input.
#[derive(Debug, Clone)]
pub struct ParallelOptions<P> {
    /// The scales of the norms of queries and keys, `[d]`.
    pub gammas: [P; 2],
    /// Cosines and sines of the rotations, `[b or 1, n, 1, d]` in float32.
    pub rotation: [P; 2],
    /// The number of heads.
    pub heads: usize,
    /// The epsilon of both norms.
    pub eps: f64,
}

impl<P: TensorMetadata> ParallelOptions<P> {
    /// The channels of a head.
    pub(crate) fn width(&self) -> usize {
        self.gammas[0].shape()[0]
    }

    /// The factor of the scores.
    pub(crate) fn scale(&self) -> f64 {
        (self.width() as f64).powf(-0.5)
    }

    /// The constants of the norm of queries (0) or keys (1).
    fn norm(&self, index: usize) -> [P; 3] {
        let [cos, sin] = self.rotation.clone();
        [self.gammas[index].clone(), cos, sin]
    }
}

/// `Kernels::parallel_attention`.
pub(crate) fn forward<B: ForwardSteps>(
    x: FloatTensor<B>,
    options: &ParallelOptions<FloatTensor<B>>,
) -> FloatTensor<B> {
    let [q, k, v] = rotated::<B>(&x, options);
    output::<B>(&x, B::unsaved_attention(q, k, v, options.scale()), options)
}

/// `KernelGradients::parallel_attention_saving`.
pub(crate) fn forward_saving<B: BackwardSteps>(
    x: FloatTensor<B>,
    options: &ParallelOptions<FloatTensor<B>>,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let (value, saved) = B::attention_that_saves(rotated::<B>(&x, options), options.scale());
    (output::<B>(&x, value, options), saved)
}

/// `KernelGradients::parallel_attention_gradient`.
pub(crate) fn gradient<B: BackwardSteps>(
    x: FloatTensor<B>,
    [y, dy]: [FloatTensor<B>; 2],
    saved: Option<FloatTensor<B>>,
    options: &ParallelOptions<FloatTensor<B>>,
) -> FloatTensor<B> {
    let (last, heads) = (x.rank() - 1, options.heads);
    let channels = heads * options.width();
    let (all, out) = (x.shape()[last], y.shape()[last]);
    let heads_of = |x: &FloatTensor<B>, first| heads_of::<B>(x, first, options);
    let across = |x| B::float_swap_dims(x, 1, 2);
    let saved = saved.map(|saved| [across(heads_of(&y, 0)), saved]);
    let qkv = rotated::<B>(&x, options);
    let grads = B::attention_gradients(qkv, saved, across(heads_of(&dy, 0)), options.scale());
    let [dq, dk, dv] = grads.map(across);
    let turned_back = |index: usize, dy| {
        let part = heads_of(&x, index * channels);
        B::rotated_gradient(part, dy, options.norm(index), options.eps)
    };
    let parts = [turned_back(0, dq), turned_back(1, dk), dv];
    let mut parts = parts.map(|part| tokens_of::<B>(part)).to_vec();
    let inner = columns::<B>(&x, 3 * channels..all);
    parts.push(B::gated_gradient(inner, columns::<B>(&dy, channels..out)));
    B::float_cat(parts, last)
}

/// Queries, keys and values `[b, heads, n, d]`, normalized and rotated.
fn rotated<B: ForwardSteps>(
    x: &FloatTensor<B>,
    options: &ParallelOptions<FloatTensor<B>>,
) -> [FloatTensor<B>; 3] {
    let channels = options.heads * options.width();
    let parts = [0, 1, 2].map(|index| {
        let part = heads_of::<B>(x, index * channels, options);
        match index {
            2 => part,
            _ => B::rotated(part, options.norm(index), options.eps),
        }
    });
    parts.map(|part| B::float_swap_dims(part, 1, 2))
}

/// The values of attention `[b, heads, n, d]` and the gated MLP, `[b, n, c + i]`.
fn output<B: ForwardSteps>(
    x: &FloatTensor<B>,
    value: FloatTensor<B>,
    options: &ParallelOptions<FloatTensor<B>>,
) -> FloatTensor<B> {
    let last = x.rank() - 1;
    let inner = columns::<B>(x, 3 * options.heads * options.width()..x.shape()[last]);
    let attended = tokens_of::<B>(B::float_swap_dims(value, 1, 2));
    B::float_cat(vec![attended, B::gated(inner)], last)
}

/// The heads `[b, n, heads, d]` in the channels from `first` on.
fn heads_of<B: ForwardSteps>(
    x: &FloatTensor<B>,
    first: usize,
    options: &ParallelOptions<FloatTensor<B>>,
) -> FloatTensor<B> {
    let ([batch, tokens, _], width) = (x.shape().dims(), options.width());
    let part = columns::<B>(x, first..first + options.heads * width);
    B::float_reshape(part, [batch, tokens, options.heads, width].into())
}

/// The tokens `[b, n, c]` of heads `[b, n, heads, d]`.
fn tokens_of<B: ForwardSteps>(heads: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, tokens, count, width] = heads.shape().dims();
    B::float_reshape(heads, [batch, tokens, count * width].into())
}
