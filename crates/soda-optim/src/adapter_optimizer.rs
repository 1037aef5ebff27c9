//! The optimizer of an adapted module: momentum Stiefel Adam on factors of rotations, a [`FlatOptimizer`] on
//! all other parameters, and one global gradient norm over both.

use burn::module::Module;
use burn::optim::{AdamW, AdamWConfig, StateSink, StateSource};
use burn::tensor::Device;
use soda_adapters::{Geometry, Method};
use soda_linalg::optim::{StiefelAdam, StiefelAdamConfig};

use crate::adamw_8bit::AdamW8bit;
use crate::batched_optimizer::BatchedOptimizer;
use crate::batched_params::BatchedParams;
use crate::config::{AdapterOptimizerConfig, FlatOptimizer};
use crate::error::OptimError;
use crate::gradients::AdapterGradients;
use crate::param_group::ParamGroup;
use crate::prodigy::{self, Prodigy};
use crate::state::OptimizerState;

/// Steps every trainable parameter of an adapted module.
pub struct AdapterOptimizer {
    rotation: BatchedOptimizer<StiefelAdam>,
    flat: Flat,
    max_grad_norm: f64,
}

/// The update rule of flat parameters, with its state.
enum Flat {
    AdamW(BatchedOptimizer<AdamW>),
    AdamW8bit(BatchedOptimizer<AdamW8bit>),
    Prodigy(Prodigy),
}

impl AdapterOptimizer {
    /// A new optimizer with all moments zero.
    pub fn new(config: &AdapterOptimizerConfig) -> Self {
        let (lr, decay) = (config.flat_lr, config.flat_weight_decay);
        let flat = match config.flat_optimizer {
            FlatOptimizer::AdamW => {
                let rule =
                    AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(decay as f32).build();
                Flat::AdamW(BatchedOptimizer::new("flat", rule, lr))
            }
            FlatOptimizer::AdamW8bit => {
                let rule = AdamW8bit { weight_decay: decay };
                Flat::AdamW8bit(BatchedOptimizer::new("flat8", rule, lr))
            }
            FlatOptimizer::Prodigy => Flat::Prodigy(Prodigy::new(lr, decay, config.lr_warmup)),
        };
        let rotation = StiefelAdam::new(&StiefelAdamConfig::new());
        Self {
            rotation: BatchedOptimizer::new("rotation", rotation, config.rotation_lr),
            flat,
            max_grad_norm: config.max_grad_norm,
        }
    }

    /// Gives a group its own learning rate, for its rotations and its flat parameters.
    ///
    /// # Errors
    /// [`OptimError::GroupRateWithProdigy`] if the flat optimizer is Prodigy.
    pub fn with_group_lr(mut self, group: ParamGroup, lr: f64) -> Result<Self, OptimError> {
        self.rotation.set_group_lr(group.clone(), lr);
        match &mut self.flat {
            Flat::AdamW(optimizer) => optimizer.set_group_lr(group, lr),
            Flat::AdamW8bit(optimizer) => optimizer.set_group_lr(group, lr),
            Flat::Prodigy(_) => return Err(OptimError::GroupRateWithProdigy(group)),
        }
        Ok(self)
    }

    /// One step of `module`: clips the global gradient norm, then moves each parameter in its geometry by
    /// `factor` times its learning rate. A parameter without a gradient has a gradient of zero.
    pub fn step<M: Method, N: Module>(
        &mut self,
        method: &M,
        module: N,
        grads: AdapterGradients,
        factor: f64,
    ) -> N {
        let params = BatchedParams::new(method, &module);
        let grads = params.batch_gradients(grads);
        self.step_batched(&params, &grads, factor).write_to(module)
    }

