//! What burn 0.22 gives only to who names a backend, in the one file of this crate that does: gradients
//! of one's own (`Backward<B, N>`), and whether a tensor lies in this process' memory.
//!
//! The crate's features say which backends are compiled in. On any other [`apply`] lets burn's tape
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
use soda_kernels::{cat, split};

use crate::error::LinalgError;

/// A function of a large tensor and of a small one.
pub(crate) trait Function: Clone + Debug + Send + 'static {
    fn forward(&self, x: Tensor<3>, a: Tensor<1>) -> Tensor<3>;

    /// From the arguments and the gradient by the result: the gradients by `x` and by `a`, each where it
    /// is wanted. Off the tape.
    fn backward(
        &self,
        x: Tensor<3>,
        a: Tensor<1>,
        grad: Tensor<3>,
        wanted: [bool; 2],
    ) -> (Option<Tensor<3>>, Option<Tensor<1>>);
}

/// `f(x, a)`; on the tape, where an argument is, it keeps the two arguments and nothing else.
pub(crate) fn apply(f: &impl Function, x: Tensor<3>, a: Tensor<1>) -> Tensor<3> {
    if !x.is_autodiff() && !a.is_autodiff() {
        return f.forward(x, a);
    }
    macro_rules! on {
        ($backend:ty) => {
            if let Some(y) = record::<$backend, NoCheckpointing>(f, &x, &a)
                .or_else(|| record::<$backend, BalancedCheckpointing>(f, &x, &a))
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

/// Vectors one after the other, on the tape in one go for up to four of them: burn copies one at a time, both ways.
pub(crate) fn join(parts: Vec<Tensor<1>>) -> Tensor<1> {
    if let Ok([part]) = <[_; 1]>::try_from(parts.clone()) {
        return part;
    }
    if parts.iter().all(|part| !part.is_autodiff()) {
        return cat(parts);
    }
    macro_rules! on {
        ($backend:ty) => {
            if let Some(all) = joined::<$backend, NoCheckpointing>(&parts)
                .or_else(|| joined::<$backend, BalancedCheckpointing>(&parts))
            {
                return all;
            }
        };
    }
    #[cfg(feature = "flex")]
    on!(burn::backend::Flex);
    #[cfg(feature = "cube")]
    on!(burn::backend::Cube);
    Tensor::cat(parts, 0)
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

/// [`apply`] where both arguments are of the backend `B`, with or without autodiff.
fn record<B, C>(f: &impl Function, x: &Tensor<3>, a: &Tensor<1>) -> Option<Tensor<3>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let (node_x, node_a) = (lift::<B, C, 3>(x)?, lift::<B, C, 1>(a)?);
    let y = f.forward(x.clone().without_autodiff(), a.clone().without_autodiff());
    let y = y.try_into_primitive::<B>().ok()?;
    let gradient = Gradient { f: PhantomData };
    let prepared = gradient.prepare::<C>([node_x.node(), node_a.node()]).compute_bound().stateful();
    Some(Tensor::from_primitive::<Autodiff<B, C>>(match prepared {
        OpsKind::Tracked(mut tape) => {
            // The gradient by `x` needs `a` alone.
            let kept_x = a.is_tracked().then(|| tape.checkpoint(&node_x));
            let kept =
                Kept { f: f.clone(), dims: x.dims(), x: kept_x, a: tape.checkpoint(&node_a) };
            tape.finish(kept, y)
        }
        OpsKind::UnTracked(tape) => tape.finish(y),
    }))
}

/// [`join`] where all parts are of the backend `B`.
fn joined<B, C>(parts: &[Tensor<1>]) -> Option<Tensor<1>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    match parts {
        [a, b] => joined_as::<B, C, 2>([a, b]),
        [a, b, c] => joined_as::<B, C, 3>([a, b, c]),
        [a, b, c, d] => joined_as::<B, C, 4>([a, b, c, d]),
        _ => None,
    }
}

fn joined_as<B, C, const N: usize>(parts: [&Tensor<1>; N]) -> Option<Tensor<1>>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let nodes: Option<Vec<_>> = parts.iter().map(|part| lift::<B, C, 1>(part)).collect();
    let nodes = <[_; N]>::try_from(nodes?).ok()?.map(|node| node.node());
    let lengths = parts.map(|part| part.dims()[0]);
    let all = cat(parts.iter().map(|part| (*part).clone().without_autodiff()).collect());
    let all = all.try_into_primitive::<B>().ok()?;
    let prepared = Join.prepare::<C>(nodes).compute_bound().stateful();
    Some(Tensor::from_primitive::<Autodiff<B, C>>(match prepared {
        OpsKind::Tracked(tape) => tape.finish(lengths, all),
        OpsKind::UnTracked(tape) => tape.finish(all),
    }))
}

#[derive(Debug)]
struct Join;

impl<B, const N: usize> Backward<B, N> for Join
where
    B: Backend,
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = [usize; N];

    fn backward(self, ops: Ops<[usize; N], N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = Tensor::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let parts = split(grad, &ops.state);
        for (parent, part) in ops.parents.into_iter().zip(parts) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, primitive(part));
            }
        }
    }
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
    a: NodeId,
}

impl<B, F> Backward<B, 2> for Gradient<F>
where
    B: Backend,
    F: Function,
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Kept<F>;

    fn backward(
        self,
        ops: Ops<Kept<F>, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let Kept { f, dims, x, a } = ops.state;
        let grad = Tensor::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let a = Tensor::from_primitive::<B>(checkpointer.retrieve_node_output(a));
        let x = match x {
            Some(x) => Tensor::from_primitive::<B>(checkpointer.retrieve_node_output(x)),
            None => Tensor::empty(dims, (&grad.device(), grad.dtype())),
        };
        let [parent_x, parent_a] = ops.parents;
        let (dx, da) = f.backward(x, a, grad, [parent_x.is_some(), parent_a.is_some()]);
        if let Some((parent, dx)) = parent_x.zip(dx) {
            grads.register::<B>(parent.id, primitive(dx));
        }
        if let Some((parent, da)) = parent_a.zip(da) {
            grads.register::<B>(parent.id, primitive(da));
        }
    }
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<D>) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    tensor.try_into_primitive::<B>().expect("operations stay on the backend of their arguments")
}
