//! The optimizer of a run: momentum Stiefel Adam on the rotations, AdamW or Prodigy on everything flat, one
//! global gradient norm over both.
//!
//! All parameters of one shape step as one batch ([`Stacks`]). The arithmetic is that of any burn [`Optimizer`] that
//! treats leading axes as a batch, as element-wise ones and `StiefelAdam` do.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::{AdamW, AdamWConfig, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};
use soda_adapters::{Geometry, Method};
use soda_linalg::{StiefelAdam, StiefelAdamConfig};

use crate::config::{FlatOptimizer, OptimizerConfig};
use crate::step::adamw_8bit::AdamW8bit;
use crate::step::gradients::AdapterGradients;
use crate::step::optimizer_state::OptimizerState;
use crate::step::prodigy::{self, Prodigy};
use crate::step::stacks::{Kind, Part, Stacks};

/// Steps every trainable parameter of an adapted module.
pub struct AdapterOptimizer {
    rotation: Group<StiefelAdam>,
    flat: Flat,
    max_grad_norm: f64,
}

/// The update of everything that is on no manifold.
enum Flat {
    AdamW(Group<AdamW>),
    AdamW8bit(Group<AdamW8bit>),
    Prodigy(Prodigy),
}

impl AdapterOptimizer {
    /// A fresh optimizer, all moments zero.
    pub fn new(config: &OptimizerConfig) -> Self {
        let (lr, decay) = (config.spectrum_lr, config.spectrum_weight_decay);
        let flat = match config.flat {
            FlatOptimizer::AdamW => {
                let rule =
                    AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(decay as f32).build();
                Flat::AdamW(Group::new("flat", rule, lr))
            }
            FlatOptimizer::AdamW8bit => {
                Flat::AdamW8bit(Group::new("flat8", AdamW8bit { weight_decay: decay }, lr))
            }
            FlatOptimizer::Prodigy => {
                Flat::Prodigy(Prodigy::new(lr, decay, config.warmup_steps > 0))
            }
        };
        let rotation = StiefelAdam::new(&StiefelAdamConfig::new());
        Self {
            rotation: Group::new("rotation", rotation, config.rotation_lr),
            flat,
            max_grad_norm: config.max_grad_norm,
        }
    }

    /// The same with a learning rate of a part's own, if there is one.
    #[must_use]
    pub fn with_rate(mut self, part: Part, rate: Option<f64>) -> Self {
        let Some(rate) = rate else { return self };
        self.rotation.own.insert(part, rate);
        match &mut self.flat {
            Flat::AdamW(group) => drop(group.own.insert(part, rate)),
            Flat::AdamW8bit(group) => drop(group.own.insert(part, rate)),
            // One estimate is of all parameters; the settings' check has refused a rate beside it.
            Flat::Prodigy(_) => (),
        }
        self
    }

    /// One step: clips the global norm, then moves each parameter in its own geometry, by `factor` of
    /// its learning rate. A parameter without a gradient has one of zero.
    pub fn step<M: Method, N: Module>(
        &mut self,
        method: &M,
        module: N,
        grads: AdapterGradients,
        factor: f64,
    ) -> N {
        let parameters = Stacks::of(method, &module);
        let grads = parameters.gradients(grads);
        self.step_stacks(&parameters, &grads, factor).put(module)
    }

    /// [`AdapterOptimizer::step`] on parameters and gradients that are stacked already, the same in every step.
    #[must_use]
    pub fn step_stacks(&mut self, parameters: &Stacks, grads: &Stacks, factor: f64) -> Stacks {
        let Some(norm) = grads.norm() else { return parameters.clone() };
        // The small term is torch's: a zero gradient stays zero instead of becoming 0/0.
        let clip = (norm + 1e-6).recip().mul_scalar(self.max_grad_norm).clamp_max(1.0);
        let grads = grads.map(|_, grad| grad.clone() * clip.clone().unsqueeze());
        let moved =
            parameters.zip(&grads, |stack, x, grad| match (stack.geometry, &mut self.flat) {
                (Geometry::Stiefel, _) => self.rotation.step(stack.kind, x, grad, factor),
                (Geometry::Euclidean, Flat::AdamW(group)) => {
                    group.step(stack.kind, x, grad, factor)
                }
                (Geometry::Euclidean, Flat::AdamW8bit(group)) => {
                    group.step(stack.kind, x, grad, factor)
                }
                (Geometry::Euclidean, Flat::Prodigy(_)) => x,
            });
        match &mut self.flat {
            Flat::AdamW(_) | Flat::AdamW8bit(_) => moved,
            Flat::Prodigy(prodigy) => prodigy.step(&moved, &grads, factor),
        }
    }