    /// [`AdapterOptimizer::step`] of batched parameters, whose layout is the same in every step.
    #[must_use]
    pub fn step_batched(
        &mut self,
        params: &BatchedParams,
        grads: &BatchedParams,
        factor: f64,
    ) -> BatchedParams {
        let Some(norm) = grads.norm() else { return params.clone() };
        // The small term is that of `torch.nn.utils.clip_grad_norm_`: a zero gradient stays zero instead of
        // 0/0.
        let clip = (norm + 1e-6).recip().mul_scalar(self.max_grad_norm).clamp_max(1.0);
        let grads = grads.map(|_, grad| grad.clone() * clip.clone().unsqueeze());
        let moved = params.zip(&grads, |batch, x, grad| match (batch.geometry, &mut self.flat) {
            (Geometry::Stiefel, _) => self.rotation.step(&batch.key, x, grad, factor),
            (Geometry::Euclidean, Flat::AdamW(optimizer)) => {
                optimizer.step(&batch.key, x, grad, factor)
            }
            (Geometry::Euclidean, Flat::AdamW8bit(optimizer)) => {
                optimizer.step(&batch.key, x, grad, factor)
            }
            (Geometry::Euclidean, Flat::Prodigy(_)) => x,
        });
        match &mut self.flat {
            Flat::AdamW(_) | Flat::AdamW8bit(_) => moved,
            Flat::Prodigy(prodigy) => prodigy.step(&moved, &grads, factor),
        }
    }

    /// The learning rate of a group's rotations, times `factor`.
    pub fn rotation_lr(&self, group: &ParamGroup, factor: f64) -> f64 {
        self.rotation.lr(group) * factor
    }

    /// The learning rate of a group's flat parameters, times `factor`. With Prodigy it includes the estimate.
    pub fn flat_lr(&self, group: &ParamGroup, factor: f64) -> f64 {
        match &self.flat {
            Flat::AdamW(optimizer) => optimizer.lr(group) * factor,
            Flat::AdamW8bit(optimizer) => optimizer.lr(group) * factor,
            Flat::Prodigy(prodigy) => prodigy.lr(factor),
        }
    }

    /// The state to store.
    pub fn state(&self) -> OptimizerState {
        let mut sink = StateSink::default();
        self.rotation.flatten(&mut sink);
        match &self.flat {
            Flat::AdamW(optimizer) => optimizer.flatten(&mut sink),
            Flat::AdamW8bit(optimizer) => optimizer.flatten(&mut sink),
            Flat::Prodigy(_) => (),
        }
        let count = |(name, value)| usize::try_from(value).ok().map(|value| (name, value as u64));
        let mut state = OptimizerState {
            tensors: sink.tensors.into_iter().collect(),
            counts: sink.scalars.into_iter().filter_map(count).collect(),
        };
        if let Flat::Prodigy(prodigy) = &self.flat {
            prodigy.store(&mut state);
        }
        state
    }

    /// Continues from a stored state.
    ///
    /// # Errors
    /// [`OptimError::OtherState`] if another optimizer wrote the state, or if it is incomplete.
    pub fn restored(self, state: OptimizerState, device: &Device) -> Result<Self, OptimError> {
        self.try_restore(state, device).ok_or(OptimError::OtherState)
    }

    fn try_restore(mut self, state: OptimizerState, device: &Device) -> Option<Self> {
        let names: Vec<String> = state.tensors.keys().cloned().collect();
        let of_prodigy = state.counts.keys().any(|name| name.starts_with(prodigy::NAME));
        match &mut self.flat {
            Flat::Prodigy(prodigy) => prodigy.restore(&state, device)?,
            Flat::AdamW(_) | Flat::AdamW8bit(_) if of_prodigy => return None,
            Flat::AdamW(_) | Flat::AdamW8bit(_) => (),
        }
        let counts = state.counts.into_iter().map(|(name, value)| (name, (value as usize).into()));
        let mut source = StateSource::new(counts.collect());
        for (name, data) in state.tensors {
            source.insert_tensor(name, data);
        }
        self.rotation.unflatten(&names, &mut source, device)?;
        match &mut self.flat {
            Flat::AdamW(optimizer) => optimizer.unflatten(&names, &mut source, device)?,
            Flat::AdamW8bit(optimizer) => optimizer.unflatten(&names, &mut source, device)?,
            Flat::Prodigy(_) => (),
        }
        Some(self)
    }
}
