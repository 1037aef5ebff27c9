//! Full fine-tuning of the targeted weights: the reference for every adapter.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_linalg::LinalgError;

use crate::adapter::Adapter;
use crate::error::AdapterError;
use crate::method::Method;
use crate::seeded_init::SeededInit;
use crate::weight::Weight;

/// Settings of full fine-tuning. There are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FullConfig {}

impl Method for FullConfig {
    type Adapter = Full;

    fn name(&self) -> &'static str {
        "full"
    }

    fn needs_its_base(&self) -> bool {
        false
    }

    fn init(&self, path: &str, weight: &Weight) -> Result<Full, AdapterError> {
        let zeros = SeededInit::new(0, path, weight).zeros(weight.dims());
        Ok(Full { delta: Param::from_tensor(zeros), strength: 1.0 })
    }
}

/// The adapter of one weight: `W0 + Δ`.
///
/// The base weight is kept, so that strength, disabling and merging work as for any adapter. The cost is a
/// second copy of the weight in f32.
#[derive(Module, Debug)]
pub struct Full {
    /// `Δᵀ`, `[in, out]`, trainable.
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
