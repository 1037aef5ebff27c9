//! Attention as matrix products and a softmax, some heads at a time.
//!
//! At most [`MAX_SCORES_AT_ONCE`] attention weights exist at a time. In half precision the keys are padded
//! with zeros to a multiple that the backend prefers.

use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, Slice};

use super::steps::{BackwardSteps, ForwardSteps};
use super::transposed;

/// The gradients of attention by q, k and v, each of which is absent if it was not wanted.
pub type AttentionGradient<B> =
    (Option<FloatTensor<B>>, Option<FloatTensor<B>>, Option<FloatTensor<B>>);

/// The largest number of attention weights in memory at once, unless one head alone has more.
const MAX_SCORES_AT_ONCE: usize = 1 << 27;

/// `Kernels::attention_forward`.
pub(crate) fn forward<B: ForwardSteps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    scale: f64,
) -> FloatTensor<B> {
    let keys = k.shape()[2];
    let [k, v] = [k, v].map(pad_keys::<B>);
    let parts = HeadChunks::of::<B>(&q, &k).map(|heads| {
        let [q, k, v] = [&q, &k, &v].map(|x| slice_heads::<B>(x, &heads));
        B::product(weights::<B>(q, k, scale, keys), v)
    });
    concat_heads::<B>(parts.collect())
}

/// `KernelGradients::attention_saving`: saves the attention weights if they are few.
pub(crate) fn forward_saving<B: BackwardSteps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    scale: f64,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    if HeadChunks::total::<B>(&q, &k) > B::MAX_SAVED {
        return (B::unsaved_attention(q, k, v, scale), None);
    }
    let keys = k.shape()[2];
    let weights = weights::<B>(q, pad_keys::<B>(k), scale, keys);
    (B::product(weights.clone(), pad_keys::<B>(v)), Some(weights))
}

/// `KernelGradients::attention_gradient` with the saved attention weights `saved`, if there are any.
pub(crate) fn gradient<B: BackwardSteps>(
    [q, k, v]: [FloatTensor<B>; 3],
    grad: FloatTensor<B>,
    saved: Option<FloatTensor<B>>,
    scale: f64,
    wanted: [bool; 3],
) -> AttentionGradient<B> {
    let keys = k.shape()[2];
    let [k, v] = [k, v].map(pad_keys::<B>);
    let mut found = [const { Vec::new() }; 3];
    for heads in HeadChunks::of::<B>(&q, &k) {
        let [q, k, v, grad] = [&q, &k, &v, &grad].map(|x| slice_heads::<B>(x, &heads));
        let p = match &saved {
            Some(p) => slice_heads::<B>(p, &heads),
            None => weights::<B>(q.clone(), k.clone(), scale, keys),
        };
        if wanted[2] {
            found[2].push(B::product(transposed::<B>(p.clone()), grad.clone()));
        }
        if wanted[0] || wanted[1] {
            let dp = B::product(grad, transposed::<B>(v));
            let ds = B::attention_weights_gradient(p, dp);
            let scaled = |x| B::float_mul_scalar(x, scale.into());
            if wanted[0] {
                found[0].push(scaled(B::product(ds.clone(), k)));
            }
            if wanted[1] {
                found[1].push(scaled(B::product(transposed::<B>(ds), q)));
            }
        }
    }
    let [dq, dk, dv] = found.map(|parts| (!parts.is_empty()).then(|| concat_heads::<B>(parts)));
    let unpad_keys = |x: FloatTensor<B>| match x.shape()[2] == keys {
        true => x,
        false => B::float_slice(x, &[Slice::full(), Slice::full(), Slice::from(0..keys)]),
    };
    (dq, dk.map(unpad_keys), dv.map(unpad_keys))
}

/// `Kernels::masked_softmax`.
pub(crate) fn masked_softmax<B: Backend>(scores: FloatTensor<B>, keys: usize) -> FloatTensor<B> {
    let (last, all) = (scores.rank() - 1, scores.shape()[scores.rank() - 1]);
    if keys == all {
        return B::softmax(scores, last);
    }
    let mut unmasked = vec![Slice::full(); last];
    unmasked.push(Slice::from(0..keys));
    zero_pad::<B>(B::softmax(B::float_slice(scores, &unmasked), last), last, all)
}

/// `KernelGradients::softmax_gradient`.
pub(crate) fn softmax_gradient<B: Backend>(
    p: FloatTensor<B>,
    dp: FloatTensor<B>,
) -> FloatTensor<B> {
    let last = p.rank() - 1;
    let mean = B::float_sum_dim(B::float_mul(p.clone(), dp.clone()), last);
    B::float_mul(p, B::float_sub(dp, mean))
}

/// The attention weights `softmax(scale q k')`, zero beyond the first `keys` keys, which are not padding.
fn weights<B: ForwardSteps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    scale: f64,
    keys: usize,
) -> FloatTensor<B> {
    // Scaling q instead of the scores touches d numbers a query instead of m.
    let q = B::float_mul_scalar(q, scale.into());
    B::attention_weights(B::product(q, transposed::<B>(k)), keys)
}

/// Pads keys or values `[b, heads, m, d]` in half precision to the multiple of keys that the backend prefers.
fn pad_keys<B: ForwardSteps>(x: FloatTensor<B>) -> FloatTensor<B> {
    let keys = x.shape()[2];
    let half = matches!(x.dtype(), DType::BF16 | DType::F16);
    zero_pad::<B>(x, 2, if half { keys.next_multiple_of(B::KEY_MULTIPLE) } else { keys })
}

/// Appends zeros along `axis` up to `length` entries.
fn zero_pad<B: Backend>(x: FloatTensor<B>, axis: usize, length: usize) -> FloatTensor<B> {
    let mut shape = x.shape();
    if shape[axis] == length {
        return x;
    }
    shape[axis] = length - shape[axis];
    let zeros = B::float_zeros(shape, &x.device(), x.dtype().into());
    B::float_cat(vec![x, zeros], axis)
}

/// Ranges of heads whose attention weights fit in memory together.
struct HeadChunks {
    next: usize,
    heads: usize,
    step: usize,
}

impl HeadChunks {
    /// The number of attention weights of all heads.
    fn total<B: Backend>(q: &FloatTensor<B>, k: &FloatTensor<B>) -> usize {
        let ([batch, heads, n, _], [_, _, m, _]) = (q.shape().dims(), k.shape().dims());
        batch * heads * n * m
    }

    fn of<B: Backend>(q: &FloatTensor<B>, k: &FloatTensor<B>) -> Self {
        let [_, heads, _, _] = q.shape().dims::<4>();
        let per_head = Self::total::<B>(q, k) / heads.max(1);
        let step = (MAX_SCORES_AT_ONCE / per_head.max(1)).clamp(1, heads.max(1));
        Self { next: 0, heads, step }
    }
}

impl Iterator for HeadChunks {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let chunk = self.next..(self.next + self.step).min(self.heads);
        self.next = chunk.end;
        (!chunk.is_empty()).then_some(chunk)
    }
}

/// A range of heads of `[b, heads, ..]`. The range of all heads returns the tensor itself.
fn slice_heads<B: Backend>(x: &FloatTensor<B>, heads: &Range<usize>) -> FloatTensor<B> {
    let [_, all, _, _] = x.shape().dims::<4>();
    if *heads == (0..all) {
        return x.clone();
    }
    B::float_slice(x.clone(), &[Slice::full(), Slice::from(heads.clone())])
}

/// Concatenates chunks of heads.
fn concat_heads<B: Backend>(mut parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    match parts.len() {
        1 => parts.remove(0),
        _ => B::float_cat(parts, 1),
    }
}
