//! SwiGLU, the gate of the transformers' feed-forward layers (Shazeer, arXiv 2002.05202).
//!
//! ```text
//! x = (a, b)      y = a s(a) b      da = dy b (s(a) + a s(a) (1 - s(a)))      db = dy a s(a)
//! ```
//!
//! `s` is the sigmoid. The tape saves `x`.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

use crate::backend::{KernelGradients, Kernels};

/// SwiGLU: the SiLU of the first half of the last axis times the second half. The last axis of the result is
/// half as long.
pub fn swiglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::swiglu(x.into_dispatch()))
}

#[derive(Debug)]
struct Swiglu;

/// Records [`Kernels::swiglu`] on the tape.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    match Backward::<B, 1>::prepare::<C>(Swiglu, [x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let id = prep.checkpoint(&x);
            prep.finish(id, B::swiglu(x.into_primitive()))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::swiglu(x.into_primitive())),
    }
}

impl<B: KernelGradients> Backward<B, 1> for Swiglu {
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
            grads.register::<B>(node.id, B::swiglu_gradient(x, dy));
        }
    }
}
