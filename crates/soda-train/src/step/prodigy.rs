//! Prodigy (Mishchenko and Defazio, arXiv 2306.06101, algorithm 4): Adam whose learning rate is an estimate
//! of how far the solution is from the start, `d <= |x0 - x*|`, which only grows.
//!
//! With `g` the gradient of all parameters together, `λ` the schedule, `b3 = √b2`:
//!
//! ```text
//! γ = d λ √(1 - b2^t) / (1 - b1^t)
//! r <- b3 r + (d / d0) γ <g, x0 - x>          s <- b3 s + (d / d0) γ g
//! m <- b1 m + (1 - b1) d g                    v <- b2 v + (1 - b2) d² g²
//! d <- max(d, r / |s|₁)
//! x <- (1 - w γ) x - γ m / (√v + d ε)          with the d from before in γ, the new one in the last term
//! ```

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use soda_adapters::Geometry;

use crate::step::optimizer_state::OptimizerState;
use crate::step::stacks::{Kind, Stacks};

const B1: f64 = 0.9;
const B2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// The first estimate: below any distance worth going.
const D0: f64 = 1e-6;
/// What its part of a stored state is called.
pub(crate) const NAME: &str = "prodigy";

/// One estimate over all parameters, with the moments of each.
pub(crate) struct Prodigy {
    lr: f64,
    weight_decay: f64,
    /// Whether `λ` is left out of `s`: while it rises, the estimate would be too large.
    warmup: bool,
    time: u64,
    d: f64,
    r: f64,
    states: BTreeMap<Kind, State>,
}

/// Of the parameters of one kind, `[count, rows, cols]` each.
struct State {
    start: Tensor<3>,
    m: Tensor<3>,
    v: Tensor<3>,
    s: Tensor<3>,
}

impl Prodigy {
    pub(crate) fn new(lr: f64, weight_decay: f64, warmup: bool) -> Self {
        Self { lr, weight_decay, warmup, time: 0, d: D0, r: 0.0, states: BTreeMap::new() }
    }

    /// The learning rate at `factor`: the estimate.
    pub(crate) fn rate(&self, factor: f64) -> f64 {
        self.d * self.lr * factor
    }

    /// The parameters with those that are on no manifold moved, by clipped gradients. What stands in a stack must not
    /// change between steps, nor its order.
    pub(crate) fn step(&mut self, parameters: &Stacks, grads: &Stacks, factor: f64) -> Stacks {
        let (d, time) = (self.d, (self.time + 1) as i32);
        let gamma = self.rate(factor) * (1.0 - B2.powi(time)).sqrt() / (1.0 - B1.powi(time));
        if gamma == 0.0 {
            return parameters.clone();
        }
        let b3 = B2.sqrt();
        let mut r = b3 * self.r;
        let mut norm = 0.0;
        // For its moments: where to is known only when all have been seen.
        let _ = parameters.zip(grads, |stack, x, g| {
            if stack.geometry != Geometry::Euclidean {
                return x;
            }
            let zeros = x.zeros_like();
            let State { start, m, v, s } = self.states.remove(&stack.kind).unwrap_or_else(|| {
                State { start: x.clone(), m: zeros.clone(), v: zeros.clone(), s: zeros }
            });
            r += d / D0 * gamma * number((g.clone() * (start.clone() - x.clone())).sum());
            let m = m.mul_scalar(B1) + g.clone().mul_scalar((1.0 - B1) * d);
            let v = v.mul_scalar(B2) + g.clone().square().mul_scalar((1.0 - B2) * d * d);
            let part = if self.warmup { d } else { gamma };
            let s = s.mul_scalar(b3) + g.mul_scalar(d / D0 * part);
            norm += number(s.clone().abs().sum());
            self.states.insert(stack.kind, State { start, m, v, s });
            x
        });
        // No gradient at all: nothing is known, and nothing moves.
        if norm == 0.0 {
            return parameters.clone();
        }
        self.r = r;
        self.d = d.max(r / norm);
        self.time += 1;
        parameters.map(|stack, x| match self.states.get(&stack.kind) {
            Some(State { m, v, .. }) if stack.geometry == Geometry::Euclidean => {
                let way = m.clone() / v.clone().sqrt().add_scalar(self.d * EPSILON);
                x.clone().mul_scalar(1.0 - self.weight_decay * gamma) - way.mul_scalar(gamma)
            }
            _ => x.clone(),
        })
    }

    /// Adds what has to be stored.
    pub(crate) fn store(&self, state: &mut OptimizerState) {
        let numbers = [("time", self.time), ("d", self.d.to_bits()), ("r", self.r.to_bits())];
        state.counts.extend(numbers.map(|(name, value)| (format!("{NAME}.{name}"), value)));
        for (kind, State { start, m, v, s }) in &self.states {
            for (name, tensor) in [("start", start), ("m", m), ("v", v), ("s", s)] {
                let name = format!("{NAME}.{kind}.{name}");
                state.tensors.insert(name, tensor.clone().into_data());
            }
        }
    }

    /// Takes it from there; `None` if it is another optimizer's.
    pub(crate) fn restore(&mut self, state: &OptimizerState, device: &Device) -> Option<()> {
        let count = |name: &str| state.counts.get(&format!("{NAME}.{name}")).copied();
        (self.time, self.d, self.r) =
            (count("time")?, f64::from_bits(count("d")?), f64::from_bits(count("r")?));
        let kinds = state.tensors.keys().filter_map(|name| {
            Kind::parse(name.strip_prefix(NAME)?.strip_prefix('.')?.strip_suffix(".m")?)
        });
        for kind in kinds {
            let tensor = |name: &str| -> Option<Tensor<3>> {
                let data: TensorData = state.tensors.get(&format!("{NAME}.{kind}.{name}"))?.clone();
                let dtype = data.dtype();
                (data.rank() == 3).then(|| Tensor::from_data(data, (device, dtype)))
            };
            let (start, m, v, s) = (tensor("start")?, tensor("m")?, tensor("v")?, tensor("s")?);
            self.states.insert(kind, State { start, m, v, s });
        }
        Some(())
    }
}

fn number(scalar: Tensor<1>) -> f64 {
    scalar.into_scalar::<f64>()
}
