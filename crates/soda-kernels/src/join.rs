//! Two maps as one, their channels one after the other: the skip connections of a UNet.
//!
//! burn's concatenation lays the result out channel by channel. Where convolutions want the channels of a pixel together, every
//! reader of it would copy it once more, and so would those of the slices that are its gradient.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{Slice, Tensor};

use crate::backend::Kernels;

/// `a` `[b, c, h, w]` and `b` `[b, c', h, w]` as `[b, c + c', h, w]`.
///
/// # Panics
/// Where sizes do not fit.
#[track_caller]
pub fn concat_channels(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    let ([batch, _, height, width], [others, _, rows, cols]) = (a.dims(), b.dims());
    assert_eq!([batch, height, width], [others, rows, cols], "concat_channels: maps of one size");
    Tensor::from_dispatch(Dispatch::join(a.into_dispatch(), b.into_dispatch()))
}

#[derive(Debug)]
struct Join;

/// [`Kernels::join`] on the tape.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    a: FloatTensor<Autodiff<B, C>>,
    b: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [a.node(), b.node()];
    let (a, b) = (a.into_primitive(), b.into_primitive());
    match Backward::<B, 2>::prepare::<C>(Join, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(a.shape()[1], B::join(a, b)),
        OpsKind::UnTracked(prep) => prep.finish(B::join(a, b)),
    }
}

impl<B: Kernels> Backward<B, 2> for Join {
    type State = usize;

    fn backward(self, ops: Ops<usize, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [a, b] = ops.parents;
        let (da, db) = B::join_gradient(dy, ops.state);
        for (node, found) in [(a, da), (b, db)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, found);
            }
        }
    }
}

/// Of burn's operations.
pub(crate) fn gradient<B: Kernels>(
    dy: FloatTensor<B>,
    channels: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let all = dy.shape()[1];
    let part = |range: std::ops::Range<usize>| {
        B::float_slice(dy.clone(), &[Slice::full(), Slice::from(range)])
    };
    (part(0..channels), part(channels..all))
}
