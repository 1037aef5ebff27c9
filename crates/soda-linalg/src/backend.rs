//! What burn 0.22 gives only to who names a backend, in the one file of this crate that does: gradients
//! of one's own (`Backward<B, N>`), and whether a tensor lies in this process' memory.
//!
//! The crate's features say which backends are compiled in. On any other [`with_gradient`] lets burn's tape
//! record the forward pass: the same numbers from more memory.

#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(dead_code, unused_imports, unused_macros, reason = "no backend is listed")
)]

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
use burn::tensor::{DType, DispatchTensor, Tensor, TensorReadError};

use crate::error::LinalgError;

/// A function of a large tensor and of small ones, with a gradient by hand.
pub trait Function: Clone + Debug + Send + 'static {
    /// Its value. On the tape only where the build lists no backend, or of more small ones than four.
    fn forward(&self, x: Tensor<3>, a: &[Tensor<1>]) -> Tensor<3>;

    /// From the arguments and the gradient by the result: the gradients by `x`, and by each of `a`, where they are
    /// wanted. Off the tape. `x` is nothing where those by `a` are not.
    fn backward(
        &self,
        x: Tensor<3>,
        a: &[Tensor<1>],
        grad: Tensor<3>,
        wanted: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>);
}

/// `f(x, a)`; on the tape, where an argument is, it keeps the arguments and nothing else.
pub fn with_gradient(f: &impl Function, x: Tensor<3>, a: &[Tensor<1>]) -> Tensor<3> {
    if !x.is_autodiff() && !a.iter().any(Tensor::is_autodiff) {
        return f.forward(x, a);
    }
    macro_rules! on {
        ($backend:ty) => {
            if let Some(y) = recorded::<$backend, NoCheckpointing>(f, &x, a)
                .or_else(|| recorded::<$backend, BalancedCheckpointing>(f, &x, a))
            {
                return y;
            }
        };
    }
    #[cfg(feature = "flex")]
    on!(burn::backend::Flex);
    #[cfg(feature = "cube")]
    on!(burn::backend::Cube);
    f.forward(x, a)
}

/// Whether `x` lies in the memory of this process, whose caches are worth minding.
pub(crate) fn on_host(x: &Tensor<3>) -> bool {
    #[cfg(feature = "flex")]
    return x.clone().without_autodiff().try_into_primitive::<burn::backend::Flex>().is_ok();
    #[cfg(not(feature = "flex"))]
    return x.dims().is_empty();
}

/// What `f` makes of the entries of `a` as bytes, row by row, without a copy where there need be none.
pub(crate) fn with_bytes<T>(
    a: &Tensor<2>,
    f: impl FnOnce(DType, &[u8]) -> T,
) -> Result<T, LinalgError> {
    let a = a.clone().without_autodiff();
    #[cfg(feature = "flex")]
    if let Ok(flex) = a.clone().try_into_primitive::<burn::backend::Flex>() {
        let flex = flex.to_contiguous();
        let length = flex.layout().num_elements() * flex.dtype().size();
        if flex.layout().start_offset() == 0 && length <= flex.bytes().len() {
            return Ok(f(flex.dtype(), &flex.bytes()[..length]));
        }
    }
    let data = a.try_into_data().map_err(TensorReadError::from)?;
    Ok(f(data.dtype(), data.as_bytes()))
}

/// [`with_gradient`] where all arguments are of the backend `B`, with or without autodiff.
fn recorded<B, C>(f: &impl Function, x: &Tensor<3>, a: &[Tensor<1>]) -> Option<Tensor<3>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    match a.len() {
        0 => record::<B, C, 1>(f, x, a),
        1 => record::<B, C, 2>(f, x, a),
        2 => record::<B, C, 3>(f, x, a),
        3 => record::<B, C, 4>(f, x, a),
        4 => record::<B, C, 5>(f, x, a),
        _ => None,
    }
}

/// [`recorded`] with `N` arguments together.
fn record<B, C, const N: usize>(
    f: &impl Function,
    x: &Tensor<3>,
    a: &[Tensor<1>],
) -> Option<Tensor<3>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let node_x = lift::<B, C, 3>(x)?;
    let node_a: Vec<_> = a.iter().map(lift::<B, C, 1>).collect::<Option<_>>()?;
    let plain: Vec<_> = a.iter().map(|a| a.clone().without_autodiff()).collect();
    let y = f.forward(x.clone().without_autodiff(), &plain);
    let y = y.try_into_primitive::<B>().ok()?;
    let nodes: Vec<_> = [&node_x].into_iter().chain(&node_a).map(|node| node.node()).collect();
    let nodes = <[_; N]>::try_from(nodes).ok()?;
    let gradient = Gradient { f: PhantomData };
    let prepared = gradient.prepare::<C>(nodes).compute_bound().stateful();
    Some(Tensor::from_primitive::<Autodiff<B, C>>(match prepared {
        OpsKind::Tracked(mut tape) => {
            // The gradient by `x` needs `a` alone.
            let kept_x = node_a.iter().any(|a| a.is_tracked()).then(|| tape.checkpoint(&node_x));
            let kept_a = node_a.iter().map(|a| tape.checkpoint(a)).collect();
            tape.finish(Kept { f: f.clone(), dims: x.dims(), x: kept_x, a: kept_a }, y)
        }
        OpsKind::UnTracked(tape) => tape.finish(y),
    }))
}

/// `tensor` as a node of the tape; a constant becomes one.
fn lift<B, C, const D: usize>(tensor: &Tensor<D>) -> Option<FloatTensor<Autodiff<B, C>>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let constant = || tensor.clone().try_into_primitive::<B>().map(Autodiff::<B, C>::from_inner);
    tensor.clone().try_into_primitive::<Autodiff<B, C>>().or_else(|_| constant()).ok()
}

#[derive(Debug)]
struct Gradient<F> {
    f: PhantomData<F>,
}

/// What the tape keeps.
#[derive(Clone, Debug)]
struct Kept<F> {
    f: F,
    dims: [usize; 3],
    x: Option<NodeId>,
    a: Vec<NodeId>,
}

impl<B, F, const N: usize> Backward<B, N> for Gradient<F>
where
    B: Backend,
    F: Function,
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Kept<F>;

    fn backward(
        self,
        ops: Ops<Kept<F>, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let Kept { f, dims, x, a } = ops.state;
        let grad = Tensor::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let mut kept = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let a: Vec<_> =
            a.into_iter().map(|id| Tensor::<1>::from_primitive::<B>(kept(id))).collect();
        let x = match x {
            Some(x) => Tensor::from_primitive::<B>(kept(x)),
            None => Tensor::empty(dims, (&grad.device(), grad.dtype())),
        };
        let mut parents = ops.parents.into_iter();
        let parent_x = parents.next().flatten();
        let parents: Vec<_> = parents.collect();
        let wanted = [parent_x.is_some(), parents.iter().any(Option::is_some)];
        let (dx, da) = f.backward(x, &a, grad, wanted);
        if let Some((parent, dx)) = parent_x.zip(dx) {
            grads.register::<B>(parent.id, primitive(dx));
        }
        for (parent, da) in parents.into_iter().zip(da) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, primitive(da));
            }
        }
    }
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<D>) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    tensor.try_into_primitive::<B>().expect("operations stay on the backend of their arguments")
}
