//! Settings of [`AdapterOptimizer`](crate::AdapterOptimizer).

use serde::{Deserialize, Serialize};

/// The optimizer of parameters in a flat space, such as SODA's spectrum and LoRA's factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlatOptimizer {
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101).
    #[default]
    AdamW,
    /// AdamW with 8-bit moments (arXiv 2110.02861), for adapters with many parameters: LoRA and full
    /// fine-tuning.
    #[serde(rename = "adamw-8bit")]
    AdamW8bit,
    /// Prodigy (arXiv 2306.06101), which estimates the learning rate; the configured rate is a factor on the
    /// estimate.
    Prodigy,
}

/// Learning rates, weight decay and clipping.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterOptimizerConfig {
    /// The learning rate of factors on the Stiefel manifold (momentum Stiefel Adam).
    pub rotation_lr: f64,
    /// The optimizer of flat parameters.
    pub flat_optimizer: FlatOptimizer,
    /// The learning rate of flat parameters. With Prodigy it is a factor on the estimated rate, usually 1.
    pub flat_lr: f64,
    /// The decoupled weight decay of flat parameters.
    pub flat_weight_decay: f64,
    /// The largest norm of the gradient over all parameters; a larger gradient is scaled down to it.
    pub max_grad_norm: f64,
    /// Whether the learning rate rises from zero in the first steps. Prodigy then leaves the schedule's
    /// factor out of the denominator of its estimate (`safeguard_warmup` of prodigyopt). Other optimizers
    /// ignore it.
    pub lr_warmup: bool,
}

impl Default for AdapterOptimizerConfig {
    fn default() -> Self {
        Self {
            rotation_lr: 5e-3,
            flat_optimizer: FlatOptimizer::default(),
            flat_lr: 5e-3,
            flat_weight_decay: 1e-4,
            max_grad_norm: 1.0,
            lr_warmup: false,
        }
    }
}
