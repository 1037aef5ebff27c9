//! Optimizers for the adapters of [`soda_adapters`].
//!
//! An adapter has two kinds of trainable parameters. Factors of rotations are points on the Stiefel manifold;
//! all other parameters are in a flat space. [`AdapterOptimizer`] moves the first by momentum Stiefel Adam,
//! the second by a [`FlatOptimizer`], and clips one gradient norm over both.
//!
//! | module | contents |
//! |---|---|
//! | `config` | [`AdapterOptimizerConfig`], [`FlatOptimizer`]: learning rates, decay, clipping |
//! | `gradients` | [`AdapterGradients`]: gradients by parameter path, which can be added |
//! | `param_group` | [`ParamGroup`]: parameters with their own learning rate |
//! | `batched_params` | [`BatchedParams`]: one tensor for all parameters of one shape |
//! | `adapter_optimizer` | [`AdapterOptimizer`]: the step |
//! | `batched_optimizer` | an element-wise burn optimizer over batched parameters |
//! | `adamw_8bit` | [`AdamW8bit`]: AdamW with 8-bit moments |
//! | `prodigy` | Prodigy: AdamW with an estimated learning rate |
//! | `ema` | [`Ema`]: an exponential moving average of the parameters |
//! | `state` | [`OptimizerState`]: moments and step counts to store |
//! | `error` | [`OptimError`] |
//!
//! The crate knows no network. The caller decides which [`ParamGroup`] a parameter belongs to.
//!
//! # Example
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Tensor};
//! use soda_adapters::{Method, Targets, lora::LoraConfig};
//! use soda_optim::{AdapterGradients, AdapterOptimizer, AdapterOptimizerConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::default();
//! let layer: Linear = LinearConfig::new(8, 8).init(&device);
//! let method = LoraConfig::default();
//! let plan = method.plan(&Targets(vec![r"weight$".to_owned()]), &layer)?;
//! let mut layer = plan.attach(layer).train();
//!
//! let mut optimizer = AdapterOptimizer::new(&AdapterOptimizerConfig::default());
//! let x = Tensor::from_inner(Tensor::<2>::ones([4, 8], &device));
//! for _ in 0..3 {
//!     let loss = layer.forward(x.clone()).square().mean();
//!     let gradients = AdapterGradients::collect(&layer, &loss.backward());
//!     layer = optimizer.step(&method, layer, gradients, 1.0);
//! }
//! # Ok(())
//! # }
//! ```

mod adamw_8bit;
mod adapter_optimizer;
mod batched_optimizer;
mod batched_params;
mod config;
mod ema;
mod error;
mod gradients;
mod param_group;
mod prodigy;
mod state;

pub use adamw_8bit::{AdamW8bit, AdamW8bitState};
pub use adapter_optimizer::AdapterOptimizer;
pub use batched_params::{BatchedParams, ParamBatch, trainable_params};
pub use config::{AdapterOptimizerConfig, FlatOptimizer};
pub use ema::Ema;
pub use error::OptimError;
pub use gradients::{AdapterGradients, GradientCollector};
pub use param_group::ParamGroup;
pub use state::OptimizerState;
