//! The adapter whose gradients are sketches.
//!
//! With a fixed random `Ω` `[n, p]` and a parameter `Y = 0`, the generator `Y Ωᵀ - Ω Yᵀ` is skew-symmetric:
//!
//! ```text
//! x R = x + (x Y) Ωᵀ - (x Ω) Yᵀ          ∂L/∂Y = (D - Dᵀ) Ω = K Ω,   D = ∂L/∂R
//! ```
//!
//! `K` is the gradient of the loss by the generators of rotations. So the gradient of `Y` is the sketch of
//! `K` that a randomized range finder takes (Halko, Martinsson and Tropp, arXiv 0909.4061), and nothing of
//! size `[n, n]` is formed. Sums over samples are sums of gradients.
//!
//! A probe of the activations passes its rows on. Its backward pass gives `Y` the gradient `xᵀ (x Ω)`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{AutogradFunction, LinalgError, apply_autograd};

use crate::adapter::Adapter;
use crate::base_weight::BaseWeight;
use crate::error::AdapterError;
use crate::seeded_init::SeededInit;
use crate::weight::Weight;

/// What a side of a weight is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The gradient of the loss by the generators of rotations.
    SkewGradient,
    /// The second moments of the rows.
    Activations,
}

/// Columns of a sketch beyond the directions that are asked for.
const OVERSAMPLING: usize = 8;

/// What the probe of a weight measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeSettings {
    /// The signal of the input side, and the number of directions.
    pub(crate) input: Option<(Signal, usize)>,
    /// The signal of the output side, and the number of directions.
    pub(crate) output: Option<(Signal, usize)>,
    /// Whether the gradients of the singular values are measured.
    pub(crate) spectrum: bool,
    /// The seed of `Ω`.
    pub(crate) seed: u64,
}

/// An adapter that changes nothing, and whose gradients show where a weight is best changed.
#[derive(Module, Debug)]
pub struct Probe {
    /// The probe of the layer's input.
    pub(crate) input: Option<Sketch>,
    /// The probe of the layer's output.
    pub(crate) output: Option<Sketch>,
    /// The probe of the singular values.
    pub(crate) spectrum: Option<SpectrumProbe>,
}

/// The probe of one side.
#[derive(Module, Debug)]
pub(crate) struct Sketch {
    /// `Y`, `[n, p]`, zeros.
    pub(crate) y: Param<Tensor<2>>,
    /// `Ω`, `[n, p]`.
    omega: Tensor<2>,
    /// Whether the rows are measured, instead of the gradient.
    pub(crate) of_activations: bool,
}

/// The probe of the singular values: `W = V diag(s + δ) Uᵀ` with `δ = 0`.
#[derive(Module, Debug)]
pub(crate) struct SpectrumProbe {
    /// `δ`, `[k]`, zeros.
    pub(crate) delta: Param<Tensor<1>>,
    /// `V`, `[in, k]`.
    left: Tensor<2>,
    /// `Uᵀ`, `[k, out]`.
    right: Tensor<2>,
}

impl Probe {
    /// Makes the probe of one weight.
    ///
    /// # Errors
    /// A weight that cannot be decomposed, and a probe of the activations of a convolution, whose rows no
    /// adapter sees.
    pub(crate) fn new(
        settings: &ProbeSettings,
        path: &str,
        weight: &Weight,
    ) -> Result<Self, AdapterError> {
        let init = SeededInit::new(settings.seed, path, weight);
        let [input, output] = weight.dims();
        let sketch = |side: &str, n: usize, wanted: Option<(Signal, usize)>| {
            let Some((signal, count)) = wanted else { return Ok(None) };
            let of_activations = signal == Signal::Activations;
            if of_activations && weight.shape.len() != 2 {
                return Err(AdapterError::NoActivations { path: path.to_owned() });
            }
            let p = (count + OVERSAMPLING).min(n);
            let omega = init.normal(&format!("calibration.{side}"), [n, p], 1.0);
            Ok(Some(Sketch { y: Param::from_tensor(init.zeros([n, p])), omega, of_activations }))
        };
        let spectrum = match settings.spectrum {
            false => None,
            true => {
                let decomposition =
                    |source| AdapterError::Decomposition { path: path.to_owned(), source };
                let svd = weight.svd().map_err(decomposition)?.svd;
                let delta = Param::from_tensor(svd.s.zeros_like());
                Some(SpectrumProbe { delta, left: svd.u, right: svd.vt })
            }
        };
        Ok(Self {
            input: sketch("input", input, settings.input)?,
            output: sketch("output", output, settings.output)?,
            spectrum,
        })
    }
}

