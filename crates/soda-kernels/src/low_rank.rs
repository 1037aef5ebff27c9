//! A linear layer with a change of low rank beside it, as LoRA trains it: one operation.
//!
//! ```text
//! h = x A      y = x W + h B          g = dy B'      dx = dy W' + g A'      dA = x' g      dB = h' dy
//! ```
//!
//! Of single operations the two products on each way go to memory apart and are added by a third, for which a large map is read and
//! written twice more than need be; here the second is added where the first lies. The gradients by `A` and `B` are summed
//! in float32 and stay that, where a product of half precision would round them to it first.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{DType, FloatDType, Tensor};

use crate::backend::Kernels;
use crate::matmul::transposed;

/// `x w + (x a) b` for rows `x` `[rows, in]`, a weight `[in, out]` of their type, and factors `[in, r]` and `[r, out]`, which are
/// rounded to that type.
///
/// # Panics
/// Where sizes do not fit.
#[track_caller]
pub fn linear_low_rank(x: Tensor<2>, w: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let ([_, input], [_, output], rank) = (x.dims(), w.dims(), a.dims()[1]);
    let sizes = [w.dims()[0], a.dims()[0], b.dims()[0], b.dims()[1]];
    assert_eq!(sizes, [input, input, rank, output], "linear_low_rank: sizes");
    let [x, w, a, b] = [x, w, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::low_rank(x, w, a, b))
}

#[derive(Debug)]
struct LowRank;

/// What the gradient is made of: arguments, the factors as they were multiplied with their own types, and `h`.
#[derive(Clone, Debug)]
struct Kept<T> {
    x: Option<NodeId>,
    w: Option<NodeId>,
    factors: [T; 2],
    types: [DType; 2],
    h: Option<T>,
}

/// A value and what it came by: the factors as they were multiplied, and `h`.
type Made<B> = (FloatTensor<B>, [FloatTensor<B>; 2], FloatTensor<B>);

/// [`Kernels::low_rank`] on the tape.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    w: FloatTensor<Autodiff<B, C>>,
    a: FloatTensor<Autodiff<B, C>>,
    b: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node(), w.node(), a.node(), b.node()];
    match Backward::<B, 4>::prepare::<C>(LowRank, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let kept = (w.is_tracked() || a.is_tracked()).then(|| prep.checkpoint(&x));
            let (by_x, by_b) = (x.is_tracked(), b.is_tracked());
            let w_id = by_x.then(|| prep.checkpoint(&w));
            let types = [a.dtype(), b.dtype()];
            let [x, w, a, b] = [x, w, a, b].map(|tensor| tensor.into_primitive());
            let (y, factors, h) = made::<B>(x, w, a, b);
            prep.finish(Kept { x: kept, w: w_id, factors, types, h: by_b.then_some(h) }, y)
        }
        OpsKind::UnTracked(prep) => {
            let [x, w, a, b] = [x, w, a, b].map(|tensor| tensor.into_primitive());
            prep.finish(made::<B>(x, w, a, b).0)
        }
    }
}

impl<B: Kernels> Backward<B, 4> for LowRank {
    type State = Kept<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let Kept { x, w, factors: [a, b], types, h } = ops.state;
        let [by_x, by_w, by_a, by_b] = ops.parents.map(|node| node.map(|node| node.id));
        let mut kept = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let (x, w) = (x.map(&mut kept), w.map(&mut kept));
        if let (Some(id), Some(h)) = (by_b, h) {
            let db = B::wide_product(transposed::<B>(h), dy.clone());
            grads.register::<B>(id, cast::<B>(db, types[1]));
        }
        if let (Some(id), Some(x)) = (by_w, &x) {
            grads.register::<B>(id, B::product(transposed::<B>(x.clone()), dy.clone()));
        }
        if by_x.is_none() && by_a.is_none() {
            return;
        }
        let g = B::product(dy.clone(), transposed::<B>(b));
        if let (Some(id), Some(x)) = (by_a, x) {
            let da = B::wide_product(transposed::<B>(x), g.clone());
            grads.register::<B>(id, cast::<B>(da, types[0]));
        }
        if let (Some(id), Some(w)) = (by_x, w) {
            let dx = B::product(dy, transposed::<B>(w));
            grads.register::<B>(id, B::product_onto(g, transposed::<B>(a), dx));
        }
    }
}

/// The value.
pub(crate) fn forward<B: Kernels>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
) -> FloatTensor<B> {
    made::<B>(x, w, a, b).0
}

fn made<B: Kernels>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
) -> Made<B> {
    let (a, b) = B::both_cast(a, b, x.dtype().into());
    let h = B::product(x.clone(), a.clone());
    let y = B::product_onto(h.clone(), b.clone(), B::product(x, w));
    (y, [a, b], h)
}

/// Of two casts.
pub(crate) fn both_cast<B: Kernels>(
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    dtype: FloatDType,
) -> (FloatTensor<B>, FloatTensor<B>) {
    (cast::<B>(a, dtype.into()), cast::<B>(b, dtype.into()))
}

/// Of a product and a cast.
pub(crate) fn wide_product<B: Kernels>(lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
    let product = B::product(lhs, rhs);
    match product.dtype() {
        DType::F16 | DType::BF16 => B::float_cast(product, FloatDType::F32),
        _ => product,
    }
}

fn cast<B: Kernels>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, dtype.into()) }
}
