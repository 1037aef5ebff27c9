//! Functions with their own gradient as nodes of burn's autodiff graph (`Backward<B, N>`).

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{
    BalancedCheckpointing, CheckpointStrategy, NoCheckpointing,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, DispatchKindConversion};
use burn::tensor::{DispatchTensor, Tensor};

/// A differentiable function with its own backward pass, as `torch.autograd.Function`.
///
/// The arguments are one large tensor `x` and a few small ones. [`apply_autograd`] applies the function.
/// Settings, such as shapes, are fields of the implementing type.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::{AutogradFunction, apply_autograd};
///
/// /// Multiplies `x` by 2.
/// #[derive(Clone, Debug)]
/// struct Double;
///
/// impl AutogradFunction for Double {
///     fn forward(&self, x: Tensor<3>, _: &[Tensor<1>]) -> Tensor<3> {
///         x.mul_scalar(2.0)
///     }
///
///     fn backward(
///         &self,
///         _x: Tensor<3>,
///         _: &[Tensor<1>],
///         grad: Tensor<3>,
///         _needs_grad: [bool; 2],
///     ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
///         (Some(grad.mul_scalar(2.0)), Vec::new())
///     }
/// }
///
/// let x = Tensor::<3>::ones([1, 2, 3], &Device::default().autodiff()).require_grad();
/// let grads = apply_autograd(&Double, x.clone(), &[]).sum().backward();
/// let grad: Vec<f32> = x.grad(&grads).ok_or("no gradient")?.try_to_vec_as()?;
/// assert_eq!(grad, [2.0; 6]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait AutogradFunction: Clone + Debug + Send + 'static {
    /// Returns the value for `x` and the small tensors `params`.
    ///
    /// The tensors are without autodiff. On a backend that the crate's features do not list, or with more
    /// than four `params`, they may be autodiff tensors, and burn differentiates this method.
    fn forward(&self, x: Tensor<3>, params: &[Tensor<1>]) -> Tensor<3>;

    /// Returns the gradients with respect to `x` and to each of `params`, from the gradient `grad` of the
    /// value.
    ///
    /// `needs_grad` says whether the gradient of `x`, and whether any of `params`, is used. A gradient that
    /// is not used may be `None`, or an empty vector.
    ///
    /// All tensors are without autodiff. If `needs_grad[1]` is false, the entries of `x` are undefined,
    /// because only its shape was saved.
    fn backward(
        &self,
        x: Tensor<3>,
        params: &[Tensor<1>],
        grad: Tensor<3>,
        needs_grad: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>);
}

/// Returns `f.forward(x, params)`, with `f.backward` as its gradient.
///
/// Autodiff saves the arguments and nothing else. The custom gradient takes effect on the backends of the
/// crate's features (`flex`, `cube`) and with at most four `params`. Otherwise burn differentiates
/// `f.forward`: the gradient is the same, and autodiff saves every intermediate tensor.
pub fn apply_autograd(f: &impl AutogradFunction, x: Tensor<3>, params: &[Tensor<1>]) -> Tensor<3> {
    if !x.is_autodiff() && !params.iter().any(Tensor::is_autodiff) {
        return f.forward(x, params);
    }
    macro_rules! on {
        ($backend:ty) => {
            if let Some(y) = apply_on::<$backend, NoCheckpointing>(f, &x, params)
                .or_else(|| apply_on::<$backend, BalancedCheckpointing>(f, &x, params))
            {
                return y;
            }
        };
    }
    #[cfg(feature = "flex")]
    on!(burn::backend::Flex);
    #[cfg(feature = "cube")]
    on!(burn::backend::Cube);
    f.forward(x, params)
}

/// [`apply_autograd`] if all arguments belong to the backend `B`, with or without autodiff.
fn apply_on<B, C>(
    f: &impl AutogradFunction,
    x: &Tensor<3>,
    params: &[Tensor<1>],
) -> Option<Tensor<3>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    match params.len() {
        0 => apply_node::<B, C, 1>(f, x, params),
        1 => apply_node::<B, C, 2>(f, x, params),
        2 => apply_node::<B, C, 3>(f, x, params),
        3 => apply_node::<B, C, 4>(f, x, params),
        4 => apply_node::<B, C, 5>(f, x, params),
        _ => None,
    }
}

