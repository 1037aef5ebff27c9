//! Group norm (with the silu that follows it) and layer norm, with frozen scale and shift.
//!
//! ```text
//! xhat = (x - mean) rstd      z = gamma xhat + beta      y = z, or z s(z)
//! g = gamma dy dy/dz          dx = rstd (g - mean(g) - xhat mean(g xhat))
//! ```
//!
//! The tape keeps x, and of groups two numbers each; burn's norms, made of single operations, keep several maps each.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::nn::{GroupNorm, LayerNorm};
use burn::tensor::activation::silu;
use burn::tensor::{DType, FloatDType, Tensor};

use crate::backend::Kernels;

/// `layer` applied to `x` `[b, c, h, w]`, then silu if `act`.
///
/// # Panics
/// If `x` has not the layer's channels.
#[track_caller]
pub fn group_norm(layer: &GroupNorm, x: Tensor<4>, act: bool) -> Tensor<4> {
    assert_eq!(x.dims()[1], layer.num_channels, "group_norm: channels of {:?}", x.dims());
    match (&layer.gamma, &layer.beta) {
        (Some(gamma), Some(beta)) if !gamma.is_require_grad() && !beta.is_require_grad() => {
            let (y, _) = Dispatch::normalize_groups(
                x.into_dispatch(),
                gamma.val().into_dispatch(),
                beta.val().into_dispatch(),
                layer.num_groups,
                layer.epsilon,
                act,
            );
            Tensor::from_dispatch(y)
        }
        _ if act => silu(layer.forward(x)),
        _ => layer.forward(x),
    }
}

/// `layer` applied to the last axis of `x`; `eps` is the layer's, which burn keeps to itself.
pub fn layer_norm<const D: usize>(layer: &LayerNorm, eps: f64, x: Tensor<D>) -> Tensor<D> {
    match &layer.beta {
        Some(beta) if !beta.is_require_grad() && !layer.gamma.is_require_grad() => {
            Tensor::from_dispatch(Dispatch::normalize_rows(
                x.into_dispatch(),
                layer.gamma.val().into_dispatch(),
                beta.val().into_dispatch(),
                eps,
            ))
        }
        _ => layer.forward(x),
    }
}

/// A norm over groups of channels, `None` being rows.
#[derive(Clone, Copy, Debug)]
struct Norm {
    groups: Option<usize>,
    eps: f64,
    act: bool,
}

impl Norm {
    /// The value, and what the gradient is quicker with.
    fn forward<B: Kernels>(
        self,
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        match self.groups {
            Some(groups) => B::normalize_groups(x, gamma, beta, groups, self.eps, self.act),
            None => (B::normalize_rows(x, gamma, beta, self.eps), None),
        }
    }

    fn tracked<B: Kernels, C: CheckpointStrategy>(
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
                let (y, kept) = self.forward::<B>(x.into_primitive(), gamma.clone(), beta.clone());
                prep.finish((x_id, gamma, beta, kept), y)
            }
            OpsKind::UnTracked(prep) => {
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                prep.finish(self.forward::<B>(x.into_primitive(), gamma, beta).0)
            }
        }
    }
}

impl<B: Kernels> Backward<B, 1> for Norm {
    type State = (NodeId, FloatTensor<B>, FloatTensor<B>, Option<FloatTensor<B>>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let [Some(node)] = ops.parents else { return };
        let (x, gamma, beta, kept) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let Self { eps, act, .. } = self;
        let dx = match (self.groups, kept) {
            (None, _) => B::normalize_rows_gradient(x, dy, gamma, eps),
            (Some(groups), None) => {
                B::normalize_groups_gradient(x, dy, gamma, beta, groups, eps, act)
            }
            (Some(groups), Some(kept)) => {
                B::normalize_groups_gradient_keeping(x, dy, gamma, beta, kept, groups, eps, act)
            }
        };
        grads.register::<B>(node.id, dx);
    }
}

/// [`Kernels::normalize_groups`] on the tape.
pub(crate) fn groups_tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    beta: FloatTensor<Autodiff<B, C>>,
    groups: usize,
    eps: f64,
    act: bool,
) -> FloatTensor<Autodiff<B, C>> {
    Norm { groups: Some(groups), eps, act }.tracked::<B, C>(x, gamma, beta)
}

