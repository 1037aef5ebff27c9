//! The gate of the transformers' feed-forward layers (GEGLU, arXiv 2002.05202).
//!
//! ```text
//! x = (a, b)      y = a gelu(b) = a b P(b)      da = dy b P(b)      db = dy a (P(b) + b p(b))
//! ```
//!
//! with the normal distribution `P` and its density `p`. The tape keeps x.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{Slice, Tensor};

use crate::backend::Kernels;

/// The first half of the last axis, times gelu of the second.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::gate(x.into_dispatch()))
}

/// [`geglu`] of `x + bias`, the bias along the last axis: what follows a linear layer, which is asked for without its bias.
pub fn geglu_with_bias<const D: usize>(x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
    match bias {
        None => geglu(x),
        // Nothing here has a gradient for it.
        Some(bias) if bias.is_require_grad() => geglu(x + bias.unsqueeze()),
        Some(bias) => {
            Tensor::from_dispatch(Dispatch::gate_biased(x.into_dispatch(), bias.into_dispatch()))
        }
    }
}

#[derive(Debug)]
struct Gate;

/// [`Kernels::gate`] on the tape.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    match Backward::<B, 1>::prepare::<C>(Gate, [x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let id = prep.checkpoint(&x);
            prep.finish(id, B::gate(x.into_primitive()))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::gate(x.into_primitive())),
    }
}

impl<B: Kernels> Backward<B, 1> for Gate {
    type State = NodeId;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(ops.state);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::gate_gradient(x, dy));
        }
    }
}

#[derive(Debug)]
struct Biased;

/// [`Kernels::gate_biased`] on the tape.
pub(crate) fn biased_tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let bias = bias.into_primitive();
    match Backward::<B, 1>::prepare::<C>(Biased, [x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let id = prep.checkpoint(&x);
            prep.finish((id, bias.clone()), B::gate_biased(x.into_primitive(), bias))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::gate_biased(x.into_primitive(), bias)),
    }
}

impl<B: Kernels> Backward<B, 1> for Biased {
    type State = (NodeId, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (id, bias) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::gate_biased_gradient(x, bias, dy));
        }
    }
}

/// `x + bias`.
pub(crate) fn biased<B: Kernels>(x: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    for axis in 0..last {
        shape[axis] = 1;
    }
    B::float_add(x, B::float_reshape(bias, shape))
}

/// Of burn's operations.
pub(crate) fn forward<B: Kernels>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [a, b] = halves::<B>(x);
    B::float_mul(a, B::gelu(b))
}

/// Its gradient.
pub(crate) fn gradient<B: Kernels>(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    let last = x.rank() - 1;
    let [a, b] = halves::<B>(x);
    let erf = B::float_erf(B::float_mul_scalar(b.clone(), std::f64::consts::FRAC_1_SQRT_2.into()));
    let normal = B::float_mul_scalar(B::float_add_scalar(erf, 1.0.into()), 0.5.into());
    let square = B::float_mul_scalar(B::float_mul(b.clone(), b.clone()), (-0.5).into());
    let height = (2.0 * std::f64::consts::PI).sqrt().recip();
    let density = B::float_mul_scalar(B::float_exp(square), height.into());
    let da = B::float_mul(dy.clone(), B::float_mul(b.clone(), normal.clone()));
    let slope = B::float_add(normal, B::float_mul(b, density));
    let db = B::float_mul(dy, B::float_mul(a, slope));
    B::float_cat(vec![da, db], last)
}

fn halves<B: Kernels>(x: FloatTensor<B>) -> [FloatTensor<B>; 2] {
    let shape = x.shape();
    let last = shape.num_dims() - 1;
    let half = shape[last] / 2;
    let slice = |range| {
        let mut slices = vec![Slice::full(); last];
        slices.push(Slice::from(range));
        B::float_slice(x.clone(), &slices)
    };
    [slice(0..half), slice(half..2 * half)]
}
