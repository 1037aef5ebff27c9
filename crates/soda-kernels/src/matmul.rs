//! Matrix products, with the two products that are their gradient.
//!
//! ```text
//! C = A B      dA = dC B'      dB = A' dC
//! ```

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;

use crate::backend::Kernels;
use crate::plus::plus;

/// `lhs rhs` for `[.., m, k]` and `[.., k, n]`: `[.., m, n]`. A leading axis of one goes with any.
///
/// # Panics
/// Where sizes do not fit.
#[track_caller]
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    let (l, r) = (lhs.dims(), rhs.dims());
    let fits = D >= 2
        && l[D - 1] == r[D - 2]
        && l[..D - 2].iter().zip(&r[..D - 2]).all(|(&a, &b)| a == b || a == 1 || b == 1);
    assert!(fits, "matmul: {l:?} and {r:?} do not fit");
    let spread = |x: Tensor<D>, other: &[usize; D]| {
        let mut dims = x.dims();
        for (size, &other) in dims[..D - 2].iter_mut().zip(other) {
            *size = (*size).max(other);
        }
        if dims == x.dims() { x } else { x.expand(dims) }
    };
    let (lhs, rhs) = (spread(lhs, &r), spread(rhs, &l));
    Tensor::from_dispatch(Dispatch::product(lhs.into_dispatch(), rhs.into_dispatch()))
}

/// `lhs rhs + to` for `[m, k]`, `[k, n]` and `[m, n]`, of which the last is written over where nobody else holds it.
///
/// # Panics
/// Where sizes do not fit.
#[track_caller]
pub fn addmm(lhs: Tensor<2>, rhs: Tensor<2>, to: Tensor<2>) -> Tensor<2> {
    let ([m, k], [rows, n]) = (lhs.dims(), rhs.dims());
    assert!(k == rows && to.dims() == [m, n], "addmm: sizes do not fit");
    let [lhs, rhs, to] = [lhs, rhs, to].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::product_onto(lhs, rhs, to))
}

/// Whether [`matmul`] takes float32 on the device of `x` to a vendor's library, which keeps all its digits
/// at the full speed of the device. burn's own kernels may round the factors to TF32.
pub fn has_vendor_blas<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "cuda")]
    return x
        .clone()
        .without_autodiff()
        .try_into_primitive::<burn::backend::Cube>()
        .is_ok_and(|x| crate::cuda::takes_products(&x));
    #[cfg(not(feature = "cuda"))]
    {
        // No tensor lies on a device of the kind.
        let _ = x;
        false
    }
}

/// `x w + b` for tokens `[.., in]`, a weight `[in, out]` as burn stores it, and a bias `[out]`.
///
/// All tokens are rows of one matrix: one large product is faster than one for each sample.
///
/// # Panics
/// Where sizes do not fit.
#[track_caller]
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let y = matmul(x.reshape([rows, dims[D - 1]]), weight);
    dims[D - 1] = y.dims()[1];
    plus(y.reshape(dims), bias.map(|bias| bias.unsqueeze()), None)
}

#[derive(Debug)]
struct Product;

/// [`Kernels::product`] on the tape. A factor is kept only where the other one asks for a gradient.
pub(crate) fn tracked<B: Kernels, C: CheckpointStrategy>(
    lhs: FloatTensor<Autodiff<B, C>>,
    rhs: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (of_lhs, of_rhs) = (lhs.is_tracked(), rhs.is_tracked());
    let nodes = [lhs.node(), rhs.node()];
    match Backward::<B, 2>::prepare::<C>(Product, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let state =
                (of_rhs.then(|| prep.checkpoint(&lhs)), of_lhs.then(|| prep.checkpoint(&rhs)));
            prep.finish(state, B::product(lhs.into_primitive(), rhs.into_primitive()))
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::product(lhs.into_primitive(), rhs.into_primitive()))
        }
    }
}

impl<B: Kernels> Backward<B, 2> for Product {
    type State = (Option<NodeId>, Option<NodeId>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dc = grads.consume::<B>(&ops.node);
        let mut kept = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [lhs_node, rhs_node] = ops.parents;
        if let (Some(node), Some(rhs)) = (lhs_node, ops.state.1) {
            grads.register::<B>(node.id, B::product(dc.clone(), transposed::<B>(kept(rhs))));
        }
        if let (Some(node), Some(lhs)) = (rhs_node, ops.state.0) {
            grads.register::<B>(node.id, B::product(transposed::<B>(kept(lhs)), dc));
        }
    }
}

/// The last two axes exchanged.
pub(crate) fn transposed<B: Backend>(matrix: FloatTensor<B>) -> FloatTensor<B> {
    let rank = matrix.rank();
    B::float_swap_dims(matrix, rank - 2, rank - 1)
}
