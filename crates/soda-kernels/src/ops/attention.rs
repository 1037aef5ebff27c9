//! Scaled dot-product attention.
//!
//! ```text
//! P = softmax(s q k')      o = P v
//! dv = P' do      dP = do v'      dS = P ∘ (dP - rowsum(P ∘ dP))      dq = s dS k      dk = s dS' q
//! ```
//!
//! The attention weights `P` have `heads · n · m` entries, by far the largest map of a network that attends
//! over pixels. A backend saves them if they are few. Otherwise the backward pass computes them again, which
//! is the first half of FlashAttention (Dao et al., arXiv 2205.14135).
//!
//! The second half, tiles that never
//! leave the chip, is in `cpu/attention.rs` and `cuda/src/attention/`.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

use crate::backend::{KernelGradients, Kernels};

/// The attention `softmax(q k' / sqrt(d)) v` for `q` `[b, heads, n, d]` and `k`, `v` `[b, heads, m, d]`.
///
/// The result is `[b, heads, n, d]`.
///
/// # Panics
/// If the shapes do not fit.
///
/// ```
/// use burn::tensor::{Device, Tensor};
///
/// let device = Device::default();
/// let q = Tensor::<4>::ones([1, 2, 3, 8], &device);
/// let k = Tensor::<4>::ones([1, 2, 5, 8], &device);
/// let v = k.clone();
/// assert_eq!(soda_kernels::attention(q, k, v).dims(), [1, 2, 3, 8]);
/// ```
#[track_caller]
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [batch, heads, _, d] = q.dims();
    assert!(
        k.dims() == v.dims() && k.dims()[..2] == [batch, heads] && k.dims()[3] == d,
        "attention: shapes q {:?}, k {:?} and v {:?} do not fit",
        q.dims(),
        k.dims(),
        v.dims()
    );
    let scale = (d as f64).powf(-0.5);
    Tensor::from_dispatch(Dispatch::attention_forward(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        scale,
    ))
}

#[derive(Debug)]
struct Attention;

/// The state of the backward pass.
#[derive(Clone, Debug)]
struct Saved<P> {
    qkv: [NodeId; 3],
    /// The value, and the tensor that the backend saved beside it.
    saved: Option<[P; 2]>,
    scale: f64,
}

/// Records [`Kernels::attention_forward`] on the tape.
pub(crate) fn record<B: KernelGradients, C: CheckpointStrategy>(
    q: FloatTensor<Autodiff<B, C>>,
    k: FloatTensor<Autodiff<B, C>>,
    v: FloatTensor<Autodiff<B, C>>,
    scale: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [q.node(), k.node(), v.node()];
    match Backward::<B, 3>::prepare::<C>(Attention, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let qkv = [prep.checkpoint(&q), prep.checkpoint(&k), prep.checkpoint(&v)];
            let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
            let (out, saved) = B::attention_saving(q, k, v, scale);
            let saved = saved.map(|saved| [out.clone(), saved]);
            prep.finish(Saved { qkv, saved, scale }, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::attention_forward(
            q.into_primitive(),
            k.into_primitive(),
            v.into_primitive(),
            scale,
        )),
    }
}

impl<B: KernelGradients> Backward<B, 3> for Attention {
    type State = Saved<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let Saved { qkv, saved, scale } = ops.state;
        let qkv = qkv.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (dq, dk, dv) = B::attention_gradient(qkv, saved, grad, scale, wanted);
        for (node, gradient) in ops.parents.into_iter().zip([dq, dk, dv]) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}
