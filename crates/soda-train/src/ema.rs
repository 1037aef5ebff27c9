//! A moving average of the adapter, which wanders less than the adapter itself.
//!
//! Flat parameters: `v <- d v + (1 - d) x`. On the Stiefel manifold a mean of two points lies inside it,
//! so the average moves along the tangent towards `x` and is brought back by the polar retraction; to
//! first order in `1 - d` that is the same formula.

use std::collections::{BTreeMap, HashMap};

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use soda_adapters::{Geometry, Leaf, Method, leaves, map_leaves};
use soda_linalg::stiefel::{self, Retraction};

use crate::stacks::{by_shape, stack, unstack};

/// The average of a module's trainable parameters.
pub(crate) struct Ema {
    decay: f64,
    values: HashMap<String, Tensor<1>>,
}

impl Ema {
    /// Starts at the module's values.
    pub(crate) fn new<N: Module>(decay: f64, module: &N) -> Self {
        let values = trainable(module).into_iter().map(|leaf| (leaf.path, leaf.value)).collect();
        Self { decay, values }
    }

    /// Moves towards the module's values after `step` steps, from 1. Early steps count more, so that the
    /// start is forgotten: `d = min(decay, (1 + step) / (10 + step))`, as in diffusers.
    pub(crate) fn update<M: Method, N: Module>(&mut self, method: &M, module: &N, step: usize) {
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        let all = trainable(module);
        let (rotations, others): (Vec<_>, Vec<_>) =
            all.iter().partition(|leaf| method.geometry(&leaf.path) == Geometry::Stiefel);
        for (on_manifold, leaves) in [(true, rotations), (false, others)] {
            for (shape, bucket) in by_shape(leaves) {
                let x = stack(bucket.iter().map(|leaf| leaf.value.clone()), shape);
                let v = stack(bucket.iter().map(|leaf| self.values[&leaf.path].clone()), shape);
                let way = (x - v.clone()).mul_scalar(1.0 - decay);
                let moved = if on_manifold {
                    let tangent = stiefel::tangent(v.clone(), way);
                    // The polar retraction runs on the device and has no way to fail; a value that is
                    // not finite stops the run by its loss.
                    Retraction::Polar.apply(v.clone(), tangent).unwrap_or(v)
                } else {
                    v + way
                };
                let paths = bucket.iter().map(|leaf| leaf.path.clone());
                self.values.extend(paths.zip(unstack(moved)));
            }
        }
    }

    /// The module with the averaged values.
    pub(crate) fn apply<N: Module>(&self, module: N) -> N {
        map_leaves(module, |path, _, _| self.values.get(path).cloned())
    }

    /// The averages by path.
    pub(crate) fn state(&self) -> BTreeMap<String, TensorData> {
        self.values.iter().map(|(path, value)| (path.clone(), value.clone().into_data())).collect()
    }
}

/// The parameters that training moves, of a module on a plain device.
pub fn trainable<N: Module>(module: &N) -> Vec<Leaf> {
    // Off the tape no parameter asks for a gradient; which ones would shows on it.
    let taped = leaves(&module.clone().train());
    let moves = taped.into_iter().map(|leaf| leaf.trainable);
    leaves(module)
        .into_iter()
        .zip(moves)
        .filter_map(|(leaf, moves)| moves.then_some(leaf))
        .collect()
}
