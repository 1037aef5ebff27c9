//! A linear layer with a low-rank update, as LoRA trains it, as one operation.
//!
//! ```text
//! h = x A      y = x W + h B          g = dy B'      dx = dy W' + g A'      dA = x' g      dB = h' dy
//! ```
//!
//! Both products of either pass are accumulated in one buffer, instead of written apart and added by a third
//! operation. The gradients by `A` and `B` are summed in float32 and not rounded to half precision.
//!
//! A base that is no matrix of floats has an operation of its own. The update is added to its result in
//! place, and the gradients by `x` of both are added by the tape.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{DType, Tensor};

use crate::backend::Kernels;
use crate::fallback::low_rank::{self, LowRank};
use crate::fallback::{cast, transposed};

/// The LoRA layer `x w + (x a) b` for `x` `[rows, in]`, `w` `[in, out]`, `a` `[in, r]` and `b` `[r, out]`.
///
/// `x` and `w` have one dtype. The factors are rounded to it; their gradients have the dtypes of the factors.
/// See Hu et al., "LoRA", arXiv 2106.09685.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn linear_low_rank(x: Tensor<2>, w: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let ([_, input], [_, output], rank) = (x.dims(), w.dims(), a.dims()[1]);
    let sizes = [w.dims()[0], a.dims()[0], b.dims()[0], b.dims()[1]];
    assert_eq!(sizes, [input, input, rank, output], "linear_low_rank: the shapes do not fit");
    let [x, w, a, b] = [x, w, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::linear_low_rank(x, w, a, b))
}

/// The sum `y + (x a) b` for `y` `[rows, out]`, `x` `[rows, in]`, `a` `[in, r]` and `b` `[r, out]`. It
/// replaces `y` in memory if nothing else holds that tensor.
///
/// `x` and `y` have one dtype. Factors and gradients are rounded as by [`linear_low_rank`].
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn add_low_rank(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let ([rows, input], [_, output], rank) = (x.dims(), y.dims(), a.dims()[1]);
    let sizes = [y.dims()[0], a.dims()[0], b.dims()[0], b.dims()[1]];
    assert_eq!(sizes, [rows, input, rank, output], "add_low_rank: the shapes do not fit");
    let [y, x, a, b] = [y, x, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::add_low_rank(y, x, a, b))
}

/// What the gradients of the update need.
#[derive(Clone, Debug)]
struct Update<T> {
    x: Option<NodeId>,
    /// `a` and `b` in the dtype of `x`.
    factors: [T; 2],
    /// The dtypes of `a` and `b`.
    dtypes: [DType; 2],
    h: Option<T>,
}

impl<T> Update<T> {
    /// Registers the gradients by `x`, `a` and `b`. `base` computes what the base adds to the first.
    fn backward<B: Kernels<FloatTensorPrimitive = T>>(
        self,
        dy: T,
        x: Option<T>,
        [x_id, a_id, b_id]: [Option<NodeId>; 3],
        base: impl FnOnce(T) -> Option<T>,
        grads: &mut Gradients,
    ) where
        T: Clone,
    {
        let Self { factors: [a, b], dtypes, h, .. } = self;
        if let (Some(id), Some(h)) = (b_id, h) {
            let db = B::matmul_to_f32(transposed::<B>(h), dy.clone());
            grads.register::<B>(id, cast::<B>(db, dtypes[1]));
        }
        if x_id.is_none() && a_id.is_none() {
            return;
        }
        let g = B::matmul(dy.clone(), transposed::<B>(b));
        if let (Some(id), Some(x)) = (a_id, x) {
            let da = B::matmul_to_f32(transposed::<B>(x), g.clone());
            grads.register::<B>(id, cast::<B>(da, dtypes[0]));
        }
        if let Some(id) = x_id {
            let a = transposed::<B>(a);
            let dx = match base(dy) {
                Some(dx) => B::addmm(g, a, dx),
                None => B::matmul(g, a),
            };
            grads.register::<B>(id, dx);
        }
    }
}

/// What the update is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// The product of `x` with a weight, which is the second operand.
    Product,
    /// The second operand itself.
    Sum,
}

#[derive(Debug)]
struct LowRankUpdate(Base);

/// Records [`Kernels::linear_low_rank`] on the tape.
pub(crate) fn record_product<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    w: FloatTensor<Autodiff<B, C>>,
    a: FloatTensor<Autodiff<B, C>>,
    b: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    record::<B, C>(Base::Product, [x, w, a, b])
}

/// Records [`Kernels::add_low_rank`] on the tape.
pub(crate) fn record_sum<B: Kernels, C: CheckpointStrategy>(
    y: FloatTensor<Autodiff<B, C>>,
    x: FloatTensor<Autodiff<B, C>>,
    a: FloatTensor<Autodiff<B, C>>,
    b: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    record::<B, C>(Base::Sum, [x, y, a, b])
}

fn record<B: Kernels, C: CheckpointStrategy>(
    base: Base,
    operands: [FloatTensor<Autodiff<B, C>>; 4],
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = operands.each_ref().map(|tensor| tensor.node());
    let [x, second, a, b] = &operands;
    let (x_is_factor, dtypes) =
        (second.is_tracked() && base == Base::Product, [a.dtype(), b.dtype()]);
    match Backward::<B, 4>::prepare::<C>(LowRankUpdate(base), nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let x_saved = (x_is_factor || a.is_tracked()).then(|| prep.checkpoint(x));
            let w_is_factor = x.is_tracked() && base == Base::Product;
            let w_saved = w_is_factor.then(|| prep.checkpoint(second));
            let b_tracked = b.is_tracked();
            let LowRank { y, factors, h } =
                forward::<B>(base, operands.map(|x| x.into_primitive()));
            let h = b_tracked.then_some(h);
            prep.finish(Saved { w: w_saved, update: Update { x: x_saved, factors, dtypes, h } }, y)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(forward::<B>(base, operands.map(|x| x.into_primitive())).y)
        }
    }
}

fn forward<B: Kernels>(base: Base, [x, second, a, b]: [FloatTensor<B>; 4]) -> LowRank<B> {
    match base {
        Base::Product => low_rank::forward::<B>(x, second, a, b),
        Base::Sum => low_rank::update::<B>(second, x, a, b),
    }
}

/// The state of the backward pass.
#[derive(Clone, Debug)]
struct Saved<T> {
    w: Option<NodeId>,
    update: Update<T>,
}

impl<B: Kernels> Backward<B, 4> for LowRankUpdate {
    type State = Saved<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let Saved { w, update } = ops.state;
        let [x_id, second_id, a_id, b_id] = ops.parents.map(|node| node.map(|node| node.id));
        let mut saved = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let (x, w) = (update.x.map(&mut saved), w.map(&mut saved));
        match (self.0, second_id, &x) {
            (Base::Product, Some(id), Some(x)) => {
                grads.register::<B>(id, B::matmul(transposed::<B>(x.clone()), dy.clone()));
            }
            (Base::Sum, Some(id), _) => grads.register::<B>(id, dy.clone()),
            _ => {}
        }
        let base = |dy| Some(B::matmul(dy, transposed::<B>(w?)));
        update.backward::<B>(dy, x, [x_id, a_id, b_id], base, grads);
    }
}
