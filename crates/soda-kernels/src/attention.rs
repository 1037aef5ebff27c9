//! Attention, forwards and backwards.
//!
//! ```text
//! P = softmax(s q k')      o = P v
//! dv = P' do      dP = do v'      dS = P ∘ (dP - rowsum(P ∘ dP))      dq = s dS k      dk = s dS' q
//! ```
//!
//! `P` has `heads · n · m` numbers, by far the largest thing in a network that attends over pixels. Where it
//! is small it is kept; where it is not, it is computed again in the backward pass, and both passes go
//! some heads at a time (the first half of FlashAttention, arXiv 2205.14135: recomputation; the
//! second, tiles that never leave the chip, is a backend's own, as `cpu/attend.rs` and `cuda/attention.cu`).

use std::ops::Range;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{DType, Slice, Tensor};

use crate::backend::{AttentionGradient, Kernels};
use crate::matmul::transposed;

/// As many numbers of `P` exist at a time, where one head has no more than that.
const AT_ONCE: usize = 1 << 27;

/// `softmax(q k' / sqrt(d)) v` for `q` `[b, heads, n, d]` and `k`, `v` `[b, heads, m, d]`: `[b, heads, n, d]`.
///
/// # Panics
/// Where sizes do not fit.
#[track_caller]
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [batch, heads, _, d] = q.dims();
    assert!(
        k.dims() == v.dims() && k.dims()[..2] == [batch, heads] && k.dims()[3] == d,
        "attention: q {:?}, k {:?} and v {:?} do not fit",
        q.dims(),
        k.dims(),
        v.dims()
    );
    let scale = (d as f64).powf(-0.5);
    Tensor::from_dispatch(Dispatch::attend(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        scale,
    ))
}

/// [`Kernels::attend`] of any backend.
pub(crate) fn forward<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    scale: f64,
) -> FloatTensor<B> {
    let keys = k.shape()[2];
    let [k, v] = [k, v].map(padded::<B>);
    let parts = Parts::of::<B>(&q, &k).map(|heads| {
        let [q, k, v] = [&q, &k, &v].map(|x| take::<B>(x, &heads));
        B::product(weights::<B>(q, k, scale, keys), v)
    });
    joined::<B>(parts.collect())
}

/// `P`, zero beyond the first `keys`, which are those that were not added by [`padded`].
fn weights<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    scale: f64,
    keys: usize,
) -> FloatTensor<B> {
    // Scaling q instead of the scores touches d numbers a query instead of m.
    let q = B::float_mul_scalar(q, scale.into());
    B::softmax_rows(B::product(q, transposed::<B>(k)), keys)
}

/// Keys or values `[b, heads, m, d]` with as many as the backend likes.
fn padded<B: Kernels>(x: FloatTensor<B>) -> FloatTensor<B> {
    let keys = x.shape()[2];
    let half = matches!(x.dtype(), DType::BF16 | DType::F16);
    filled::<B>(x, 2, if half { keys.next_multiple_of(B::HALF_KEYS) } else { keys })
}

/// [`Kernels::softmax_rows`] of any backend.
pub(crate) fn softmax<B: Kernels>(scores: FloatTensor<B>, keys: usize) -> FloatTensor<B> {
    let (last, all) = (scores.rank() - 1, scores.shape()[scores.rank() - 1]);
    if keys == all {
        return B::softmax(scores, last);
    }
    let mut own = vec![Slice::full(); last];
    own.push(Slice::from(0..keys));
    filled::<B>(B::softmax(B::float_slice(scores, &own), last), last, all)
}

/// `x` with zeros behind it on `axis` up to `length`.
fn filled<B: Kernels>(x: FloatTensor<B>, axis: usize, length: usize) -> FloatTensor<B> {
    let mut shape = x.shape();
    if shape[axis] == length {
        return x;
    }
    shape[axis] = length - shape[axis];
    let zeros = B::float_zeros(shape, &x.device(), x.dtype().into());
    B::float_cat(vec![x, zeros], axis)
}

/// [`Kernels::attend_keeping`] of any backend: `P`, where it is small.
pub(crate) fn keeping<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    scale: f64,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    if Parts::total::<B>(&q, &k) > B::SCORES_KEPT {
        return (B::attend(q, k, v, scale), None);
    }
    let keys = k.shape()[2];
    let weights = weights::<B>(q, padded::<B>(k), scale, keys);
    (B::product(weights.clone(), padded::<B>(v)), Some(weights))
}

#[derive(Debug)]
struct Attention;

#[derive(Clone, Debug)]
struct State<P> {
    qkv: [NodeId; 3],
    /// The value and what was kept beside it.
    kept: Option<[P; 2]>,
    scale: f64,
}

