//! The settings of SODA.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::methods::timestep_mask::TimestepMask;

/// Settings of SODA: the rotation and the shift of the spectrum, each of which may be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SodaConfig {
    /// The rotation; `None` for SVDiff.
    pub rotation: Option<RotationConfig>,
    /// The shift of the spectral part; `None` for the rotation alone.
    pub spectrum: Option<SpectrumConfig>,
    /// How directions are measured; `None` for the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationConfig>,
    /// Whether each output has a trained scale, which starts at 1, as in GSOFT and BOFT.
    #[serde(default, skip_serializing_if = "is_off")]
    pub output_scale: bool,
    /// T-LoRA's mask of the rotated directions and of the singular values, for a rotation of a subspace and a
    /// shift of some singular values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestep_mask: Option<TimestepMask>,
}

fn is_off(setting: &bool) -> bool {
    !setting
}

/// How directions are measured before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CalibrationConfig {
    /// Number of samples, each with its own noise and timestep, rounded up to whole batches.
    pub draws: usize,
    /// Seed of the random matrices of the sketches.
    pub seed: u64,
}

impl Default for CalibrationConfig {
    fn default() -> Self {
        Self { draws: 64, seed: 0 }
    }
}

/// Settings of the rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotationConfig {
    /// The form of the rotation.
    pub structure: Structure,
    /// Where the subspace lies; only for [`Structure::Subspace`], and gradient if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subspace: Option<Subspace>,
    /// The dimension `r` of the subspace, or the number of reflections, which is even. Without it a subspace
    /// has as many numbers as the Kronecker rotation with these factors: `r = ⌊√Σ nᵢ²⌋`. Reflections are 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// The numbers that the rotations of a network share: each weight and side gets the rank that its
    /// gradient deserves, in place of one rank for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numbers: Option<usize>,
    /// The ranks of weights by path, and of the output side by `<path>.output`. A calibration fills them from
    /// `numbers`. A rank of 0 is no rotation.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ranks: BTreeMap<String, usize>,
    /// Whether a rotation of a subspace has a trained scale on either side (PSOFT), and is no rotation then:
    /// `I + Q (diag(a) Rr diag(b) - I) Qᵀ`.
    #[serde(skip_serializing_if = "is_off")]
    pub scales: bool,
    /// Size of the blocks, for [`Structure::GroupAndShuffle`]; 32 if it is not given. A width that is not a
    /// multiple of the size uses the divisor nearest to the size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
    /// Seed of the permutation of [`Structure::KroneckerPermuted`], or of the initial vectors of
    /// [`Structure::Householder`]; 0 if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Number of Kronecker factors of each product. A width with fewer prime factors has fewer.
    pub factors: usize,
    /// Sizes of the factors for the width that is their product. Other widths have the most even factors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<Vec<usize>>,
    /// The side of the weight that is rotated.
    pub side: Side,
    /// How the factors are kept orthogonal.
    pub parametrization: Parametrization,
}

/// The form of a rotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Structure {
    /// `R = R1 ⊗ … ⊗ Rm`, on the whole space.
    #[default]
    Kronecker,
    /// `R = (A1 ⊗ … ⊗ Am) Pᵀ (B1 ⊗ … ⊗ Bm) P` with a fixed random permutation `P`.
    KroneckerPermuted,
    /// `R = diag(A1, …, Ab) Pᵀ diag(B1, …, Bb) P` with the perfect shuffle `P` (GSOFT, arXiv 2406.10019).
    GroupAndShuffle,
    /// `R = I + Q (Rr - I) Qᵀ`: a full rotation `Rr` `[r, r]` of a subspace with the frozen basis `Q`.
    Subspace,
    /// `R = Hr ⋯ H1` with reflections `Hᵢ = I - 2 uᵢ uᵢᵀ / ‖uᵢ‖²` (HRA, arXiv 2405.17484).
    Householder,
}

