//! Nearest-neighbour upsampling by two, as decoders and UNets have it.
//!
//! burn's gradient finds the pixels that show one by a division in the dtype of the tensor. A quotient on the
//! wrong side of a whole number shifts them: 91 / 7 on some drivers, 26 times 52 in bfloat16.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

use crate::backend::{KernelGradients, Kernels};

/// Upsamples `x` `[b, c, h, w]` to `[b, c, size[0], size[1]]`: pixel `(i, j)` of the result is pixel
/// `(i / 2, j / 2)` of `x`.
///
/// # Panics
/// If a size is neither twice that of `x` nor one less.
#[track_caller]
pub fn upsample_nearest(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    assert_eq!(
        size.map(|n| n.div_ceil(2)),
        [h, w],
        "upsample_nearest: {size:?} is not twice the size of the map"
    );
    let [height, width] = size;
    Tensor::from_dispatch(Dispatch::upsample_nearest(x.into_dispatch(), height, width))
}

#[derive(Debug)]
struct UpsampleNearest;

/// Records [`Kernels::upsample_nearest`] on the tape.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    height: usize,
    width: usize,
) -> FloatTensor<Autodiff<B, C>> {
    let node = x.node();
    let y = B::upsample_nearest(x.into_primitive(), height, width);
    match Backward::<B, 1>::prepare::<C>(UpsampleNearest, [node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

impl<B: KernelGradients> Backward<B, 1> for UpsampleNearest {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<B>(node.id, B::upsample_nearest_gradient(dy));
        }
    }
}
