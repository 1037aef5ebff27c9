//! A matrix times a diagonal one whose entries are kept from below: the shift of a spectrum.
//!
//! ```text
//! y = l diag(g)      g = max(gain, least)      dl = dy diag(g)      dgain = colsum(l dy) where gain > least
//! ```

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Autodiff, Dispatch, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{FloatDType, Shape, Tensor};

use crate::backend::Kernels;

/// `l diag(max(gain, least))` for `l` `[rows, k]` and vectors `[k]`, of which `least` is constant and both may be of a finer type
/// than `l`, whose the result is.
///
/// # Panics
/// If a vector has not as many entries as `l` has columns.
#[track_caller]
pub fn scale_columns(l: Tensor<2>, gain: Tensor<1>, least: Tensor<1>) -> Tensor<2> {
    let k = l.dims()[1];
    assert_eq!([gain.dims()[0], least.dims()[0]], [k, k], "scale_columns: vectors for {k} columns");
    Tensor::from_dispatch(Dispatch::columns(
        l.into_dispatch(),
        gain.into_dispatch(),
        least.into_dispatch(),
    ))
}

/// The gradient of [`scale_columns`] by the gain, from `l` and that of its value, `dy` `[rows, k]`; off the tape.
///
/// # Panics
/// Where sizes do not fit.
#[track_caller]
pub fn scale_columns_gradient(
    l: Tensor<2>,
    dy: Tensor<2>,
    gain: Tensor<1>,
    least: Tensor<1>,
) -> Tensor<1> {
    let k = l.dims()[1];
    let fits = l.dims() == dy.dims() && [gain.dims()[0], least.dims()[0]] == [k, k];
    assert!(fits, "scale_columns_gradient: {:?} and {:?}, vectors", l.dims(), dy.dims());
    Tensor::from_dispatch(Dispatch::columns_gradient(
        l.into_dispatch(),
        dy.into_dispatch(),
        gain.into_dispatch(),
        least.into_dispatch(),
    ))
}

#[derive(Debug)]
struct Columns;

/// [`Kernels::columns`] on the tape.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    l: FloatTensor<Autodiff<B, C>>,
    gain: FloatTensor<Autodiff<B, C>>,
    least: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [l.node(), gain.node()];
    let least = least.into_primitive();
    match Backward::<B, 2>::prepare::<C>(Columns, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let ids = [prep.checkpoint(&l), prep.checkpoint(&gain)];
            let y = B::columns(l.into_primitive(), gain.into_primitive(), least.clone());
            prep.finish((ids, least), y)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::columns(l.into_primitive(), gain.into_primitive(), least))
        }
    }
}

impl<B: Kernels> Backward<B, 2> for Columns {
    type State = ([NodeId; 2], FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let ([l, gain], least) = ops.state;
        let gain: FloatTensor<B> = checkpointer.retrieve_node_output(gain);
        let l: FloatTensor<B> = checkpointer.retrieve_node_output(l);
        let [by_l, by_gain] = ops.parents;
        if let Some(node) = by_l {
            let dl = B::columns(dy.clone(), gain.clone(), least.clone());
            grads.register::<B>(node.id, dl);
        }
        if let Some(node) = by_gain {
            grads.register::<B>(node.id, B::columns_gradient(l, dy, gain, least));
        }
    }
}

/// Of burn's operations.
pub(crate) fn forward<B: Kernels>(
    l: FloatTensor<B>,
    gain: FloatTensor<B>,
    least: FloatTensor<B>,
) -> FloatTensor<B> {
    let k = gain.shape().num_elements();
    let kept = B::float_mask_where(gain.clone(), at_least::<B>(gain, &least), least);
    let kept = B::float_reshape(cast::<B>(kept, &l), Shape::from([1, k]));
    B::float_mul(l, kept)
}

/// Its gradient by the gain.
pub(crate) fn gradient<B: Kernels>(
    l: FloatTensor<B>,
    dy: FloatTensor<B>,
    gain: FloatTensor<B>,
    least: FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = gain.shape();
    let product = B::float_mul(cast::<B>(l, &gain), cast::<B>(dy, &gain));
    let sums = B::float_reshape(B::float_sum_dim(product, 0), shape);
    B::float_mask_fill(sums, at_least::<B>(gain, &least), 0.0.into())
}

/// Where the gain is not more than its least.
fn at_least<B: Kernels>(gain: FloatTensor<B>, least: &FloatTensor<B>) -> BoolTensor<B> {
    let dtype = get_or_init_device_settings::<B>(&gain.device()).bool_dtype;
    B::float_lower_equal(gain, least.clone(), dtype)
}

/// `x` in the type of `like`.
fn cast<B: Kernels>(x: FloatTensor<B>, like: &FloatTensor<B>) -> FloatTensor<B> {
    if x.dtype() == like.dtype() {
        return x;
    }
    B::float_cast(x, FloatDType::from(like.dtype()))
}
