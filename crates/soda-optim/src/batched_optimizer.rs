//! One burn optimizer over batched parameters: a state for each batch, a learning rate for each group.
//!
//! The optimizer must treat leading axes as a batch, as element-wise optimizers and `StiefelAdam` do.

use std::collections::BTreeMap;

use burn::optim::{Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};

use crate::param_group::{BatchKey, ParamGroup};

/// An update rule with its learning rates and states.
pub(crate) struct BatchedOptimizer<O: Optimizer> {
    /// The first part of the names of its stored state.
    name: &'static str,
    optimizer: O,
    lr: f64,
    /// The learning rates of groups that have their own.
    group_lr: BTreeMap<ParamGroup, f64>,
    states: BTreeMap<BatchKey, O::State<3>>,
}

impl<O: Optimizer> BatchedOptimizer<O> {
    pub(crate) fn new(name: &'static str, optimizer: O, lr: f64) -> Self {
        Self { name, optimizer, lr, group_lr: BTreeMap::new(), states: BTreeMap::new() }
    }

    pub(crate) fn set_group_lr(&mut self, group: ParamGroup, lr: f64) {
        self.group_lr.insert(group, lr);
    }

    pub(crate) fn lr(&self, group: &ParamGroup) -> f64 {
        self.group_lr.get(group).copied().unwrap_or(self.lr)
    }

    /// The next value of the batch `x`. Its parameters and their order must stay the same in every step.
    pub(crate) fn step(
        &mut self,
        key: &BatchKey,
        x: Tensor<3>,
        grad: Tensor<3>,
        factor: f64,
    ) -> Tensor<3> {
        let state = self.states.remove(key);
        let lr = self.lr(&key.group) * factor;
        let (x, state) = self.optimizer.step(lr, x, grad, state);
        self.states.extend(state.map(|state| (key.clone(), state)));
        x
    }

    /// Writes the states under `NAME.KEY`.
    pub(crate) fn flatten(&self, sink: &mut StateSink) {
        for (key, state) in &self.states {
            state.state_flatten(&format!("{}.{key}", self.name), sink);
        }
    }

    /// Reads the states among `names` that belong to this rule; `None` if one of them is incomplete.
    pub(crate) fn unflatten(
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
            let key = BatchKey::parse(rest)?;
            if !self.states.contains_key(&key) {
                let prefix = format!("{}.{key}", self.name);
                self.states.insert(key, O::State::state_unflatten(&prefix, source, device)?);
            }
        }
        Some(())
    }
}
