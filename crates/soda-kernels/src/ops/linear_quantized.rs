//! Products with quantized matrices. The tape saves codes instead of the matrix.
//!
//! ```text
//! y = x W'      dx = dy W
//! ```

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, TensorMetadata};

use crate::backend::Kernels;
use crate::quantize::QuantLayout;

#[derive(Debug)]
struct LinearQuantized;

/// Codes, scales and layout of a matrix.
#[derive(Clone, Debug)]
struct Saved<I, F> {
    words: I,
    scales: F,
    layout: QuantLayout,
}

/// Records [`Kernels::linear_quantized`] on the tape. The matrix is frozen.
pub(crate) fn record<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    words: IntTensor<B>,
    scales: FloatTensor<Autodiff<B, C>>,
    layout: QuantLayout,
) -> FloatTensor<Autodiff<B, C>> {
    let scales = scales.into_primitive();
    match Backward::<B, 1>::prepare::<C>(LinearQuantized, [x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let saved = Saved { words: words.clone(), scales: scales.clone(), layout };
            prep.finish(saved, B::linear_quantized(x.into_primitive(), words, scales, layout))
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::linear_quantized(x.into_primitive(), words, scales, layout))
        }
    }
}

impl<B: Kernels> Backward<B, 1> for LinearQuantized {
    type State = Saved<IntTensor<B>, FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let Saved { words, scales, layout } = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            let w = B::dequantize_matrix(words, scales, layout, dy.dtype().into());
            grads.register::<B>(node.id, B::matmul(dy, w));
        }
    }
}
