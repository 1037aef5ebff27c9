//! RMS norm of the heads of queries or keys, then their rotary position embedding; the norm is frozen.
//!
//! ```text
//! n = gamma x r      r = 1 / sqrt(mean(x²) + eps)      y = n cos + P n sin
//! g = gamma (dy cos + P (dy sin))                      dx = r (g - x r² mean(g x))
//! ```
//!
//! `P` swaps the channels of each pair (2i, 2i + 1). The norm is that of Zhang and Sennrich (arXiv
//! 1910.07467), the rotation that of RoFormer (arXiv 2104.09864). The tape saves `x`.

use std::ops::Range;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::nn::RmsNorm;
use burn::tensor::{DType, Tensor};

use crate::backend::{KernelGradients, Kernels};

/// Rotary position embeddings of the tokens of a sequence: cosine and sine for each channel of a head,
/// `[b or 1, n, 1, d]` in float32.
///
/// Channels `2i` and `2i + 1` are a pair with one angle. The sines of even channels are negative:
/// `y_2i = x_2i cos - x_2i+1 sin` and `y_2i+1 = x_2i+1 cos + x_2i sin`.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// The cosine of each channel.
    pub cos: Tensor<4>,
    /// The sine of each channel, negative in even channels.
    pub sin: Tensor<4>,
}

impl RotaryEmbedding {
    /// The rotations of the tokens in a range.
    #[must_use]
    pub fn tokens(&self, range: Range<usize>) -> Self {
        let part = |table: &Tensor<4>| table.clone().narrow(1, range.start, range.len());
        Self { cos: part(&self.cos), sin: part(&self.sin) }
    }

    /// Whether it rotates `tokens` tokens of `batch` samples, with heads of `width` channels.
    pub(crate) fn fits(&self, batch: usize, tokens: usize, width: usize) -> bool {
        let [samples, ..] = self.cos.dims();
        self.cos.dims() == self.sin.dims()
            && (samples == batch || samples == 1)
            && self.cos.dims()[1..] == [tokens, 1, width]
            && width.is_multiple_of(2)
    }

    /// Rotates `x` `[b, n, heads, d]` in float32, in burn's operations. Returns the dtype of `x`.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let (dims, dtype) = (x.dims(), x.dtype());
        let [batch, tokens, heads, width] = dims;
        let x = x.cast(DType::F32);
        let pairs: Tensor<5> = x.clone().reshape([batch, tokens, heads, width / 2, 2]);
        let [even, odd] = [0, 1].map(|channel| pairs.clone().narrow(4, channel, 1));
        let swapped: Tensor<4> = Tensor::cat(vec![odd, even], 4).reshape(dims);
        (x * self.cos.clone() + swapped * self.sin.clone()).cast(dtype)
    }
}

/// Applies the norm `layer` to each head of `x` `[b, n, heads, d]`, then rotates it. Returns the same shape.
///
/// It computes in float32 whatever the dtype of `x`. A trained norm takes burn's own operations.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn rms_norm_rotary(layer: &RmsNorm, x: Tensor<4>, rotation: &RotaryEmbedding) -> Tensor<4> {
    let [batch, tokens, _, width] = x.dims();
    assert!(
        rotation.fits(batch, tokens, width) && layer.gamma.dims() == [width],
        "rms_norm_rotary: a norm of {:?} and rotations {:?} do not fit heads {:?}",
        layer.gamma.dims(),
        rotation.cos.dims(),
        x.dims()
    );
    if layer.gamma.is_require_grad() {
        return rotation.rotate(layer.forward(x));
    }
    Tensor::from_dispatch(Dispatch::rms_norm_rotary(
        x.into_dispatch(),
        layer.gamma.val().into_dispatch(),
        rotation.cos.clone().into_dispatch(),
        rotation.sin.clone().into_dispatch(),
        layer.epsilon,
    ))
}

#[derive(Debug)]
struct RmsNormRotary;

/// Records [`Kernels::rms_norm_rotary`] on the tape. All but `x` are constants.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    cos: FloatTensor<Autodiff<B, C>>,
    sin: FloatTensor<Autodiff<B, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let constants = [gamma, cos, sin].map(|constant| constant.into_primitive());
    let forward =
        |x, [gamma, cos, sin]: [FloatTensor<B>; 3]| B::rms_norm_rotary(x, gamma, cos, sin, eps);
    match Backward::<B, 1>::prepare::<C>(RmsNormRotary, [x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let id = prep.checkpoint(&x);
            prep.finish((id, constants.clone(), eps), forward(x.into_primitive(), constants))
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(x.into_primitive(), constants)),
    }
}

impl<B: KernelGradients> Backward<B, 1> for RmsNormRotary {
    type State = (NodeId, [FloatTensor<B>; 3], f64);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (id, constants, eps) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::rms_norm_rotary_gradient(x, dy, constants, eps));
        }
    }
}
