//! Self-attention and a gated MLP side by side, between one input and one output projection ("Scaling Vision
//! Transformers to 22 Billion Parameters", arXiv 2302.05442).
//!
//! ```text
//! x = (q, k, v, a, b)      y = (attention(R norm(q), R norm(k), v), a s(a) b)
//! ```
//!
//! `x` is by far the widest activation of such a network. As single operations, each part's gradient is a
//! tensor of the size of `x` in which the other parts are zero, and they are added up. Here one node writes
//! the parts of one gradient. The tape saves `x`, `y` and what attention saves; queries and keys are rotated
//! again.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::nn::RmsNorm;
use burn::tensor::Tensor;

use super::attention::attention;
use super::rms_norm_rotary::{RotaryEmbedding, rms_norm_rotary};
use super::swiglu::swiglu;
use crate::backend::{KernelGradients, Kernels};
use crate::fallback::parallel_attention::ParallelOptions;

/// Attention and SwiGLU of the parts of `x` `[b, n, 3 c + 2 i]`: queries, keys and values of `c` channels,
/// and the two halves of the MLP. Returns `[b, n, c + i]`.
///
/// `norms` are the norms of queries and keys of a head, in this order. A trained norm takes single
/// operations.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn parallel_attention(
    x: Tensor<3>,
    norms: [&RmsNorm; 2],
    rotation: &RotaryEmbedding,
    heads: usize,
) -> Tensor<3> {
    let [batch, tokens, all] = x.dims();
    let [width] = norms[0].gamma.dims();
    let same = norms[1].gamma.dims() == [width] && norms[1].epsilon == norms[0].epsilon;
    let inner = all.checked_sub(3 * heads * width);
    assert!(
        rotation.fits(batch, tokens, width)
            && same
            && inner.is_some_and(|inner| inner > 0 && inner.is_multiple_of(2)),
        "parallel_attention: {heads} heads of {width} channels and rotations {:?} do not fit {:?}",
        rotation.cos.dims(),
        x.dims()
    );
    if norms.iter().any(|norm| norm.gamma.is_require_grad()) {
        return composed(x, norms, rotation, heads);
    }
    let [gamma_q, gamma_k] = norms.map(|norm| norm.gamma.val().into_dispatch());
    Tensor::from_dispatch(Dispatch::parallel_attention(
        x.into_dispatch(),
        gamma_q,
        gamma_k,
        rotation.cos.clone().into_dispatch(),
        rotation.sin.clone().into_dispatch(),
        heads,
        norms[0].epsilon,
    ))
}

/// [`parallel_attention`] in single operations.
fn composed(
    x: Tensor<3>,
    norms: [&RmsNorm; 2],
    rotation: &RotaryEmbedding,
    heads: usize,
) -> Tensor<3> {
    let [batch, tokens, all] = x.dims();
    let width = norms[0].gamma.dims()[0];
    let channels = heads * width;
    let part = |index: usize| {
        let part = x.clone().narrow(2, index * channels, channels);
        part.reshape([batch, tokens, heads, width])
    };
    let rotated =
        |index: usize| rms_norm_rotary(norms[index], part(index), rotation).swap_dims(1, 2);
    let attended = attention(rotated(0), rotated(1), part(2).swap_dims(1, 2));
    let attended = attended.swap_dims(1, 2).reshape([batch, tokens, channels]);
    let gated = swiglu(x.narrow(2, 3 * channels, all - 3 * channels));
    Tensor::cat(vec![attended, gated], 2)
}

#[derive(Debug)]
struct ParallelAttention;

/// Records [`Kernels::parallel_attention`] on the tape. All but `x` are constants.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    options: ParallelOptions<FloatTensor<B>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node()];
    match Backward::<B, 1>::prepare::<C>(ParallelAttention, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let id = prep.checkpoint(&x);
            let (y, saved) = B::parallel_attention_saving(x.into_primitive(), &options);
            prep.finish((id, y.clone(), saved, options), y)
        }
        OpsKind::UnTracked(prep) => {
            let ParallelOptions { gammas: [gamma_q, gamma_k], rotation, heads, eps } = options;
            let ([cos, sin], x) = (rotation, x.into_primitive());
            prep.finish(B::parallel_attention(x, gamma_q, gamma_k, cos, sin, heads, eps))
        }
    }
}

impl<B: KernelGradients> Backward<B, 1> for ParallelAttention {
    type State = (NodeId, FloatTensor<B>, Option<FloatTensor<B>>, ParallelOptions<FloatTensor<B>>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (id, y, saved, options) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        if let [Some(node)] = ops.parents {
            let dx = B::parallel_attention_gradient(x, [y, dy], saved, &options);
            grads.register::<B>(node.id, dx);
        }
    }
}
