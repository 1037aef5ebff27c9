//! Group norm, with an optional SiLU behind it, and layer norm; scale and shift are frozen.
//!
//! ```text
//! xhat = (x - mean) rstd      z = gamma xhat + beta      y = z, or z s(z)
//! g = gamma dy dy/dz          dx = rstd (g - mean(g) - xhat mean(g xhat))
//! ```
//!
//! The tape saves `x`, and two numbers for each group. burn's norms, which consist of single operations, save
//! several maps.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::nn::{GroupNorm, LayerNorm};
use burn::tensor::Tensor;
use burn::tensor::activation;

use crate::backend::{KernelGradients, Kernels};

/// Applies the group norm `layer` to `x` `[b, c, h, w]`, then SiLU if `silu`.
///
/// A layer without scale and shift, or with trained ones, takes burn's own operations.
///
/// # Panics
/// If `x` does not have the layer's number of channels.
#[track_caller]
pub fn group_norm(layer: &GroupNorm, x: Tensor<4>, silu: bool) -> Tensor<4> {
    assert_eq!(
        x.dims()[1],
        layer.num_channels,
        "group_norm: the channels of a map of shape {:?}",
        x.dims()
    );
    match (&layer.gamma, &layer.beta) {
        (Some(gamma), Some(beta)) if !gamma.is_require_grad() && !beta.is_require_grad() => {
            let (y, _) = Dispatch::group_norm_forward(
                x.into_dispatch(),
                gamma.val().into_dispatch(),
                beta.val().into_dispatch(),
                layer.num_groups,
                layer.epsilon,
                silu,
            );
            Tensor::from_dispatch(y)
        }
        _ if silu => activation::silu(layer.forward(x)),
        _ => layer.forward(x),
    }
}

/// Applies the layer norm `layer` to the last axis of `x`.
///
/// `eps` is the layer's epsilon, which burn keeps private. A layer without a shift, or with trained
/// parameters, takes burn's own operations.
pub fn layer_norm<const D: usize>(layer: &LayerNorm, eps: f64, x: Tensor<D>) -> Tensor<D> {
    match &layer.beta {
        Some(beta) if !beta.is_require_grad() && !layer.gamma.is_require_grad() => {
            Tensor::from_dispatch(Dispatch::layer_norm_forward(
                x.into_dispatch(),
                layer.gamma.val().into_dispatch(),
                beta.val().into_dispatch(),
                eps,
            ))
        }
        _ => layer.forward(x),
    }
}

/// Applies a layer norm without scale and shift to the last axis of `x`.
pub fn layer_norm_without_affine<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let options = (&x.device(), x.dtype());
    let width = [x.dims()[D - 1]];
    let (gamma, beta) = (Tensor::<1>::ones(width, options), Tensor::<1>::zeros(width, options));
    Tensor::from_dispatch(Dispatch::layer_norm_forward(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        eps,
    ))
}

/// A norm on the tape: over groups of channels, or over rows if `groups` is `None`.
#[derive(Clone, Copy, Debug)]
struct Norm {
    groups: Option<usize>,
    eps: f64,
    silu: bool,
}

impl Norm {
    /// The value, and the statistics of the groups if the backend returns them.
    fn forward<B: KernelGradients>(
        self,
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        match self.groups {
            Some(groups) => B::group_norm_forward(x, gamma, beta, groups, self.eps, self.silu),
            None => (B::layer_norm_forward(x, gamma, beta, self.eps), None),
        }
    }

    fn record<B: KernelGradients, C: CheckpointStrategy>(
        self,
        x: FloatTensor<Autodiff<B, C>>,
        gamma: FloatTensor<Autodiff<B, C>>,
        beta: FloatTensor<Autodiff<B, C>>,
    ) -> FloatTensor<Autodiff<B, C>> {
        let nodes = [x.node()];
        match Backward::<B, 1>::prepare::<C>(self, nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x_id = prep.checkpoint(&x);
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                let (y, stats) = self.forward::<B>(x.into_primitive(), gamma.clone(), beta.clone());
                prep.finish((x_id, gamma, beta, stats), y)
            }
            OpsKind::UnTracked(prep) => {
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                prep.finish(self.forward::<B>(x.into_primitive(), gamma, beta).0)
            }
        }
    }
}

impl<B: KernelGradients> Backward<B, 1> for Norm {
    type State = (NodeId, FloatTensor<B>, FloatTensor<B>, Option<FloatTensor<B>>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let [Some(node)] = ops.parents else { return };
        let (x, gamma, beta, stats) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let Self { groups, eps, silu } = self;
        let dx = match groups {
            None => B::layer_norm_gradient(x, dy, gamma, eps),
            Some(groups) => B::group_norm_gradient(x, dy, gamma, beta, stats, groups, eps, silu),
        };
        grads.register::<B>(node.id, dx);
    }
}

/// Records [`Kernels::group_norm_forward`] on the tape.
pub(crate) fn record_group_norm<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    beta: FloatTensor<Autodiff<B, C>>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> FloatTensor<Autodiff<B, C>> {
    Norm { groups: Some(groups), eps, silu }.record::<B, C>(x, gamma, beta)
}

/// Records [`Kernels::layer_norm_forward`] on the tape.
pub(crate) fn record_layer_norm<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    beta: FloatTensor<Autodiff<B, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<B, C>> {
    Norm { groups: None, eps, silu: false }.record::<B, C>(x, gamma, beta)
}
