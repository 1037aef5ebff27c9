//! GEGLU, the gate of the transformers' feed-forward layers (Shazeer, arXiv 2002.05202).
//!
//! ```text
//! x = (a, b)      y = a gelu(b) = a b P(b)      da = dy b P(b)      db = dy a (P(b) + b p(b))
//! ```
//!
//! `P` is the standard normal distribution and `p` its density. The tape saves `x`.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

use crate::backend::{KernelGradients, Kernels};

/// GEGLU: the first half of the last axis times the GELU of the second half. The last axis of the result is
/// half as long.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::geglu(x.into_dispatch()))
}

/// [`geglu`] of `x + bias`, with the bias along the last axis: the epilogue of a linear layer without its
/// bias.
pub fn geglu_with_bias<const D: usize>(x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
    match bias {
        None => geglu(x),
        // The fused operation has no gradient by the bias.
        Some(bias) if bias.is_require_grad() => geglu(x + bias.unsqueeze()),
        Some(bias) => Tensor::from_dispatch(Dispatch::geglu_with_bias(
            x.into_dispatch(),
            bias.into_dispatch(),
        )),
    }
}

#[derive(Debug)]
struct Geglu;

/// Records GEGLU on the tape: [`Kernels::geglu`], or
/// [`Kernels::geglu_with_bias`] if there is a bias, which is a constant.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    bias: Option<FloatTensor<Autodiff<B, C>>>,
) -> FloatTensor<Autodiff<B, C>> {
    let bias = bias.map(|bias| bias.into_primitive());
    let forward = |x: FloatTensor<B>, bias: Option<FloatTensor<B>>| match bias {
        Some(bias) => B::geglu_with_bias(x, bias),
        None => B::geglu(x),
    };
    match Backward::<B, 1>::prepare::<C>(Geglu, [x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let id = prep.checkpoint(&x);
            prep.finish((id, bias.clone()), forward(x.into_primitive(), bias))
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(x.into_primitive(), bias)),
    }
}

impl<B: KernelGradients> Backward<B, 1> for Geglu {
    type State = (NodeId, Option<FloatTensor<B>>);

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
            grads.register::<B>(node.id, B::geglu_gradient(x, bias, dy));
        }
    }
}
