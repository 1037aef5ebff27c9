//! Group norm, with an optional SiLU behind it and a frozen scale and shift, and layer norm.
//!
//! ```text
//! xhat = (x - mean) rstd      z = gamma xhat + beta      y = z, or z s(z)
//! g = gamma dy dy/dz          dx = rstd (g - mean(g) - xhat mean(g xhat))
//! dgamma = sum(dy xhat)       dbeta = sum(dy)
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
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::nn::{GroupNorm, LayerNorm};
use burn::tensor::Tensor;
use burn::tensor::activation;

use crate::backend::{KernelGradients, Kernels};
use crate::fallback::norm::sum_like_scale;

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

/// Applies a layer norm without scale and shift of its own to the tokens `x` `[b, n, c]`, then scales and
/// shifts them by tensors `[b or 1, 1, c]`: `norm(x) (1 + scale) + shift`.
///
/// It has gradients by all three.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn modulated_layer_norm(
    x: Tensor<3>,
    scale: Tensor<3>,
    shift: Tensor<3>,
    eps: f64,
) -> Tensor<3> {
    let ([batch, _, width], [samples, ..]) = (x.dims(), scale.dims());
    assert!(
        scale.dims() == [samples, 1, width]
            && shift.dims() == scale.dims()
            && (samples == batch || samples == 1),
        "modulated_layer_norm: scale {:?} and shift {:?} do not fit tokens {:?}",
        scale.dims(),
        shift.dims(),
        x.dims()
    );
    let of_samples = |x: Tensor<3>| x.reshape([samples, width]).into_dispatch();
    Tensor::from_dispatch(Dispatch::layer_norm_forward(
        x.into_dispatch(),
        of_samples(scale.add_scalar(1.0)),
        of_samples(shift),
        eps,
    ))
}

/// A group norm on the tape, by its input.
#[derive(Clone, Copy, Debug)]
struct GroupNormStep {
    groups: usize,
    eps: f64,
    silu: bool,
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
    let (step, nodes) = (GroupNormStep { groups, eps, silu }, [x.node()]);
    let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
    match Backward::<B, 1>::prepare::<C>(step, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let (id, x) = (prep.checkpoint(&x), x.into_primitive());
            let (y, stats) =
                B::group_norm_forward(x, gamma.clone(), beta.clone(), groups, eps, silu);
            prep.finish((id, gamma, beta, stats), y)
        }
        OpsKind::UnTracked(prep) => {
            let x = x.into_primitive();
            prep.finish(B::group_norm_forward(x, gamma, beta, groups, eps, silu).0)
        }
    }
}

impl<B: KernelGradients> Backward<B, 1> for GroupNormStep {
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
        let dx = B::group_norm_gradient(x, dy, gamma, beta, stats, groups, eps, silu);
        grads.register::<B>(node.id, dx);
    }
}

/// A layer norm on the tape, by its input, scale and shift.
#[derive(Clone, Copy, Debug)]
struct LayerNormStep {
    eps: f64,
}

/// Records [`Kernels::layer_norm_forward`] on the tape.
pub(crate) fn record_layer_norm<B: KernelGradients, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    beta: FloatTensor<Autodiff<B, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node(), gamma.node(), beta.node()];
    let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
    match Backward::<B, 3>::prepare::<C>(LayerNormStep { eps }, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let (id, x) = (prep.checkpoint(&x), x.into_primitive());
            prep.finish((id, gamma.clone()), B::layer_norm_forward(x, gamma, beta, eps))
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::layer_norm_forward(x.into_primitive(), gamma, beta, eps))
        }
    }
}

impl<B: KernelGradients> Backward<B, 3> for LayerNormStep {
    type State = (NodeId, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (id, gamma) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [of_x, of_gamma, of_beta] = ops.parents;
        if let Some(node) = of_beta {
            grads.register::<B>(node.id, sum_like_scale::<B>(dy.clone(), &gamma));
        }
        if let Some(node) = of_gamma {
            let (shape, device) = (gamma.shape(), gamma.device());
            let ones = B::float_ones(shape.clone(), &device, gamma.dtype().into());
            let zeros = B::float_zeros(shape, &device, gamma.dtype().into());
            let xhat = B::layer_norm_forward(x.clone(), ones, zeros, self.eps);
            let product = B::float_mul(dy.clone(), xhat);
            grads.register::<B>(node.id, sum_like_scale::<B>(product, &gamma));
        }
        if let Some(node) = of_x {
            grads.register::<B>(node.id, B::layer_norm_gradient(x, dy, gamma, self.eps));
        }
    }
}
