//! The optimizer of a run: momentum Stiefel Adam on the rotations, AdamW or Prodigy on everything flat, one
//! global gradient norm over both.
//!
//! All parameters of one shape step as one batch. The arithmetic is that of any burn [`Optimizer`] that
//! treats leading axes as a batch, as element-wise ones and `StiefelAdam` do.

use std::collections::{BTreeMap, HashMap};

use burn::module::Module;
use burn::optim::{AdamW, AdamWConfig, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor, TensorData};
use soda_adapters::{Geometry, Leaf, Method, leaves, map_leaves};
use soda_linalg::{StiefelAdam, StiefelAdamConfig};

use crate::adamw8::AdamW8;
use crate::config::{FlatRule, OptimizerConfig};
use crate::gradients::AdapterGradients;
use crate::prodigy::{self, Prodigy};
use crate::stacks::{Shape, by_shape, stack, unstack};

/// Steps every trainable parameter of an adapted module.
pub struct AdapterOptimizer {
    rotation: Group<StiefelAdam>,
    flat: Flat,
    max_grad_norm: f64,
}

/// The update of everything that is on no manifold.
enum Flat {
    AdamW(Group<AdamW>),
    AdamW8(Group<AdamW8>),
    Prodigy(Prodigy),
}

/// Moments and step counts by name: what an optimizer needs to go on as if it had not stopped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// Moments.
    pub tensors: BTreeMap<String, TensorData>,
    /// Step counts.
    pub counts: BTreeMap<String, u64>,
}

impl AdapterOptimizer {
    /// A fresh optimizer, all moments zero.
    pub fn new(config: &OptimizerConfig) -> Self {
        let (lr, decay) = (config.spectrum_lr, config.spectrum_weight_decay);
        let flat = match config.flat {
            FlatRule::AdamW => {
                let rule =
                    AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(decay as f32).build();
                Flat::AdamW(Group::new("flat", rule, lr))
            }
            FlatRule::AdamW8 => {
                Flat::AdamW8(Group::new("flat8", AdamW8 { weight_decay: decay }, lr))
            }
            FlatRule::Prodigy => Flat::Prodigy(Prodigy::new(lr, decay, config.warmup_steps > 0)),
        };
        let rotation = StiefelAdam::new(&StiefelAdamConfig::new());
        Self {
            rotation: Group::new("rotation", rotation, config.rotation_lr),
            flat,
            max_grad_norm: config.max_grad_norm,
        }
    }

    /// One step: clips the global norm, then moves each parameter in its own geometry, by `factor` of
    /// its learning rate. Parameters without a gradient stay. The parameters that have one must be the
    /// same in every step.
    pub fn step<M: Method, N: Module>(
        &mut self,
        method: &M,
        module: N,
        grads: &AdapterGradients,
        factor: f64,
    ) -> N {
        let Some(norm) = grads.norm() else { return module };
        // The small term is torch's: a zero gradient stays zero instead of becoming 0/0.
        let clip = (norm + 1e-6).recip().mul_scalar(self.max_grad_norm).clamp_max(1.0);
        let moving: Vec<Leaf> =
            leaves(&module).into_iter().filter(|leaf| grads.0.contains_key(&leaf.path)).collect();
        let (rotations, others): (Vec<_>, Vec<_>) =
            moving.iter().partition(|leaf| method.geometry(&leaf.path) == Geometry::Stiefel);
        let mut updated = self.rotation.step(&rotations, grads, &clip, factor);
        updated.extend(match &mut self.flat {
            Flat::AdamW(group) => group.step(&others, grads, &clip, factor),
            Flat::AdamW8(group) => group.step(&others, grads, &clip, factor),
            Flat::Prodigy(prodigy) => prodigy.step(&others, grads, &clip, factor),
        });
        map_leaves(module, |path, _, _| updated.remove(path))
    }

    /// The learning rates of a step at `factor`: of the rotations, and of everything flat.
    pub fn rates(&self, factor: f64) -> [f64; 2] {
        let flat = match &self.flat {
            Flat::AdamW(group) => group.lr * factor,
            Flat::AdamW8(group) => group.lr * factor,
            Flat::Prodigy(prodigy) => prodigy.rate(factor),
        };
        [self.rotation.lr * factor, flat]
    }

    /// The state to store.
    pub fn state(&self) -> OptimizerState {
        let mut sink = StateSink::default();
        self.rotation.flatten(&mut sink);
        match &self.flat {
            Flat::AdamW(group) => group.flatten(&mut sink),
            Flat::AdamW8(group) => group.flatten(&mut sink),
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
            Flat::AdamW(_) | Flat::AdamW8(_) if prodigy => return None,
            Flat::AdamW(_) | Flat::AdamW8(_) => (),
        }
        let counts = state.counts.into_iter().map(|(name, value)| (name, (value as usize).into()));
        let mut source = StateSource::new(counts.collect());
        for (name, data) in state.tensors {
            source.insert_tensor(name, data);
        }
        self.rotation.unflatten(&names, &mut source, device)?;
        match &mut self.flat {
            Flat::AdamW(group) => group.unflatten(&names, &mut source, device)?,
            Flat::AdamW8(group) => group.unflatten(&names, &mut source, device)?,
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
    states: BTreeMap<Shape, O::State<3>>,
}

impl<O: Optimizer> Group<O> {
    fn new(name: &'static str, optimizer: O, lr: f64) -> Self {
        Self { name, optimizer, lr, states: BTreeMap::new() }
    }

    /// New values by path, flat. The set of parameters and their order must not change between steps:
    /// the state is a stack in that order.
    fn step(
        &mut self,
        leaves: &[&Leaf],
        grads: &AdapterGradients,
        clip: &Tensor<1>,
        factor: f64,
    ) -> HashMap<String, Tensor<1>> {
        let mut updated = HashMap::new();
        for (shape, bucket) in by_shape(leaves.iter().copied()) {
            let values =
                stack(bucket.iter().map(|leaf| leaf.value.clone().without_autodiff()), shape);
            let grad = stack(bucket.iter().map(|leaf| grads.0[&leaf.path].clone()), shape);
            let (values, state) = self.optimizer.step(
                self.lr * factor,
                values,
                grad * clip.clone().unsqueeze(),
                self.states.remove(&shape),
            );
            self.states.extend(state.map(|state| (shape, state)));
            let paths = bucket.into_iter().map(|leaf| leaf.path.clone());
            updated.extend(paths.zip(unstack(values)));
        }
        updated
    }

    fn flatten(&self, sink: &mut StateSink) {
        for ([rows, cols], state) in &self.states {
            state.state_flatten(&format!("{}.{rows}x{cols}", self.name), sink);
        }
    }

    fn unflatten(
        &mut self,
        names: &[String],
        source: &mut StateSource,
        device: &Device,
    ) -> Option<()> {
        for name in names {
            let mut parts = name.split('.');
            if parts.next() != Some(self.name) {
                continue;
            }
            let (rows, cols) = parts.next()?.split_once('x')?;
            let shape = [rows.parse().ok()?, cols.parse().ok()?];
            if !self.states.contains_key(&shape) {
                let prefix = format!("{}.{rows}x{cols}", self.name);
                self.states.insert(shape, O::State::state_unflatten(&prefix, source, device)?);
            }
        }
        Some(())
    }
}