    /// The learning rate of the denoiser's rotations at `factor`.
    pub fn rotation_rate(&self, factor: f64) -> f64 {
        self.rotation.rate(Part::Denoiser) * factor
    }

    /// The learning rate of a part's flat parameters at `factor`.
    pub fn rate(&self, part: Part, factor: f64) -> f64 {
        match &self.flat {
            Flat::AdamW(group) => group.rate(part) * factor,
            Flat::AdamW8bit(group) => group.rate(part) * factor,
            Flat::Prodigy(prodigy) => prodigy.rate(factor),
        }
    }

    /// The state to store.
    pub fn state(&self) -> OptimizerState {
        let mut sink = StateSink::default();
        self.rotation.flatten(&mut sink);
        match &self.flat {
            Flat::AdamW(group) => group.flatten(&mut sink),
            Flat::AdamW8bit(group) => group.flatten(&mut sink),
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

    /// Goes on from a stored state; `None` if that is not one of this optimizer's.
    #[must_use]
    pub fn restored(mut self, state: OptimizerState, device: &Device) -> Option<Self> {
        let names: Vec<String> = state.tensors.keys().cloned().collect();
        let prodigy = state.counts.keys().any(|name| name.starts_with(prodigy::NAME));
        match &mut self.flat {
            Flat::Prodigy(own) => own.restore(&state, device)?,
            Flat::AdamW(_) | Flat::AdamW8bit(_) if prodigy => return None,
            Flat::AdamW(_) | Flat::AdamW8bit(_) => (),
        }
        let counts = state.counts.into_iter().map(|(name, value)| (name, (value as usize).into()));
        let mut source = StateSource::new(counts.collect());
        for (name, data) in state.tensors {
            source.insert_tensor(name, data);
        }
        self.rotation.unflatten(&names, &mut source, device)?;
        match &mut self.flat {
            Flat::AdamW(group) => group.unflatten(&names, &mut source, device)?,
            Flat::AdamW8bit(group) => group.unflatten(&names, &mut source, device)?,
            Flat::Prodigy(_) => (),
        }
        Some(self)
    }
}

/// One update rule and its state, over parameters batched by shape.
struct Group<O: Optimizer> {
    name: &'static str,
    optimizer: O,
    lr: f64,
    /// Of parts that have another.
    own: BTreeMap<Part, f64>,
    states: BTreeMap<Kind, O::State<3>>,
}

impl<O: Optimizer> Group<O> {
    fn new(name: &'static str, optimizer: O, lr: f64) -> Self {
        Self { name, optimizer, lr, own: BTreeMap::new(), states: BTreeMap::new() }
    }

    fn rate(&self, part: Part) -> f64 {
        self.own.get(&part).copied().unwrap_or(self.lr)
    }

    /// New values. What stands in a stack must not change between steps, nor its order.
    fn step(&mut self, kind: Kind, x: Tensor<3>, grad: Tensor<3>, factor: f64) -> Tensor<3> {
        let state = self.states.remove(&kind);
        let rate = self.rate(kind.part) * factor;
        let (x, state) = self.optimizer.step(rate, x, grad, state);
        self.states.extend(state.map(|state| (kind, state)));
        x
    }

    fn flatten(&self, sink: &mut StateSink) {
        for (kind, state) in &self.states {
            state.state_flatten(&format!("{}.{kind}", self.name), sink);
        }
    }

    fn unflatten(
        &mut self,
        names: &[String],
        source: &mut StateSource,
        device: &Device,
    ) -> Option<()> {
        for name in names {
            let Some(("", rest)) =
                name.strip_prefix(self.name).and_then(|rest| rest.split_once('.'))
            else {
                continue;
            };
            let kind = Kind::parse(rest)?;
            if !self.states.contains_key(&kind) {
                let prefix = format!("{}.{kind}", self.name);
                self.states.insert(kind, O::State::state_unflatten(&prefix, source, device)?);
            }
        }
        Some(())
    }
}
