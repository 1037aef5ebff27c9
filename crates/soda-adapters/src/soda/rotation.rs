//! The rotation `R = R1 ⊗ R2 ⊗ … ⊗ Rm` of one side of a weight, each factor small, square and orthogonal.
//!
//! `y = x R W0ᵀ`: the input is rotated, then mapped as before. On burn's stored weight `W0ᵀ`
//! (`[in, out]`) that is `R` from the left, and the output's rotation is one from the right. The
//! product is never formed: every factor is one mode product, `in · out · Σ nᵢ` multiply-adds in all.
//!
//! | parametrization | trained | `Rᵢ` |
//! |---|---|---|
//! | Stiefel | `Rᵢ`, on the manifold | itself |
//! | Cayley | any square matrix | the Cayley transform of its skew part |
//! | unconstrained | any square matrix | itself, and no rotation any more: what orthogonality is measured against |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_linalg::{LinalgError, cayley, rotation_power, skew};

use super::Parametrization;
use crate::merge::{Combine, rotations};

/// Kronecker factors of an orthogonal matrix, or what they are made of; the first is the slowest index.
#[derive(Module, Debug)]
pub struct Rotation {
    /// `Rᵢ`, `[nᵢ, nᵢ]`, on the Stiefel manifold.
    pub factors: Vec<Param<Tensor<2>>>,
    /// Free matrices `[nᵢ, nᵢ]` instead: `Rᵢ` is the Cayley transform of the skew part.
    pub generators: Vec<Param<Tensor<2>>>,
    /// Free matrices `[nᵢ, nᵢ]` instead, which are the factors and need not be orthogonal.
    pub matrices: Vec<Param<Tensor<2>>>,
}

impl Rotation {
    /// The identity with factors of the given sizes, of `like`'s type and device.
    pub fn identity(sizes: &[usize], by: Parametrization, like: &Tensor<2>) -> Self {
        let points = |n: &usize| match by {
            Parametrization::Stiefel | Parametrization::Unconstrained => unit(*n, like),
            Parametrization::Cayley => Tensor::zeros([*n, *n], (&like.device(), like.dtype())),
        };
        let points = sizes.iter().map(|n| Param::from_tensor(points(n))).collect();
        match by {
            Parametrization::Stiefel => Self { factors: points, ..Self::none() },
            Parametrization::Cayley => Self { generators: points, ..Self::none() },
            Parametrization::Unconstrained => Self { matrices: points, ..Self::none() },
        }
    }

    fn none() -> Self {
        Self { factors: Vec::new(), generators: Vec::new(), matrices: Vec::new() }
    }

    /// The rotation with these factors.
    pub(crate) fn from_factors(factors: impl IntoIterator<Item = Tensor<2>>) -> Self {
        let factors = factors.into_iter().map(Param::from_tensor).collect();
        Self { factors, ..Self::none() }
    }

    /// `R1, …, Rm`, on the tape where the parameters are.
    pub fn factors(&self) -> Vec<Tensor<2>> {
        let turned = |generator: &Param<Tensor<2>>| {
            cayley(skew(generator.val().unsqueeze_dim(0))).squeeze_dim(0)
        };
        let given = self.factors.iter().chain(&self.matrices).map(Param::val);
        given.chain(self.generators.iter().map(turned)).collect()
    }

    /// `Rᵗ`, factor by factor: since `log(A ⊗ B) = log A ⊗ I + I ⊗ log B`, that is the power of the
    /// whole. A point, given by its factors whatever it was given by. Free matrices have no geodesic:
    /// `I + t (Mᵢ - I)`.
    pub(crate) fn power(&self, t: f64) -> Result<Self, LinalgError> {
        if !self.matrices.is_empty() {
            let along = |m: &Param<Tensor<2>>| {
                let m = m.val();
                let unit = unit(m.dims()[0], &m);
                Param::from_tensor(unit.clone() + (m - unit).mul_scalar(t))
            };
            return Ok(Self {
                matrices: self.matrices.iter().map(along).collect(),
                ..Self::none()
            });
        }
        let powers = self.factors().into_iter().map(|factor| rotation_power(&factor, t));
        Ok(Self::from_factors(powers.collect::<Result<Vec<_>, _>>()?))
    }

    /// One rotation of several, factor by factor; `None` where their sizes differ.
    pub(crate) fn combine(
        parts: &[(f64, Vec<Tensor<2>>)],
        how: Combine,
    ) -> Result<Option<Self>, LinalgError> {
        let sizes = |factors: &[Tensor<2>]| factors.iter().map(Tensor::dims).collect::<Vec<_>>();
        let Some((_, first)) = parts.first() else { return Ok(None) };
        if parts.iter().any(|(_, factors)| sizes(factors) != sizes(first)) {
            return Ok(None);
        }
        let factor = |index: usize| {
            let parts: Vec<_> =
                parts.iter().map(|(weight, factors)| (*weight, factors[index].clone())).collect();
            rotations(&parts, how)
        };
        let factors = (0..first.len()).map(factor).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Self::from_factors(factors)))
    }
}

/// `I`, `[n, n]`, of the type and device of `like`.
fn unit(n: usize, like: &Tensor<2>) -> Tensor<2> {
    Tensor::<2>::eye(n, &like.device()).cast(like.dtype())
}
