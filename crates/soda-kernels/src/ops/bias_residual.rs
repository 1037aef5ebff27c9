//! The bias and residual epilogue of a layer, as one operation.
//!
//! ```text
//! y = x + bias + residual      dx = dresidual = dy      dbias = sum of dy over the rows of each bias row
//! ```
//!
//! One pass reads and writes the value once and rounds it once; single operations do so once each.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor};

use crate::backend::Kernels;
use crate::fallback::{at_least_f32, cast};

/// Adds an optional bias and an optional residual to `x`.
///
/// `x` and `residual` are `[.., c]` and `bias` is `[k, c]`. Each bias row applies to a `k`-th of the rows of
/// `x`.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub(crate) fn bias_residual<const D: usize>(
    x: Tensor<D>,
    bias: Option<Tensor<2>>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    let Some(bias) = bias else {
        return match residual {
            Some(residual) => x + residual,
            None => x,
        };
    };
    let (dims, [k, c]) = (x.dims(), bias.dims());
    let rows: usize = dims[..D - 1].iter().product();
    let fits = dims[D - 1] == c && rows.is_multiple_of(k);
    assert!(fits, "a bias of shape {:?} does not fit a value of shape {dims:?}", [k, c]);
    let (x, bias) = (x.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(match residual {
        None => Dispatch::add_bias(x, bias),
        Some(residual) => {
            assert_eq!(residual.dims(), dims, "the residual has the shape of the value");
            Dispatch::add_bias_residual(x, bias, residual.into_dispatch())
        }
    })
}

#[derive(Debug)]
struct BiasResidual;

/// Shape and dtype of the bias, if it has a gradient.
type Saved = Option<(Shape, DType)>;

/// Records [`Kernels::add_bias`] on the tape.
pub(crate) fn record_bias<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (nodes, saved) = ([x.node(), bias.node()], bias_metadata::<B, C>(&bias));
    let y = B::add_bias(x.into_primitive(), bias.into_primitive());
    match Backward::<B, 2>::prepare::<C>(BiasResidual, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(saved, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

/// Records [`Kernels::add_bias_residual`] on the tape.
pub(crate) fn record_bias_residual<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
    residual: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node(), bias.node(), residual.node()];
    let saved = bias_metadata::<B, C>(&bias);
    let [x, bias, residual] = [x, bias, residual].map(|tensor| tensor.into_primitive());
    let y = B::add_bias_residual(x, bias, residual);
    match Backward::<B, 3>::prepare::<C>(BiasResidual, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(saved, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

fn bias_metadata<B: Kernels, C: CheckpointStrategy>(bias: &FloatTensor<Autodiff<B, C>>) -> Saved {
    bias.is_tracked().then(|| (bias.shape(), bias.dtype()))
}

impl<B: Kernels> Backward<B, 2> for BiasResidual {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [x, bias] = ops.parents.map(|node| node.map(|node| node.id));
        register_gradients::<B>(grads, dy, bias, ops.state, [x]);
    }
}

impl<B: Kernels> Backward<B, 3> for BiasResidual {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [x, bias, residual] = ops.parents.map(|node| node.map(|node| node.id));
        register_gradients::<B>(grads, dy, bias, ops.state, [x, residual]);
    }
}

/// Registers `dy` for each of `others`, and its sums over rows for the bias.
fn register_gradients<B: Kernels>(
    grads: &mut Gradients,
    dy: FloatTensor<B>,
    bias: Option<NodeId>,
    saved: Saved,
    others: impl IntoIterator<Item = Option<NodeId>>,
) {
    if let (Some(id), Some((shape, dtype))) = (bias, saved) {
        grads.register::<B>(id, bias_gradient::<B>(dy.clone(), shape, dtype));
    }
    for id in others.into_iter().flatten() {
        grads.register::<B>(id, dy.clone());
    }
}

/// The sum over the rows that each bias row applies to, accumulated in float32.
fn bias_gradient<B: Kernels>(dy: FloatTensor<B>, shape: Shape, dtype: DType) -> FloatTensor<B> {
    let ([k, c], n) = (shape.dims(), dy.shape().num_elements());
    let dy = at_least_f32::<B>(dy);
    let sums = B::float_sum_dim(B::float_reshape(dy, [k, n / (k * c), c].into()), 1);
    cast::<B>(B::float_reshape(sums, shape), dtype)
}
