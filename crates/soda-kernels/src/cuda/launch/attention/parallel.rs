//! Attention and a gated MLP side by side: each kernel reads its part of the common input, and writes its
//! part of the value or of the gradient.

use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::Attention;
use super::heads::{ELEMENTS_PER_READ, Heads};
use super::rms_norm_rotary::NormRotary;
use crate::cuda::launch::swiglu::{self, Columns};
use crate::cuda::support::{empty, empty_like};
use crate::fallback::parallel_attention::ParallelOptions;

/// The kernels for an input, and its sizes.
pub(crate) struct ParallelAttention {
    attention: Attention,
    /// The norms of queries and keys.
    norms: [NormRotary; 2],
    /// Samples, tokens, heads and channels of a head.
    sizes: [usize; 4],
    /// The inner channels of the MLP.
    inner: usize,
}

impl ParallelAttention {
    /// For an input `[b, n, 3 c + 2 i]`. `None` if no kernel takes it.
    pub(crate) fn new(x: &CubeTensor, options: &ParallelOptions<CubeTensor>) -> Option<Self> {
        let ([batch, tokens, all], width) = (x.shape().dims(), options.width());
        let sizes = [batch, tokens, options.heads, width];
        let inner = (all - 3 * options.heads * width) / 2;
        let aligned = inner.is_multiple_of(ELEMENTS_PER_READ);
        let same = options.gammas.iter().all(|gamma| gamma.dtype == x.dtype);
        if !(aligned && same) {
            return None;
        }
        let heads = [batch, options.heads, tokens, tokens, width];
        let attention = Attention::of_sizes(x, heads, options.scale())?;
        let [cos, sin] = &options.rotation;
        let norm = |index: usize| {
            let constants = [options.gammas[index].clone(), cos.clone(), sin.clone()];
            NormRotary::new(sizes, constants, options.eps)
        };
        Some(Self { attention, norms: [norm(0)?, norm(1)?], sizes, inner })
    }

    /// The value `[b, n, c + i]`, and the log-sum-exp of each query if `saves`.
    pub(crate) fn forward(&self, x: CubeTensor, saves: bool) -> (CubeTensor, Option<CubeTensor>) {
        let x = into_contiguous(x);
        let channels = self.channels();
        let [batch, tokens, ..] = self.sizes;
        let y = empty(&x, vec![batch, tokens, channels + self.inner], x.dtype);
        let logsumexp = saves.then(|| self.attention.empty_logsumexp(&x));
        let [q, k] = self.rotated(&x);
        let qkv = [&q, &k, &self.part(&x, 2)];
        self.attention.forward_into(qkv, &self.part(&y, 0), logsumexp.as_ref());
        let mlp = Columns { tensor: &x, first: 3 * channels };
        swiglu::forward_into(mlp, Columns { tensor: &y, first: channels }, self.inner);
        (y, logsumexp)
    }

    /// The gradient by the input, from the value `y`, its gradient `dy` and its log-sum-exp.
    pub(crate) fn gradient(
        &self,
        x: CubeTensor,
        [y, dy]: [CubeTensor; 2],
        logsumexp: &CubeTensor,
    ) -> CubeTensor {
        let [x, dy] = [x, dy].map(into_contiguous);
        let (channels, dx) = (self.channels(), empty_like(&x));
        let [q, k] = self.rotated(&x);
        let gradients = [0, 1].map(|_| Heads::of_rows(&self.empty_heads(&x)));
        let [dq, dk] = &gradients;
        let values = [&self.part(&dy, 0), &self.part(&y, 0)];
        let qkv = [&q, &k, &self.part(&x, 2)];
        self.attention.gradient_into(qkv, values, logsumexp, [dq, dk, &self.part(&dx, 2)]);
        for (index, gradient) in gradients.iter().enumerate() {
            let (x, dx) = (self.part(&x, index), self.part(&dx, index));
            self.norms[index].gradient_into(&x, gradient, &dx);
        }
        let [x, dx] = [&x, &dx].map(|tensor| Columns { tensor, first: 3 * channels });
        swiglu::gradient_into(x, Columns { tensor: &dy, first: channels }, dx, self.inner);
        dx.tensor.clone()
    }

    /// The channels of all heads.
    fn channels(&self) -> usize {
        self.sizes[2] * self.sizes[3]
    }

    /// The queries (0), keys (1) or values (2) of an input, or the values of attention (0) of an output.
    fn part(&self, tensor: &CubeTensor, index: usize) -> Heads {
        Heads::of_channels(tensor, index * self.channels(), self.sizes[3])
    }

    /// Queries and keys, normalized and rotated.
    fn rotated(&self, x: &CubeTensor) -> [Heads; 2] {
        [0, 1].map(|index| {
            let heads = Heads::of_rows(&self.empty_heads(x));
            self.norms[index].forward_into(&self.part(x, index), &heads);
            heads
        })
    }

    /// An uninitialized `[b, n, heads, d]`.
    fn empty_heads(&self, like: &CubeTensor) -> CubeTensor {
        empty(like, self.sizes.to_vec(), like.dtype)
    }
}
