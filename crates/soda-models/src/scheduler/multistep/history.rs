//! The last predictions of a multistep solver.

use burn::tensor::Tensor;

/// Changes of `lambda` below this are no step. A plan of as many steps as there are timesteps visits one of
/// them twice, and divided differences over it are `0 / 0`.
pub(super) const STILL: f64 = 1e-6;

/// The last predictions with the noise levels that they were made at, newest first.
#[derive(Debug, Clone)]
pub(crate) struct History {
    entries: Vec<(f64, Tensor<4>)>,
    most: usize,
}

impl History {
    /// Makes an empty history that keeps the `most` newest predictions.
    pub(crate) fn new(most: usize) -> Self {
        Self { entries: Vec::new(), most }
    }

    /// Adds a prediction at the noise level `sigma`. It replaces the newest one if that is of the same level.
    pub(crate) fn push(&mut self, sigma: f64, prediction: Tensor<4>) {
        let again = self.entries.first().is_some_and(|(last, _)| (last / sigma).ln().abs() < STILL);
        if again {
            self.entries.remove(0);
        }
        self.entries.insert(0, (sigma, prediction));
        self.entries.truncate(self.most);
    }

    /// The number of predictions, which bounds the order of a step.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The noise level of prediction `i`.
    pub(crate) fn sigma(&self, i: usize) -> f64 {
        self.entries[i].0
    }

    /// `lambda` of prediction `i`.
    pub(crate) fn lambda(&self, i: usize) -> f64 {
        -self.sigma(i).ln()
    }

    /// Prediction `i`, `[b, c, h, w]`.
    pub(crate) fn prediction(&self, i: usize) -> Tensor<4> {
        self.entries[i].1.clone()
    }
}
