//! What is added to the value of a layer: a bias for each channel, and what the layer is a change of.
//!
//! ```text
//! y = x + bias + rest      dx = drest = dy      dbias = sum of dy over the rows that it is for
//! ```
//!
//! One pass over the value where single operations take one each, and round what is between.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape, Tensor};

use crate::backend::Kernels;

/// `x + bias + rest` as far as they are there: `x` and `rest` `[.., c]`, and `bias` `[k, c]`, of which each row is for a `k`-th of the
/// rows of `x`.
#[track_caller]
pub(crate) fn plus<const D: usize>(
    x: Tensor<D>,
    bias: Option<Tensor<2>>,
    rest: Option<Tensor<D>>,
) -> Tensor<D> {
    let Some(bias) = bias else {
        return match rest {
            Some(rest) => x + rest,
            None => x,
        };
    };
    let (dims, [k, c]) = (x.dims(), bias.dims());
    let rows: usize = dims[..D - 1].iter().product();
    assert!(dims[D - 1] == c && rows.is_multiple_of(k), "a bias {:?} for {dims:?}", [k, c]);
    let (x, bias) = (x.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(match rest {
        None => Dispatch::add_bias(x, bias),
        Some(rest) => {
            assert_eq!(rest.dims(), dims, "what a layer is added to");
            Dispatch::add_bias_to(x, bias, rest.into_dispatch())
        }
    })
}

#[derive(Debug)]
struct Sum;

/// Shape and type of the bias, where it has a gradient.
type Kept = Option<(Shape, DType)>;

/// [`Kernels::add_bias`] on the tape.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (nodes, kept) = ([x.node(), bias.node()], of_bias::<B, C>(&bias));
    let y = B::add_bias(x.into_primitive(), bias.into_primitive());
    match Backward::<B, 2>::prepare::<C>(Sum, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

/// [`Kernels::add_bias_to`] on the tape.
pub(crate) fn tracked_to<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
    rest: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (nodes, kept) = ([x.node(), bias.node(), rest.node()], of_bias::<B, C>(&bias));
    let y = B::add_bias_to(x.into_primitive(), bias.into_primitive(), rest.into_primitive());
    match Backward::<B, 3>::prepare::<C>(Sum, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

fn of_bias<B: Kernels, C: CheckpointStrategy>(bias: &FloatTensor<Autodiff<B, C>>) -> Kept {
    bias.is_tracked().then(|| (bias.shape(), bias.dtype()))
}

/// Registers `dy` for each of `others`, and its sums for the bias.
fn give<B: Kernels>(
    grads: &mut Gradients,
    dy: FloatTensor<B>,
    bias: Option<NodeId>,
    kept: Kept,
    others: impl IntoIterator<Item = Option<NodeId>>,
) {
    if let (Some(id), Some((shape, dtype))) = (bias, kept) {
        grads.register::<B>(id, by_bias::<B>(dy.clone(), shape, dtype));
    }
    for id in others.into_iter().flatten() {
        grads.register::<B>(id, dy.clone());
    }
}

/// The sum of the rows that each row of the bias is for, in float32.
fn by_bias<B: Kernels>(dy: FloatTensor<B>, shape: Shape, dtype: DType) -> FloatTensor<B> {
    let ([k, c], n) = (shape.dims(), dy.shape().num_elements());
    let half = matches!(dy.dtype(), DType::F16 | DType::BF16);
    let dy = if half { B::float_cast(dy, FloatDType::F32) } else { dy };
    let sums = B::float_sum_dim(B::float_reshape(dy, [k, n / (k * c), c].into()), 1);
    let sums = B::float_reshape(sums, shape);
    if sums.dtype() == dtype { sums } else { B::float_cast(sums, dtype.into()) }
}

impl<B: Kernels> Backward<B, 2> for Sum {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [x, bias] = ops.parents.map(|node| node.map(|node| node.id));
        give::<B>(grads, dy, bias, ops.state, [x]);
    }
}

impl<B: Kernels> Backward<B, 3> for Sum {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [x, bias, rest] = ops.parents.map(|node| node.map(|node| node.id));
        give::<B>(grads, dy, bias, ops.state, [x, rest]);
    }
}

/// Of burn's operations.
pub(crate) fn forward<B: Kernels>(x: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let (shape, [k, c]) = (x.shape(), bias.shape().dims());
    let rows = shape.num_elements() / (k * c);
    let x = B::float_reshape(x, [k, rows, c].into());
    B::float_reshape(B::float_add(x, B::float_reshape(bias, [k, 1, c].into())), shape)
}
