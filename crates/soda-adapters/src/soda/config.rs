//! SODA's settings and what they become on a weight.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_linalg::{Svd, factorize};

use super::{Rotation, Soda, Spectrum};
use crate::error::AdapterError;
use crate::method::{Geometry, Method};

/// Which axes of SODA are trained, and how each starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SodaConfig {
    /// The Kronecker rotation, absent for SVDiff.
    pub rotation: Option<RotationConfig>,
    /// The spectral shift, absent for the rotation alone.
    pub spectrum: Option<SpectrumConfig>,
}

/// Settings of the rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotationConfig {
    /// Number of Kronecker factors; a width with fewer prime factors gets fewer.
    pub factors: usize,
}

/// Settings of the spectral shift.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpectrumConfig {
    /// Where `δ` starts. The released code of the paper uses 1e-3, by which a fresh adapter is not
    /// quite the identity.
    pub init: f32,
}

impl Default for SodaConfig {
    fn default() -> Self {
        Self {
            rotation: Some(RotationConfig::default()),
            spectrum: Some(SpectrumConfig::default()),
        }
    }
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self { factors: 3 }
    }
}

impl Default for SpectrumConfig {
    fn default() -> Self {
        Self { init: 0.0 }
    }
}

impl Method for SodaConfig {
    const NAME: &'static str = "soda";
    type Adapter = Soda;

    fn adapter(&self, path: &str, weight: &Tensor<2>) -> Result<Soda, AdapterError> {
        self.check()?;
        let named = |source| AdapterError::Decomposition { path: path.to_owned(), source };
        let rotation = match &self.rotation {
            None => None,
            Some(config) => {
                let sizes = factorize(weight.dims()[0], config.factors).map_err(named)?;
                Some(Rotation::identity(&sizes, &weight.device()))
            }
        };
        let spectrum = match &self.spectrum {
            None => None,
            Some(config) => Some(Spectrum::new(Svd::thin(weight).map_err(named)?, config.init)),
        };
        Ok(Soda { rotation, spectrum })
    }

    fn geometry(&self, path: &str) -> Geometry {
        if path.contains(".soda.rotation.") { Geometry::Stiefel } else { Geometry::Euclidean }
    }
}

impl SodaConfig {
    fn check(&self) -> Result<(), AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: Self::NAME, reason });
        match (&self.rotation, &self.spectrum) {
            (None, None) => refuse("it trains nothing; keep the rotation, the spectrum, or both"),
            (Some(RotationConfig { factors: 0 }), _) => {
                refuse("a rotation has at least one factor")
            }
            (_, Some(spectrum)) if !spectrum.init.is_finite() => {
                refuse("the spectrum's start must be a finite number")
            }
            _ => Ok(()),
        }
    }
}
