//! Matrix products.
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
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

use crate::backend::Kernels;
use crate::fallback::transposed;

/// The matrix product of `lhs` `[.., m, k]` and `rhs` `[.., k, n]`: `[.., m, n]`. Leading axes of size 1
/// broadcast.
///
/// On CUDA the product goes to cuBLAS if the machine has it. There float32 stays float32 (no TF32), and half
/// precision is summed in float32.
///
/// # Panics
/// If the shapes do not fit.
///
/// ```
/// use burn::tensor::{Device, Tensor};
///
/// let device = Device::default();
/// let a = Tensor::<2>::ones([2, 3], &device);
/// let b = Tensor::<2>::ones([3, 4], &device);
/// assert_eq!(soda_kernels::matmul(a, b).dims(), [2, 4]);
/// ```
#[track_caller]
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    let (l, r) = (lhs.dims(), rhs.dims());
    let fits = D >= 2
        && l[D - 1] == r[D - 2]
        && l[..D - 2].iter().zip(&r[..D - 2]).all(|(&a, &b)| a == b || a == 1 || b == 1);
    assert!(fits, "matmul: shapes {l:?} and {r:?} do not fit");
    let broadcast = |x: Tensor<D>, other: &[usize; D]| {
        let mut dims = x.dims();
        for (size, &other) in dims[..D - 2].iter_mut().zip(other) {
            *size = (*size).max(other);
        }
        if dims == x.dims() { x } else { x.expand(dims) }
    };
    let (lhs, rhs) = (broadcast(lhs, &r), broadcast(rhs, &l));
    Tensor::from_dispatch(Dispatch::matmul(lhs.into_dispatch(), rhs.into_dispatch()))
}

/// The sum `lhs rhs + addend` for `lhs` `[m, k]`, `rhs` `[k, n]` and `addend` `[m, n]`.
///
/// PyTorch's `addmm` takes the addend first. The result replaces `addend` in memory if nothing else holds
/// that tensor.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn addmm(lhs: Tensor<2>, rhs: Tensor<2>, addend: Tensor<2>) -> Tensor<2> {
    let ([m, k], [rows, n]) = (lhs.dims(), rhs.dims());
    assert!(
        k == rows && addend.dims() == [m, n],
        "addmm: shapes {:?}, {:?} and {:?} do not fit",
        lhs.dims(),
        rhs.dims(),
        addend.dims()
    );
    let [lhs, rhs, addend] = [lhs, rhs, addend].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::addmm(lhs, rhs, addend))
}

#[derive(Debug)]
struct Matmul;

/// Records [`Kernels::matmul`] on the tape. A factor is saved only if the other factor has a gradient.
pub(crate) fn record<B: Kernels, C: CheckpointStrategy>(
    lhs: FloatTensor<Autodiff<B, C>>,
    rhs: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (lhs_tracked, rhs_tracked) = (lhs.is_tracked(), rhs.is_tracked());
    let nodes = [lhs.node(), rhs.node()];
    match Backward::<B, 2>::prepare::<C>(Matmul, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let lhs_saved = rhs_tracked.then(|| prep.checkpoint(&lhs));
            let rhs_saved = lhs_tracked.then(|| prep.checkpoint(&rhs));
            let y = B::matmul(lhs.into_primitive(), rhs.into_primitive());
            prep.finish((lhs_saved, rhs_saved), y)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::matmul(lhs.into_primitive(), rhs.into_primitive()))
        }
    }
}

impl<B: Kernels> Backward<B, 2> for Matmul {
    type State = (Option<NodeId>, Option<NodeId>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dc = grads.consume::<B>(&ops.node);
        let mut saved = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [lhs_node, rhs_node] = ops.parents;
        if let (Some(node), Some(rhs)) = (lhs_node, ops.state.1) {
            grads.register::<B>(node.id, B::matmul(dc.clone(), transposed::<B>(saved(rhs))));
        }
        if let (Some(node), Some(lhs)) = (rhs_node, ops.state.0) {
            grads.register::<B>(node.id, B::matmul(transposed::<B>(saved(lhs)), dc));
        }
    }
}
