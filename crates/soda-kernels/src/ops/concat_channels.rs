//! Concatenation of two maps along their channels: the skip connections of a UNet.
//!
//! burn's concatenation writes the result in `[b, c, h, w]` order. Convolutions that read channels last would
//! copy it once more for every reader, and the slices of its gradient too.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::Tensor;

use crate::backend::{KernelGradients, Kernels};

/// Concatenates `a` `[b, c, h, w]` and `b` `[b, c', h, w]` along the channels: `[b, c + c', h, w]`.
///
/// On CUDA the result is stored channels last.
///
/// # Panics
/// If batch, height or width differ.
#[track_caller]
pub fn concat_channels(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    let ([batch, _, height, width], [others, _, rows, cols]) = (a.dims(), b.dims());
    assert_eq!(
        [batch, height, width],
        [others, rows, cols],
        "concat_channels: batch, height and width of both maps are equal"
    );
    Tensor::from_dispatch(Dispatch::concat_channels(a.into_dispatch(), b.into_dispatch()))
}

#[derive(Debug)]
struct ConcatChannels;

/// Records [`Kernels::concat_channels`] on the tape.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    a: FloatTensor<Autodiff<B, C>>,
    b: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [a.node(), b.node()];
    let (a, b) = (a.into_primitive(), b.into_primitive());
    match Backward::<B, 2>::prepare::<C>(ConcatChannels, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(a.shape()[1], B::concat_channels(a, b)),
        OpsKind::UnTracked(prep) => prep.finish(B::concat_channels(a, b)),
    }
}

impl<B: KernelGradients> Backward<B, 2> for ConcatChannels {
    /// The channels of the first map.
    type State = usize;

    fn backward(self, ops: Ops<usize, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [a, b] = ops.parents;
        let (da, db) = B::split_channels(dy, ops.state);
        for (node, gradient) in [(a, da), (b, db)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}