/// Where the subspace of a rotation lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subspace {
    /// The leading directions of the loss's gradient by rotations, at the base model.
    #[default]
    Gradient,
    /// The leading directions of the layer's input, or output.
    Activations,
    /// The leading singular vectors of the weight (PSOFT, arXiv 2505.11235).
    Principal,
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
    /// The number `k` of singular values that are shifted. Without it all of them are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Which singular values are shifted; only with a rank, and the largest if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub select: Option<Selection>,
}

/// Which singular values are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// The largest ones.
    #[default]
    Leading,
    /// Those with the largest gradient `|uᵀ G v|` of the loss at the base model.
    Gradient,
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
            calibration: None,
            output_scale: false,
            timestep_mask: None,
        }
    }
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self {
            structure: Structure::default(),
            subspace: None,
            rank: None,
            numbers: None,
            ranks: BTreeMap::new(),
            scales: false,
            block_size: None,
            seed: None,
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
        let spectrum = SpectrumConfig { basis: Basis::Qr, ..SpectrumConfig::default() };
        Self { spectrum: Some(spectrum), ..Self::default() }
    }

    /// SODA-QR with a shift of low rank.
    pub fn qr_low_rank(rank: usize) -> Self {
        let shift = Shift::LowRank { rank, seed: 0 };
        let spectrum = SpectrumConfig { basis: Basis::Qr, shift, ..SpectrumConfig::default() };
        Self { spectrum: Some(spectrum), ..Self::default() }
    }

    /// SODA-SVD with the initial `δ` and the factor sizes for SDXL of the paper's released code.
    pub fn paper() -> Self {
        let sizes = [[8, 8, 10], [6, 8, 16], [4, 16, 20], [4, 8, 64]];
        let sizes = sizes.map(Vec::from).to_vec();
        let shift = Shift::Diagonal { init: 1e-3 };
        Self {
            rotation: Some(RotationConfig { sizes, ..RotationConfig::default() }),
            spectrum: Some(SpectrumConfig { shift, ..SpectrumConfig::default() }),
            ..Self::default()
        }
    }

    /// A rotation of the gradient's subspace, and the shift of as many singular values.
    pub fn subspace() -> Self {
        let rotation =
            RotationConfig { structure: Structure::Subspace, ..RotationConfig::default() };
        let spectrum = SpectrumConfig { rank: Some(16), ..SpectrumConfig::default() };
        Self { rotation: Some(rotation), spectrum: Some(spectrum), ..Self::default() }
    }

    /// SODA-SVD with two Kronecker products of four factors and a permutation between them, which have about
    /// as many numbers as one product of three.
    pub fn permuted() -> Self {
        let structure = Structure::KroneckerPermuted;
        let rotation = RotationConfig { structure, factors: 4, ..RotationConfig::default() };
        Self { rotation: Some(rotation), ..Self::default() }
    }

    /// GSOFT (arXiv 2406.10019): two levels of blocks with a shuffle, as Cayley transforms, and a scale of
    /// each output.
    pub fn gsoft() -> Self {
        let rotation = RotationConfig {
            structure: Structure::GroupAndShuffle,
            parametrization: Parametrization::Cayley,
            ..RotationConfig::default()
        };
        let rotation = Some(rotation);
        Self { rotation, spectrum: None, output_scale: true, ..Self::default() }
    }

    /// PSOFT (arXiv 2505.11235) with the defaults of PEFT: a Cayley transform in the space of 32 leading
    /// singular vectors, between two scales.
    pub fn psoft() -> Self {
        let rotation = RotationConfig {
            structure: Structure::Subspace,
            subspace: Some(Subspace::Principal),
            rank: Some(32),
            scales: true,
            parametrization: Parametrization::Cayley,
            ..RotationConfig::default()
        };
        Self { rotation: Some(rotation), spectrum: None, ..Self::default() }
    }

    /// HRA (arXiv 2405.17484) with the defaults of PEFT: eight reflections.
    pub fn hra() -> Self {
        let structure = Structure::Householder;
        let rotation = RotationConfig { structure, rank: Some(8), ..RotationConfig::default() };
        Self { rotation: Some(rotation), spectrum: None, ..Self::default() }
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
