//! The optimizer of a run: momentum Stiefel Adam on the rotations, AdamW on everything flat, one global
//! gradient norm over both.
//!
//! All parameters of one shape are stacked and step as one batch, so that the number of kernels depends
//! on how many shapes there are and not on how many layers. The arithmetic is that of any burn
//! [`Optimizer`] that treats leading axes as a batch, as element-wise ones and `StiefelAdam` do.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{AdamW, AdamWConfig, Optimizer};
use burn::tensor::{Gradients, Tensor};
use soda_adapters::{Geometry, Method, map_leaves};
use soda_linalg::{StiefelAdam, StiefelAdamConfig};

use crate::config::OptimizerConfig;

/// Steps every trainable parameter of an adapted module.
pub struct AdapterOptimizer {
    rotation: Group<StiefelAdam>,
    euclidean: Group<AdamW>,
    max_grad_norm: f64,
}

impl AdapterOptimizer {
    /// A fresh optimizer, all moments zero.
    pub fn new(config: &OptimizerConfig) -> Self {
        let spectrum = AdamWConfig::new()
            .with_epsilon(1e-8)
            .with_weight_decay(config.spectrum_weight_decay as f32)
            .build();
        Self {
            rotation: Group::new(StiefelAdam::new(&StiefelAdamConfig::new()), config.rotation_lr),
            euclidean: Group::new(spectrum, config.spectrum_lr),
            max_grad_norm: config.max_grad_norm,
        }
    }

    /// One step: clips the global norm, then moves each parameter in its own geometry, by `factor` of
    /// its learning rate.
    pub fn step<M: Method, N: Module>(
        &mut self,
        method: &M,
        module: N,
        grads: &Gradients,
        factor: f64,
    ) -> N {
        let mut collect = Collect { path: Vec::new(), grads, trainable: Vec::new() };
        module.visit(&mut collect);
        let (rotations, others) = collect
            .trainable
            .into_iter()
            .partition(|parameter| method.geometry(&parameter.path) == Geometry::Stiefel);
        let (mut rotations, mut others) = (stacks(rotations), stacks(others));
        clip(rotations.values_mut().chain(others.values_mut()), self.max_grad_norm);
        let mut updated = self.rotation.step(rotations, factor);
        updated.extend(self.euclidean.step(others, factor));
        map_leaves(module, |_, id, _| updated.remove(&id))
    }
}

/// A trainable parameter as a matrix (a vector is one row), with its gradient.
struct Trainable {
    path: String,
    id: ParamId,
    value: Tensor<2>,
    grad: Tensor<2>,
}

/// Parameters of one shape, `[count, rows, cols]`.
struct Stack {
    ids: Vec<ParamId>,
    values: Tensor<3>,
    grads: Tensor<3>,
}

/// Stacks by shape, each in the order of the parameters.
fn stacks(parameters: Vec<Trainable>) -> BTreeMap<[usize; 2], Stack> {
    let mut buckets: BTreeMap<[usize; 2], Vec<Trainable>> = BTreeMap::new();
    for parameter in parameters {
        buckets.entry(parameter.value.dims()).or_default().push(parameter);
    }
    let stacked = |(shape, bucket): (_, Vec<Trainable>)| {
        let ids = bucket.iter().map(|parameter| parameter.id).collect();
        let (values, grads) = bucket.into_iter().map(|p| (p.value, p.grad)).unzip();
        (shape, Stack { ids, values: Tensor::stack(values, 0), grads: Tensor::stack(grads, 0) })
    };
    buckets.into_iter().map(stacked).collect()
}

/// One update rule and its state, over parameters batched by shape.
struct Group<O: Optimizer> {
    optimizer: O,
    lr: f64,
    states: BTreeMap<[usize; 2], O::State<3>>,
}

impl<O: Optimizer> Group<O> {
    fn new(optimizer: O, lr: f64) -> Self {
        Self { optimizer, lr, states: BTreeMap::new() }
    }

    /// New values by identity, flat. The set of parameters and their order must not change between
    /// steps: the state is a stack in that order.
    fn step(
        &mut self,
        stacks: BTreeMap<[usize; 2], Stack>,
        factor: f64,
    ) -> HashMap<ParamId, Tensor<1>> {
        let mut updated = HashMap::new();
        for (shape, Stack { ids, values, grads }) in stacks {
            let (values, state) =
                self.optimizer.step(self.lr * factor, values, grads, self.states.remove(&shape));
            self.states.extend(state.map(|state| (shape, state)));
            let rows = values.reshape([ids.len(), shape[0] * shape[1]]);
            for (id, row) in ids.into_iter().zip(rows.split(1, 0)) {
                updated.insert(id, row.squeeze_dim(0));
            }
        }
        updated
    }
}

/// Scales all gradients by `min(1, max / |g|)`, `|g|` the norm over every parameter; stays on the device.
fn clip<'a>(stacks: impl Iterator<Item = &'a mut Stack>, max: f64) {
    let stacks: Vec<_> = stacks.collect();
    let squares: Vec<Tensor<1>> =
        stacks.iter().map(|stack| stack.grads.clone().square().sum()).collect();
    if squares.is_empty() {
        return;
    }
    let norm = Tensor::cat(squares, 0).sum().sqrt();
    // The small term is torch's: a zero gradient stays zero instead of becoming 0/0.
    let scale = (norm + 1e-6).recip().mul_scalar(max).clamp_max(1.0).unsqueeze::<3>();
    for stack in stacks {
        stack.grads = stack.grads.clone() * scale.clone();
    }
}

struct Collect<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    trainable: Vec<Trainable>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base();
        // No gradient: a frozen weight, or one the loss did not reach.
        let Some(grad) = value.grad(self.grads) else { return };
        let cols = value.dims()[D - 1];
        let rows = value.shape().num_elements() / cols;
        self.trainable.push(Trainable {
            path: self.path.join("."),
            id: param.id,
            value: value.without_autodiff().reshape([rows, cols]),
            grad: grad.reshape([rows, cols]),
        });
    }
}