/// [`apply_on`] as a node with `N` parents: `x` and all of `params`.
fn apply_node<B, C, const N: usize>(
    f: &impl AutogradFunction,
    x: &Tensor<3>,
    params: &[Tensor<1>],
) -> Option<Tensor<3>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let node_x = to_node::<B, C, 3>(x)?;
    let param_nodes: Vec<_> = params.iter().map(to_node::<B, C, 1>).collect::<Option<_>>()?;
    let plain: Vec<_> = params.iter().map(|param| param.clone().without_autodiff()).collect();
    let y = f.forward(x.clone().without_autodiff(), &plain);
    let y = y.try_into_primitive::<B>().ok()?;
    let nodes: Vec<_> = [&node_x].into_iter().chain(&param_nodes).map(|node| node.node()).collect();
    let nodes = <[_; N]>::try_from(nodes).ok()?;
    let gradient = CustomGradient { f: PhantomData };
    let prepared = gradient.prepare::<C>(nodes).compute_bound().stateful();
    Some(Tensor::from_primitive::<Autodiff<B, C>>(match prepared {
        OpsKind::Tracked(mut graph) => {
            // The gradient of `x` depends on `params` alone.
            let any_param = param_nodes.iter().any(|param| param.is_tracked());
            let saved_x = any_param.then(|| graph.checkpoint(&node_x));
            let saved_params = param_nodes.iter().map(|param| graph.checkpoint(param)).collect();
            let saved = Saved { f: f.clone(), dims: x.dims(), x: saved_x, params: saved_params };
            graph.finish(saved, y)
        }
        OpsKind::UnTracked(graph) => graph.finish(y),
    }))
}

/// `tensor` as a node of the autodiff graph; a tensor without autodiff becomes a constant.
fn to_node<B, C, const D: usize>(tensor: &Tensor<D>) -> Option<FloatTensor<Autodiff<B, C>>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let constant = || tensor.clone().try_into_primitive::<B>().map(Autodiff::<B, C>::from_inner);
    tensor.clone().try_into_primitive::<Autodiff<B, C>>().or_else(|_| constant()).ok()
}

#[derive(Debug)]
struct CustomGradient<F> {
    f: PhantomData<F>,
}

/// The state that the autodiff graph saves for the backward pass.
#[derive(Clone, Debug)]
struct Saved<F> {
    f: F,
    dims: [usize; 3],
    x: Option<NodeId>,
    params: Vec<NodeId>,
}

impl<B, F, const N: usize> Backward<B, N> for CustomGradient<F>
where
    B: Backend,
    F: AutogradFunction,
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Saved<F>;

    fn backward(
        self,
        ops: Ops<Saved<F>, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let Saved { f, dims, x, params } = ops.state;
        let grad = Tensor::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let mut restore = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let params: Vec<_> =
            params.into_iter().map(|id| Tensor::<1>::from_primitive::<B>(restore(id))).collect();
        let x = match x {
            Some(x) => Tensor::from_primitive::<B>(restore(x)),
            None => Tensor::empty(dims, (&grad.device(), grad.dtype())),
        };
        let mut parents = ops.parents.into_iter();
        let parent_x = parents.next().flatten();
        let parents: Vec<_> = parents.collect();
        let needs_grad = [parent_x.is_some(), parents.iter().any(Option::is_some)];
        let (dx, dparams) = f.backward(x, &params, grad, needs_grad);
        if let Some((parent, dx)) = parent_x.zip(dx) {
            grads.register::<B>(parent.id, to_primitive(dx));
        }
        for (parent, dparam) in parents.into_iter().zip(dparams) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, to_primitive(dparam));
            }
        }
    }
}

fn to_primitive<B: Backend, const D: usize>(tensor: Tensor<D>) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    tensor.try_into_primitive::<B>().expect("operations stay on the backend of their arguments")
}
