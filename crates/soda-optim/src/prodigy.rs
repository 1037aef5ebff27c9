//! Prodigy (Mishchenko and Defazio, arXiv 2306.06101, algorithm 4): Adam with an estimated learning rate.
//!
//! The rate `d` is a lower bound of the distance from the start to a solution, `d <= |x0 - x*|`, and only
//! grows. With `g` the gradient of all parameters together, `λ` the schedule's factor and `b3 = √b2`:
//!
//! ```text
//! γ = d λ √(1 - b2^t) / (1 - b1^t)
//! r <- b3 r + (d / d0) γ <g, x0 - x>          s <- b3 s + (d / d0) γ g
//! m <- b1 m + (1 - b1) d g                    v <- b2 v + (1 - b2) d² g²
//! d <- max(d, r / |s|₁)
//! x <- (1 - w γ) x - γ m / (√v + d ε)
//! ```
//!
//! `γ` contains the `d` from before the step; the last term contains the new one.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use soda_adapters::Geometry;

use crate::batched_params::BatchedParams;
use crate::param_group::BatchKey;
use crate::state::OptimizerState;

const B1: f64 = 0.9;
const B2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// The first estimate, smaller than any distance to a solution that matters.
const D0: f64 = 1e-6;
/// The first part of the names of its stored state.
pub(crate) const NAME: &str = "prodigy";

/// The estimate over all parameters, and the moments of each batch.
pub(crate) struct Prodigy {
    lr: f64,
    weight_decay: f64,
    /// Whether `s` leaves `λ` out. While `λ` rises from zero, the estimate would be too large otherwise.
    lr_warmup: bool,
    time: u64,
    d: f64,
    r: f64,
    states: BTreeMap<BatchKey, State>,
}

/// The state of one batch of parameters, each `[count, rows, cols]`.
struct State {
    start: Tensor<3>,
    m: Tensor<3>,
    v: Tensor<3>,
    s: Tensor<3>,
}

impl Prodigy {
    pub(crate) fn new(lr: f64, weight_decay: f64, lr_warmup: bool) -> Self {
        Self { lr, weight_decay, lr_warmup, time: 0, d: D0, r: 0.0, states: BTreeMap::new() }
    }

    /// The learning rate: the estimate times the configured rate times `factor`.
    pub(crate) fn lr(&self, factor: f64) -> f64 {
        self.d * self.lr * factor
    }

    /// Moves the flat parameters by clipped gradients and leaves the others. The layout must stay the same in
    /// every step.
    pub(crate) fn step(
        &mut self,
        params: &BatchedParams,
        grads: &BatchedParams,
        factor: f64,
    ) -> BatchedParams {
        let (d, time) = (self.d, (self.time + 1) as i32);
        let gamma = self.lr(factor) * (1.0 - B2.powi(time)).sqrt() / (1.0 - B1.powi(time));
        if gamma == 0.0 {
            return params.clone();
        }
        let b3 = B2.sqrt();
        let mut r = b3 * self.r;
        let mut norm = 0.0;
        // This pass updates the moments. The estimate, and so the step, is known only after all batches.
        let _ = params.zip(grads, |batch, x, g| {
            if batch.geometry != Geometry::Euclidean {
                return x;
            }
            let zeros = x.zeros_like();
            let State { start, m, v, s } = self.states.remove(&batch.key).unwrap_or_else(|| {
                State { start: x.clone(), m: zeros.clone(), v: zeros.clone(), s: zeros }
            });
            r += d / D0 * gamma * scalar((g.clone() * (start.clone() - x.clone())).sum());
            let m = m.mul_scalar(B1) + g.clone().mul_scalar((1.0 - B1) * d);
            let v = v.mul_scalar(B2) + g.clone().square().mul_scalar((1.0 - B2) * d * d);
            let weight = if self.lr_warmup { d } else { gamma };
            let s = s.mul_scalar(b3) + g.mul_scalar(d / D0 * weight);
            norm += scalar(s.clone().abs().sum());
            self.states.insert(batch.key.clone(), State { start, m, v, s });
            x
        });
        // Without any gradient there is no estimate, and no parameter moves.
        if norm == 0.0 {
            return params.clone();
        }
        self.r = r;
        self.d = d.max(r / norm);
        self.time += 1;
        params.map(|batch, x| match self.states.get(&batch.key) {
            Some(State { m, v, .. }) if batch.geometry == Geometry::Euclidean => {
                let direction = m.clone() / v.clone().sqrt().add_scalar(self.d * EPSILON);
                x.clone().mul_scalar(1.0 - self.weight_decay * gamma) - direction.mul_scalar(gamma)
            }
            _ => x.clone(),
        })
    }

    /// Adds the estimate and the moments to `state`.
    pub(crate) fn store(&self, state: &mut OptimizerState) {
        let numbers = [("time", self.time), ("d", self.d.to_bits()), ("r", self.r.to_bits())];
        state.counts.extend(numbers.map(|(name, value)| (format!("{NAME}.{name}"), value)));
        for (key, State { start, m, v, s }) in &self.states {
            for (name, tensor) in [("start", start), ("m", m), ("v", v), ("s", s)] {
                let name = format!("{NAME}.{key}.{name}");
                state.tensors.insert(name, tensor.clone().into_data());
            }
        }
    }

    /// Reads the estimate and the moments from `state`; `None` if another optimizer wrote it.
    pub(crate) fn restore(&mut self, state: &OptimizerState, device: &Device) -> Option<()> {
        let count = |name: &str| state.counts.get(&format!("{NAME}.{name}")).copied();
        (self.time, self.d, self.r) =
            (count("time")?, f64::from_bits(count("d")?), f64::from_bits(count("r")?));
        let keys = state.tensors.keys().filter_map(|name| {
            BatchKey::parse(name.strip_prefix(NAME)?.strip_prefix('.')?.strip_suffix(".m")?)
        });
        for key in keys {
            let tensor = |name: &str| -> Option<Tensor<3>> {
                let data: TensorData = state.tensors.get(&format!("{NAME}.{key}.{name}"))?.clone();
                let dtype = data.dtype();
                (data.rank() == 3).then(|| Tensor::from_data(data, (device, dtype)))
            };
            let (start, m, v, s) = (tensor("start")?, tensor("m")?, tensor("v")?, tensor("s")?);
            self.states.insert(key, State { start, m, v, s });
        }
        Some(())
    }
}

fn scalar(x: Tensor<1>) -> f64 {
    x.into_scalar::<f64>()
}
