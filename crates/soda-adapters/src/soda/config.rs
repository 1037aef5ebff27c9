//! SODA's settings and what they become on a weight.

use serde::{Deserialize, Serialize};
use soda_linalg::{LinalgError, factorize};

use super::{Rotation, Soda, Spectrum};
use crate::error::AdapterError;
use crate::fold::{Weight, compute_dtype};
use crate::init::Init;
use crate::method::{Geometry, Method};

/// Which axes of SODA are trained, and how each starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SodaConfig {
    /// The Kronecker rotation, absent for SVDiff.
    pub rotation: Option<RotationConfig>,
    /// The shift of the spectral part, absent for the rotation alone.
    pub spectrum: Option<SpectrumConfig>,
}

/// Settings of the rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotationConfig {
    /// Number of Kronecker factors; a width with fewer prime factors gets fewer.
    pub factors: usize,
    /// Sizes of the factors of a width, which is their product, where they are to be these and not the most even.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<Vec<usize>>,
    /// Which side of the weight turns.
    pub side: Side,
    /// How the factors stay orthogonal.
    pub parametrization: Parametrization,
}

/// Which side of a weight a rotation turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The layer's input: `y = (x R) W0ᵀ`.
    #[default]
    Input,
    /// The layer's output (before the bias): `y = (x W0ᵀ) R`.
    Output,
    /// Both, each with its own rotation.
    Both,
}

impl Side {
    pub(crate) fn input(self) -> bool {
        self != Self::Output
    }

    pub(crate) fn output(self) -> bool {
        self != Self::Input
    }
}

/// How a rotation's factors stay orthogonal, if they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parametrization {
    /// The factors are trained, on the Stiefel manifold.
    #[default]
    Stiefel,
    /// Free matrices are trained, in flat space; the factors are Cayley transforms of their skew parts.
    Cayley,
    /// The factors are trained in flat space and do not stay orthogonal: no method of anybody's, but what
    /// the constraint is measured against.
    Unconstrained,
}

/// Settings of the shift of the spectral part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpectrumConfig {
    /// The decomposition whose spectral part moves.
    pub basis: Basis,
    /// What moves of it.
    pub shift: Shift,
}

/// The decomposition of the stored weight `W0ᵀ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// `W0ᵀ = V diag(s) Uᵀ`; singular values are kept from going negative.
    #[default]
    Svd,
    /// `W0ᵀ = Q T`, `T` upper triangular with a diagonal of 0 or more.
    Qr,
}

/// How the spectral part moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "form", deny_unknown_fields)]
pub enum Shift {
    /// Along its diagonal, by `δ`.
    Diagonal {
        /// Where `δ` starts. The released code of the paper uses 1e-3, by which a fresh adapter is not
        /// quite the identity.
        init: f32,
    },
    /// By the upper triangle of `A Aᵀ - A₀ A₀ᵀ`.
    LowRank {
        /// Columns of `A`.
        rank: usize,
        /// Seed of the random start `A₀`.
        seed: u64,
    },
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
        Self {
            factors: 3,
            sizes: Vec::new(),
            side: Side::default(),
            parametrization: Parametrization::default(),
        }
    }
}

impl RotationConfig {
    /// Sizes of the factors of a width.
    fn sizes_of(&self, width: usize) -> Result<Vec<usize>, LinalgError> {
        let named = self.sizes.iter().find(|sizes| sizes.iter().product::<usize>() == width);
        named.map_or_else(|| factorize(width, self.factors), |sizes| Ok(sizes.clone()))
    }
}

impl Default for Shift {
    fn default() -> Self {
        Self::Diagonal { init: 0.0 }
    }
}

impl SodaConfig {
    /// SODA-QR with a diagonal shift.
    pub fn qr() -> Self {
        let spectrum = SpectrumConfig { basis: Basis::Qr, shift: Shift::default() };
        Self { spectrum: Some(spectrum), ..Self::default() }
    }

