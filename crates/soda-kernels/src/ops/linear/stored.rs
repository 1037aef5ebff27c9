//! Products with frozen matrices that are quantized or in host memory. The tape saves codes, or a reference
//! to the host's memory, instead of the matrix.
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

use crate::backend::{KernelGradients, Kernels};
use crate::host_matrix::{HostMatrix, HostNumbers};
use crate::quantize::QuantLayout;

#[derive(Debug)]
struct LinearStored;

/// A frozen matrix `[rows, columns]` as it is stored.
#[derive(Clone, Debug)]
enum Matrix<B: Kernels> {
    Quantized { words: IntTensor<B>, scales: FloatTensor<B>, layout: QuantLayout },
    Host { matrix: HostMatrix, scales: FloatTensor<B> },
}

impl<B: Kernels> Matrix<B> {
    fn product(self, x: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Quantized { words, scales, layout } => {
                B::linear_quantized(x, words, scales, layout)
            }
            Self::Host { matrix, scales } => B::linear_from_host(x, matrix, scales),
        }
    }
}

impl<B: KernelGradients> Matrix<B> {
    fn gradient(self, dy: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Quantized { words, scales, layout } => {
                B::linear_quantized_gradient(dy, words, scales, layout)
            }
            Self::Host { matrix, scales } => match matrix.numbers() {
                HostNumbers::Codes(layout) => {
                    let words = B::words_from_host(matrix, scales.clone());
                    B::linear_quantized_gradient(dy, words, scales, layout)
                }
                HostNumbers::Floats { .. } => {
                    let w = B::matrix_from_host(matrix, scales, dy.dtype().into());
                    B::matmul(dy, w)
                }
            },
        }
    }
}

/// Records [`Kernels::linear_quantized`] on the tape. The matrix is frozen.
pub(crate) fn record_quantized<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    words: IntTensor<B>,
    scales: FloatTensor<Autodiff<B, C>>,
    layout: QuantLayout,
) -> FloatTensor<Autodiff<B, C>> {
    record::<B, C>(x, Matrix::Quantized { words, scales: scales.into_primitive(), layout })
}

/// Records [`Kernels::linear_from_host`] on the tape. The matrix is frozen.
pub(crate) fn record_from_host<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    matrix: HostMatrix,
    scales: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    record::<B, C>(x, Matrix::Host { matrix, scales: scales.into_primitive() })
}

fn record<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    matrix: Matrix<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Backward::<B, 1>::prepare::<C>(LinearStored, [x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(matrix.clone(), matrix.product(x.into_primitive())),
        OpsKind::UnTracked(prep) => prep.finish(matrix.product(x.into_primitive())),
    }
}

impl<B: KernelGradients> Backward<B, 1> for LinearStored {
    type State = Matrix<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<B>(node.id, ops.state.gradient(dy));
        }
    }
}