/// [`Kernels::attend`] on the tape.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    q: FloatTensor<Autodiff<B, C>>,
    k: FloatTensor<Autodiff<B, C>>,
    v: FloatTensor<Autodiff<B, C>>,
    scale: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [q.node(), k.node(), v.node()];
    match Backward::<B, 3>::prepare::<C>(Attention, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let qkv = [prep.checkpoint(&q), prep.checkpoint(&k), prep.checkpoint(&v)];
            let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
            let (out, kept) = B::attend_keeping(q, k, v, scale);
            let kept = kept.map(|kept| [out.clone(), kept]);
            prep.finish(State { qkv, kept, scale }, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::attend(
            q.into_primitive(),
            k.into_primitive(),
            v.into_primitive(),
            scale,
        )),
    }
}

impl<B: Kernels> Backward<B, 3> for Attention {
    type State = State<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let State { qkv, kept, scale } = ops.state;
        let [q, k, v] = qkv.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (dq, dk, dv) = match kept {
            Some([value, kept]) => {
                B::attend_gradient_keeping(q, k, v, value, kept, grad, scale, wanted)
            }
            None => B::attend_gradient(q, k, v, grad, scale, wanted),
        };
        for (node, found) in ops.parents.into_iter().zip([dq, dk, dv]) {
            if let (Some(node), Some(found)) = (node, found) {
                grads.register::<B>(node.id, found);
            }
        }
    }
}

/// [`Kernels::attend_gradient`] of any backend.
pub(crate) fn gradient<B: Kernels>(
    [q, k, v]: [FloatTensor<B>; 3],
    grad: FloatTensor<B>,
    kept: Option<FloatTensor<B>>,
    scale: f64,
    wanted: [bool; 3],
) -> AttentionGradient<B> {
    let keys = k.shape()[2];
    let [k, v] = [k, v].map(padded::<B>);
    let mut found = [const { Vec::new() }; 3];
    for heads in Parts::of::<B>(&q, &k) {
        let [q, k, v, grad] = [&q, &k, &v, &grad].map(|x| take::<B>(x, &heads));
        let p = match &kept {
            Some(p) => take::<B>(p, &heads),
            None => weights::<B>(q.clone(), k.clone(), scale, keys),
        };
        if wanted[2] {
            found[2].push(B::product(transposed::<B>(p.clone()), grad.clone()));
        }
        if wanted[0] || wanted[1] {
            let dp = B::product(grad, transposed::<B>(v));
            let ds = B::softmax_rows_gradient(p, dp);
            let scaled = |x| B::float_mul_scalar(x, scale.into());
            if wanted[0] {
                found[0].push(scaled(B::product(ds.clone(), k)));
            }
            if wanted[1] {
                found[1].push(scaled(B::product(transposed::<B>(ds), q)));
            }
        }
    }
    let [dq, dk, dv] = found.map(|parts| (!parts.is_empty()).then(|| joined::<B>(parts)));
    let own = |x: FloatTensor<B>| match x.shape()[2] == keys {
        true => x,
        false => B::float_slice(x, &[Slice::full(), Slice::full(), Slice::from(0..keys)]),
    };
    (dq, dk.map(own), dv.map(own))
}

/// The heads of an attention, some at a time.
struct Parts {
    next: usize,
    heads: usize,
    step: usize,
}

impl Parts {
    fn total<B: Kernels>(q: &FloatTensor<B>, k: &FloatTensor<B>) -> usize {
        let ([batch, heads, n, _], [_, _, m, _]) = (q.shape().dims(), k.shape().dims());
        batch * heads * n * m
    }

    fn of<B: Kernels>(q: &FloatTensor<B>, k: &FloatTensor<B>) -> Self {
        let [_, heads, _, _] = q.shape().dims::<4>();
        let each = Self::total::<B>(q, k) / heads.max(1);
        Self { next: 0, heads, step: (AT_ONCE / each.max(1)).clamp(1, heads.max(1)) }
    }
}

impl Iterator for Parts {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let part = self.next..(self.next + self.step).min(self.heads);
        self.next = part.end;
        (!part.is_empty()).then_some(part)
    }
}

/// Some heads of `[b, heads, ..]`; all of them are the tensor itself.
fn take<B: Kernels>(x: &FloatTensor<B>, heads: &Range<usize>) -> FloatTensor<B> {
    let [_, all, _, _] = x.shape().dims::<4>();
    if *heads == (0..all) {
        return x.clone();
    }
    B::float_slice(x.clone(), &[Slice::full(), Slice::from(heads.clone())])
}

fn joined<B: Kernels>(mut parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    match parts.len() {
        1 => parts.remove(0),
        _ => B::float_cat(parts, 1),
    }
}