impl Sketch {
    /// Computes `x R` for rows `x` `[rows, n]`, which is `x`.
    fn rows(&self, x: Tensor<2>) -> Tensor<2> {
        let (y, omega) = (self.y.val(), self.omega.clone());
        if self.of_activations {
            let [n, p] = y.dims();
            let record = RecordRows { omega: omega.without_autodiff(), sizes: [n, p] };
            return apply_autograd(&record, x.unsqueeze_dim(2), &[y.flatten(0, 1)]).flatten(1, 2);
        }
        let (y, omega) = (y.cast(x.dtype()), omega.cast(x.dtype()));
        let first = matmul(matmul(x.clone(), y.clone()), omega.clone().transpose());
        let second = matmul(matmul(x.clone(), omega), y.transpose());
        x + (first - second)
    }

    /// Computes `R w` for `w` `[n, m]`.
    fn left(&self, w: Tensor<2>) -> Tensor<2> {
        let (y, omega) = (self.y.val().cast(w.dtype()), self.omega.clone().cast(w.dtype()));
        let first = matmul(y.clone(), matmul(omega.clone().transpose(), w.clone()));
        let second = matmul(omega, matmul(y.transpose(), w.clone()));
        w + (first - second)
    }
}

impl Adapter for Probe {
    fn apply(&self, mut w: Tensor<2>) -> Tensor<2> {
        if let Some(SpectrumProbe { delta, left, right }) = &self.spectrum {
            let change = matmul(left.clone() * delta.val().unsqueeze_dim(0), right.clone());
            w = w.clone() + change.cast(w.dtype());
        }
        // There are no rows here, and so no activations. `Probe::measure` finds that no gradient came.
        if let Some(input) = self.input.as_ref().filter(|input| !input.of_activations) {
            w = input.left(w);
        }
        if let Some(output) = self.output.as_ref().filter(|output| !output.of_activations) {
            w = output.rows(w);
        }
        w
    }

    fn at_strength(self, _: f64) -> Result<Self, LinalgError> {
        Ok(self)
    }

    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        let x = match &self.input {
            Some(input) => input.rows(x.clone()),
            None => x.clone(),
        };
        let mut y = w.product(x.clone());
        if let Some(SpectrumProbe { delta, left, right }) = &self.spectrum {
            let columns = matmul(x.cast(left.dtype()), left.clone());
            let change = matmul(columns * delta.val().unsqueeze_dim(0), right.clone());
            y = y.clone() + change.cast(y.dtype());
        }
        Some(match &self.output {
            Some(output) => output.rows(y),
            None => y,
        })
    }
}

/// The identity on rows `x` `[rows, n, 1]`, with the gradient `xᵀ (x Ω)` for its small argument.
#[derive(Clone, Debug)]
struct RecordRows {
    omega: Tensor<2>,
    sizes: [usize; 2],
}

impl AutogradFunction for RecordRows {
    fn forward(&self, x: Tensor<3>, _: &[Tensor<1>]) -> Tensor<3> {
        x
    }

    fn backward(
        &self,
        x: Tensor<3>,
        _: &[Tensor<1>],
        grad: Tensor<3>,
        [needs_dx, _]: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        let x: Tensor<2> = x.flatten(1, 2);
        let x = x.cast(self.omega.dtype());
        let sketch = matmul(x.clone().transpose(), matmul(x, self.omega.clone()));
        let [n, p] = self.sizes;
        (needs_dx.then_some(grad), vec![sketch.reshape([n * p])])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};
    use soda_testing::relative_error;

    use super::*;

    /// On both paths the generator is `Y Ωᵀ - Ω Yᵀ`. Its symmetric part would have the same range, so that
    /// the directions alone do not show it.
    #[test]
    fn a_sketch_rotates_by_a_skew_generator_on_rows_and_weights() {
        let device = Device::default();
        let random = || Tensor::<2>::random([5, 3], Distribution::Normal(0.0, 1.0), &device);
        let (y, omega) = (random(), random());
        let outer = matmul(y.clone(), omega.clone().transpose());
        let expected = outer.clone() - outer.transpose();
        let sketch = Sketch { y: Param::from_tensor(y), omega, of_activations: false };
        let identity = Tensor::<2>::eye(5, &device);
        let values = |x: Tensor<2>| x.into_data().iter::<f32>().collect::<Vec<_>>();
        for rotated in [sketch.left(identity.clone()), sketch.rows(identity.clone())] {
            let found = rotated - identity.clone();
            assert!(relative_error(&values(found), &values(expected.clone())) < 1e-6);
        }
    }
}
