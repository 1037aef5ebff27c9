//! Self-attention with rotary positions, normalised queries and keys, and keys that heads share.
//!
//! Several heads of queries read one head of keys and values (grouped-query attention, Ainslie et al., arXiv
//! 2305.13245). Queries and keys are normalised in each head before they are rotated.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm};
use burn::tensor::{Bool, Device, Tensor};

use super::config::Qwen3Config;
use super::norm::norm;
use super::rotary::Rotary;
use crate::layers::{attend, project, project_residual, rms_norm};

/// Grouped-query self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query projection.
    pub q_proj: Linear,
    /// Key projection.
    pub k_proj: Linear,
    /// Value projection.
    pub v_proj: Linear,
    /// Output projection.
    pub o_proj: Linear,
    /// Norm of the queries of a head.
    pub q_norm: RmsNorm,
    /// Norm of the keys of a head.
    pub k_norm: RmsNorm,
    /// Number of heads of the queries.
    pub heads: usize,
    /// Number of heads of the keys and values.
    pub shared_heads: usize,
}

impl Attention {
    pub(super) fn new(config: &Qwen3Config, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let (width, head) = (config.hidden_size, config.head_dim);
        let (heads, shared_heads) = (config.num_attention_heads, config.key_value_heads());
        Self {
            q_proj: linear(width, heads * head),
            k_proj: linear(width, shared_heads * head),
            v_proj: linear(width, shared_heads * head),
            o_proj: linear(heads * head, width),
            q_norm: norm(head, config, device),
            k_norm: norm(head, config, device),
            heads,
            shared_heads,
        }
    }

    /// Attends within `x` `[b, n, width]` and adds `residual` of the same shape.
    ///
    /// `mask` is `[b, 1, n, n]` and true where a query must not see a key.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        residual: Tensor<3>,
        rotary: &Rotary,
        mask: &Tensor<4, Bool>,
    ) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let split = |layer: &Linear, heads: usize| {
            let x = project(layer, x.clone());
            let width = x.dims()[2] / heads;
            x.reshape([batch, tokens, heads, width])
        };
        let rotated = |x: Tensor<4>, norm| rotary.apply(rms_norm(norm, x).swap_dims(1, 2));
        let q = rotated(split(&self.q_proj, self.heads), &self.q_norm);
        let k = rotated(split(&self.k_proj, self.shared_heads), &self.k_norm);
        let v = split(&self.v_proj, self.shared_heads).swap_dims(1, 2);
        let out = attend(q, self.repeated(k), self.repeated(v), Some(mask));
        let [_, heads, _, width] = out.dims();
        let out = out.swap_dims(1, 2).reshape([batch, tokens, heads * width]);
        project_residual(&self.o_proj, out, Some(residual))
    }

    /// Repeats each head of `x` `[b, shared, n, d]` for the queries that read it: `[b, heads, n, d]`.
    fn repeated(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, shared, tokens, width] = x.dims();
        let group = self.heads / shared;
        if group == 1 {
            return x;
        }
        let x = x.reshape([batch, shared, 1, tokens, width]);
        x.expand([batch, shared, group, tokens, width]).reshape([batch, self.heads, tokens, width])
    }
}
