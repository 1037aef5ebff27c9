//! The settings of SODA.

use serde::{Deserialize, Serialize};

/// Settings of SODA: the rotation and the shift of the spectrum, each of which may be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SodaConfig {
    /// The Kronecker rotation; `None` for SVDiff.
    pub rotation: Option<RotationConfig>,
    /// The shift of the spectral part; `None` for the rotation alone.
    pub spectrum: Option<SpectrumConfig>,
}

/// Settings of the rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotationConfig {
    /// Number of Kronecker factors. A width with fewer prime factors has fewer.
    pub factors: usize,
    /// Sizes of the factors for the width that is their product. Other widths have the most even factors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<Vec<usize>>,
    /// The side of the weight that is rotated.
    pub side: Side,
    /// How the factors are kept orthogonal.
    pub parametrization: Parametrization,
}

/// The side of a weight that is rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The layer's input: `y = (x R) W0ᵀ`.
    #[default]
    Input,
    /// The layer's output, before the bias: `y = (x W0ᵀ) R`.
    Output,
    /// Both sides, each with its own rotation.
    Both,
}

impl Side {
    /// Whether the input is rotated.
    pub(crate) fn has_input(self) -> bool {
        self != Self::Output
    }

    /// Whether the output is rotated.
    pub(crate) fn has_output(self) -> bool {
        self != Self::Input
    }
}

/// How the factors of a rotation are kept orthogonal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parametrization {
    /// The factors are trained on the Stiefel manifold, by a Riemannian optimizer.
    #[default]
    Stiefel,
    /// Free matrices are trained. The factors are the Cayley transforms of their skew-symmetric parts.
    Cayley,
    /// The factors are trained without a constraint and do not stay orthogonal. This is the control
    /// experiment for the constraint.
    Unconstrained,
}

/// Settings of the shift of the spectral part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpectrumConfig {
    /// The decomposition whose spectral part is shifted.
    pub basis: Basis,
    /// The form of the shift.
    pub shift: Shift,
}

/// The decomposition of the stored weight `W0ᵀ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// `W0ᵀ = V diag(s) Uᵀ`. The shifted singular values stay at 0 or above.
    #[default]
    Svd,
    /// `W0ᵀ = Q T`, with `T` upper triangular and its diagonal at 0 or above.
    Qr,
}

/// The form of a shift of the spectral part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "form", deny_unknown_fields)]
pub enum Shift {
    /// A diagonal shift `δ`.
    Diagonal {
        /// Initial value of every entry of `δ`. The released code of the paper has 1e-3, with which an
        /// initial adapter is not the identity.
        init: f32,
    },
    /// The upper triangle of `A Aᵀ - A₀ A₀ᵀ`.
    LowRank {
        /// Number of columns of `A`.
        rank: usize,
        /// Seed of the random initial `A₀`.
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

    /// SODA-SVD with the initial `δ` and the factor sizes for SDXL of the paper's released code.
    pub fn paper() -> Self {
        let sizes = [[8, 8, 10], [6, 8, 16], [4, 16, 20], [4, 8, 64]];
        let sizes = sizes.map(Vec::from).to_vec();
        let shift = Shift::Diagonal { init: 1e-3 };
        Self {
            rotation: Some(RotationConfig { sizes, ..RotationConfig::default() }),
            spectrum: Some(SpectrumConfig { basis: Basis::Svd, shift }),
        }
    }

    /// SVDiff: the shift of the spectrum alone.
    pub fn svdiff() -> Self {
        Self { rotation: None, ..Self::default() }
    }

    /// The Kronecker rotation alone.
    pub fn rotation_only() -> Self {
        Self { spectrum: None, ..Self::default() }
    }
}