/// [`Kernels::normalize_rows`] on the tape.
pub(crate) fn rows_tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    beta: FloatTensor<Autodiff<B, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<B, C>> {
    Norm { groups: None, eps, act: false }.tracked::<B, C>(x, gamma, beta)
}

/// Group norm of burn's operations.
pub(crate) fn groups<B: Kernels>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    groups: usize,
    eps: f64,
    act: bool,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let [batch, channels, height, width] = shape.dims();
    let rows = [batch * groups, channels / groups * height * width];
    let maps = [batch, channels, height * width];
    let (xhat, _) = normalized::<B>(B::float_reshape(wide::<B>(x), rows.into()), eps);
    let z = affine::<B>(B::float_reshape(xhat, maps.into()), gamma, beta, [1, channels, 1]);
    let y = if act { B::float_mul(z.clone(), B::sigmoid(z)) } else { z };
    narrow::<B>(B::float_reshape(y, shape), dtype)
}

/// Its gradient.
pub(crate) fn groups_gradient<B: Kernels>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    groups: usize,
    eps: f64,
    act: bool,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let [batch, channels, height, width] = shape.dims();
    let rows = [batch * groups, channels / groups * height * width];
    let maps = [batch, channels, height * width];
    let (xhat, rstd) = normalized::<B>(B::float_reshape(wide::<B>(x), rows.into()), eps);
    let mut dz = B::float_reshape(wide::<B>(dy), maps.into());
    if act {
        // s (1 + z (1 - s)) = s + y (1 - s) with y = z s
        let z = B::float_reshape(xhat.clone(), maps.into());
        let z = affine::<B>(z, gamma.clone(), beta, [1, channels, 1]);
        let s = B::sigmoid(z.clone());
        let y = B::float_mul(z, s.clone());
        let slope = B::float_add(s.clone(), B::float_sub(y.clone(), B::float_mul(y, s)));
        dz = B::float_mul(dz, slope);
    }
    let gamma = B::float_reshape(wide::<B>(gamma), [1, channels, 1].into());
    let g = B::float_reshape(B::float_mul(dz, gamma), rows.into());
    let dx = pulled_back::<B>(g, xhat, rstd);
    narrow::<B>(B::float_reshape(dx, shape), dtype)
}

/// The gradient of layer norm, of burn's operations.
pub(crate) fn rows_gradient<B: Kernels>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    gamma: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let width = gamma.shape()[0];
    let rows = [shape.num_elements() / width.max(1), width];
    let (xhat, rstd) = normalized::<B>(B::float_reshape(wide::<B>(x), rows.into()), eps);
    let dy = B::float_reshape(wide::<B>(dy), rows.into());
    let g = B::float_mul(dy, B::float_reshape(wide::<B>(gamma), [1, width].into()));
    narrow::<B>(B::float_reshape(pulled_back::<B>(g, xhat, rstd), shape), dtype)
}

/// `xhat` and `rstd` of the rows of a matrix.
fn normalized<B: Kernels>(x: FloatTensor<B>, eps: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 1);
    let rstd = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, eps.into())));
    (B::float_mul(centred, rstd.clone()), rstd)
}

/// `rstd (g - mean(g) - xhat mean(g xhat))`
fn pulled_back<B: Kernels>(
    g: FloatTensor<B>,
    xhat: FloatTensor<B>,
    rstd: FloatTensor<B>,
) -> FloatTensor<B> {
    let along = B::float_mean_dim(B::float_mul(g.clone(), xhat.clone()), 1);
    let centred = B::float_sub(g.clone(), B::float_mean_dim(g, 1));
    B::float_mul(B::float_sub(centred, B::float_mul(xhat, along)), rstd)
}

fn affine<B: Kernels>(
    xhat: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    shape: [usize; 3],
) -> FloatTensor<B> {
    let [gamma, beta] = [gamma, beta].map(|p| B::float_reshape(wide::<B>(p), shape.into()));
    B::float_add(B::float_mul(xhat, gamma), beta)
}

/// Statistics are float32 whatever the network computes in.
fn wide<B: Kernels>(x: FloatTensor<B>) -> FloatTensor<B> {
    match x.dtype() {
        DType::F16 | DType::BF16 => B::float_cast(x, FloatDType::F32),
        _ => x,
    }
}

fn narrow<B: Kernels>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, dtype.into()) }
}