    /// SODA-QR with a shift of low rank.
    pub fn qr_low_rank(rank: usize) -> Self {
        let shift = Shift::LowRank { rank, seed: 0 };
        Self { spectrum: Some(SpectrumConfig { basis: Basis::Qr, shift }), ..Self::default() }
    }

    /// SODA-SVD with the start of the paper's released code, and its factors' sizes, of SDXL's widths.
    pub fn paper() -> Self {
        let sizes = [[8, 8, 10], [6, 8, 16], [4, 16, 20], [4, 8, 64]];
        let sizes = sizes.map(Vec::from).to_vec();
        let shift = Shift::Diagonal { init: 1e-3 };
        Self {
            rotation: Some(RotationConfig { sizes, ..RotationConfig::default() }),
            spectrum: Some(SpectrumConfig { basis: Basis::Svd, shift }),
        }
    }

    /// The spectrum alone.
    pub fn svdiff() -> Self {
        Self { rotation: None, ..Self::default() }
    }

    /// The rotation alone.
    pub fn rotation_only() -> Self {
        Self { spectrum: None, ..Self::default() }
    }

    fn check(&self) -> Result<(), AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: NAME, reason });
        if self.rotation.is_none() && self.spectrum.is_none() {
            return refuse("it trains nothing; keep the rotation, the spectrum, or both");
        }
        if self.rotation.as_ref().is_some_and(|rotation| rotation.factors == 0) {
            return refuse("a rotation has at least one factor");
        }
        let mut sizes = self.rotation.iter().flat_map(|rotation| &rotation.sizes);
        if sizes.any(|sizes| sizes.is_empty() || sizes.contains(&0)) {
            return refuse("sizes of factors are lists of numbers of 1 or more");
        }
        match self.spectrum.as_ref().map(|spectrum| spectrum.shift) {
            Some(Shift::Diagonal { init }) if !init.is_finite() => {
                refuse("the spectrum's start must be a finite number")
            }
            Some(Shift::LowRank { rank: 0, .. }) => refuse("a low-rank shift has rank 1 or more"),
            _ => Ok(()),
        }
    }
}

const NAME: &str = "soda";

impl Method for SodaConfig {
    type Adapter = Soda;

    fn name(&self) -> &'static str {
        NAME
    }

    fn decomposes(&self) -> bool {
        self.spectrum.as_ref().is_some_and(|spectrum| spectrum.basis == Basis::Svd)
    }

    fn adapter(&self, path: &str, weight: &Weight) -> Result<Soda, AdapterError> {
        self.check()?;
        let named = |source| AdapterError::Decomposition { path: path.to_owned(), source };
        let w = weight.matrix.clone().cast(compute_dtype(weight.matrix.dtype()));
        let [input, output] = w.dims();
        let rotation = |width: usize, wanted: fn(Side) -> bool| match &self.rotation {
            Some(config) if wanted(config.side) => {
                let sizes = config.sizes_of(width).map_err(named)?;
                Ok(Some(Rotation::identity(&sizes, config.parametrization, &w)))
            }
            _ => Ok(None),
        };
        let spectrum = match &self.spectrum {
            None => None,
            Some(config) => {
                let seed = if let Shift::LowRank { seed, .. } = config.shift { seed } else { 0 };
                let init = Init::new(seed, path, weight);
                Some(Spectrum::new(config, weight, &w, &init).map_err(named)?)
            }
        };
        Ok(Soda {
            rotation: rotation(input, Side::input)?,
            output_rotation: rotation(output, Side::output)?,
            spectrum,
        })
    }

    fn geometry(&self, path: &str) -> Geometry {
        // Generators of the Cayley transform and free matrices are named otherwise, and flat.
        let factor = path.contains("rotation.factors.");
        if factor { Geometry::Stiefel } else { Geometry::Euclidean }
    }
}
