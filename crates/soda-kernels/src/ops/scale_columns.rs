//! A matrix times a diagonal matrix whose entries are clamped from below: the shifted spectrum of SODA.
//!
//! ```text
//! y = l diag(g)      g = max(gain, floor)      dl = dy diag(g)      dgain = colsum(l dy) where gain > floor
//! ```

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

use crate::backend::Kernels;

/// The matrix `l diag(max(gain, floor))` for `l` `[rows, k]` and vectors `gain` and `floor` `[k]`.
///
/// The result has the dtype of `l`; the vectors may have a finer one. `floor` is a constant and gets no
/// gradient.
///
/// # Panics
/// If a vector does not have one entry for each column of `l`.
#[track_caller]
pub fn scale_columns(l: Tensor<2>, gain: Tensor<1>, floor: Tensor<1>) -> Tensor<2> {
    let k = l.dims()[1];
    assert_eq!(
        [gain.dims()[0], floor.dims()[0]],
        [k, k],
        "scale_columns: gain and floor have one entry for each of the {k} columns"
    );
    Tensor::from_dispatch(Dispatch::scale_columns(
        l.into_dispatch(),
        gain.into_dispatch(),
        floor.into_dispatch(),
    ))
}

/// The gradient of [`scale_columns`] by the gain `[k]`, from `l` and the gradient `dy` `[rows, k]` of its
/// value.
///
/// The tensors are off the autodiff tape.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn scale_columns_gradient(
    l: Tensor<2>,
    dy: Tensor<2>,
    gain: Tensor<1>,
    floor: Tensor<1>,
) -> Tensor<1> {
    let k = l.dims()[1];
    let fits = l.dims() == dy.dims() && [gain.dims()[0], floor.dims()[0]] == [k, k];
    assert!(
        fits,
        "scale_columns_gradient: shapes {:?}, {:?}, {:?} and {:?} do not fit",
        l.dims(),
        dy.dims(),
        gain.dims(),
        floor.dims()
    );
    Tensor::from_dispatch(Dispatch::scale_columns_gradient(
        l.into_dispatch(),
        dy.into_dispatch(),
        gain.into_dispatch(),
        floor.into_dispatch(),
    ))
}

#[derive(Debug)]
struct ScaleColumns;

/// Records [`Kernels::scale_columns`] on the tape.
pub(crate) fn record<B: Kernels, C: CheckpointStrategy>(
    l: FloatTensor<Autodiff<B, C>>,
    gain: FloatTensor<Autodiff<B, C>>,
    floor: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [l.node(), gain.node()];
    let floor = floor.into_primitive();
    match Backward::<B, 2>::prepare::<C>(ScaleColumns, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let ids = [prep.checkpoint(&l), prep.checkpoint(&gain)];
            let y = B::scale_columns(l.into_primitive(), gain.into_primitive(), floor.clone());
            prep.finish((ids, floor), y)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::scale_columns(l.into_primitive(), gain.into_primitive(), floor))
        }
    }
}

impl<B: Kernels> Backward<B, 2> for ScaleColumns {
    type State = ([NodeId; 2], FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let ([l, gain], floor) = ops.state;
        let gain: FloatTensor<B> = checkpointer.retrieve_node_output(gain);
        let l: FloatTensor<B> = checkpointer.retrieve_node_output(l);
        let [l_node, gain_node] = ops.parents;
        if let Some(node) = l_node {
            let dl = B::scale_columns(dy.clone(), gain.clone(), floor.clone());
            grads.register::<B>(node.id, dl);
        }
        if let Some(node) = gain_node {
            grads.register::<B>(node.id, B::scale_columns_gradient(l, dy, gain, floor));
        }
    }
}
