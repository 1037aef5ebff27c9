//! Full fine-tuning of the targeted weights: what every adapter is measured against.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_linalg::LinalgError;

use crate::error::AdapterError;
use crate::fold::Weight;
use crate::init::Init;
use crate::method::{Adapter, Method};

/// Settings of full fine-tuning: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FullConfig {}

impl Method for FullConfig {
    type Adapter = Full;

    fn name(&self) -> &'static str {
        "full"
    }

    fn adapter(&self, path: &str, weight: &Weight) -> Result<Full, AdapterError> {
        let zeros = Init::new(0, path, weight).zeros(weight.matrix.dims());
        Ok(Full { delta: Param::from_tensor(zeros), strength: 1.0 })
    }
}

/// `W0 + Δ`. The base stays, so that strength, switching off and merging are those of any adapter; it
/// costs the weight once more, in f32.
#[derive(Module, Debug)]
pub struct Full {
    /// `Δᵀ`, `[in, out]`.
    pub delta: Param<Tensor<2>>,
    strength: f64,
}

impl Adapter for Full {
    fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        w + self.delta.val().mul_scalar(self.strength)
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        Ok(Self { strength: self.strength * t, ..self })
    }
}
