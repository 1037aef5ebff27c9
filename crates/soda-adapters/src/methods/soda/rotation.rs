//! The rotation `R = R1 ⊗ R2 ⊗ … ⊗ Rm` of one side of a weight, each factor small, square and orthogonal.
//!
//! `y = x R W0ᵀ` rotates the input before the layer. On the weight as burn stores it, `W0ᵀ` `[in, out]`, `R`
//! multiplies from the left, and a rotation of the output multiplies from the right. The Kronecker product is
//! never formed: each factor is a mode product, with `in · out · Σ nᵢ` multiply-adds in all.
//!
//! | parametrization | trained | `Rᵢ` |
//! |---|---|---|
//! | Stiefel | `Rᵢ`, on the manifold | the trained matrix |
//! | Cayley | any square matrix | the Cayley transform of its skew-symmetric part |
//! | unconstrained | any square matrix | the trained matrix, which need not be orthogonal |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_linalg::{LinalgError, cayley, rotation_power, skew};

use super::config::Parametrization;
use crate::rotation_merge::{MergeRule, merge_rotations};

/// The Kronecker factors of a rotation, or the parameters that make them. The first factor has the slowest
/// index.
///
/// One of the three lists has the parameters, and the other two are empty.
#[derive(Module, Debug)]
pub struct Rotation {
    /// The factors `Rᵢ`, `[nᵢ, nᵢ]`, on the Stiefel manifold.
    pub factors: Vec<Param<Tensor<2>>>,
    /// Free matrices `[nᵢ, nᵢ]`: `Rᵢ` is the Cayley transform of the skew-symmetric part.
    pub generators: Vec<Param<Tensor<2>>>,
    /// Free matrices `[nᵢ, nᵢ]`, which are the factors and need not be orthogonal.
    pub matrices: Vec<Param<Tensor<2>>>,
}

impl Rotation {
    /// Makes the identity with factors of the given sizes, with the float type and device of `like`.
    pub fn identity(sizes: &[usize], parametrization: Parametrization, like: &Tensor<2>) -> Self {
        let point = |n: &usize| match parametrization {
            Parametrization::Stiefel | Parametrization::Unconstrained => identity(*n, like),
            Parametrization::Cayley => Tensor::zeros([*n, *n], (&like.device(), like.dtype())),
        };
        let points = sizes.iter().map(|n| Param::from_tensor(point(n))).collect();
        match parametrization {
            Parametrization::Stiefel => Self { factors: points, ..Self::empty() },
            Parametrization::Cayley => Self { generators: points, ..Self::empty() },
            Parametrization::Unconstrained => Self { matrices: points, ..Self::empty() },
        }
    }

    fn empty() -> Self {
        Self { factors: Vec::new(), generators: Vec::new(), matrices: Vec::new() }
    }

    /// Makes the rotation with these factors.
    pub(crate) fn from_factors(factors: impl IntoIterator<Item = Tensor<2>>) -> Self {
        let factors = factors.into_iter().map(Param::from_tensor).collect();
        Self { factors, ..Self::empty() }
    }

    /// Computes the factors `R1, …, Rm`. They are on the autodiff graph if the parameters are.
    pub fn factors(&self) -> Vec<Tensor<2>> {
        let transform = |generator: &Param<Tensor<2>>| {
            cayley(skew(generator.val().unsqueeze_dim(0))).squeeze_dim(0)
        };
        let given = self.factors.iter().chain(&self.matrices).map(Param::val);
        given.chain(self.generators.iter().map(transform)).collect()
    }

    /// Computes `Rᵗ` factor by factor, which is exact since `log(A ⊗ B) = log A ⊗ I + I ⊗ log B`.
    ///
    /// The result has factors, in every parametrization of rotations. Unconstrained matrices have no geodesic
    /// and become `I + t (Mᵢ - I)`.
    pub(crate) fn power(&self, t: f64) -> Result<Self, LinalgError> {
        if !self.matrices.is_empty() {
            let scale = |m: &Param<Tensor<2>>| {
                let m = m.val();
                let identity = identity(m.dims()[0], &m);
                Param::from_tensor(identity.clone() + (m - identity).mul_scalar(t))
            };
            return Ok(Self {
                matrices: self.matrices.iter().map(scale).collect(),
                ..Self::empty()
            });
        }
        let powers = self.factors().into_iter().map(|factor| rotation_power(&factor, t));
        Ok(Self::from_factors(powers.collect::<Result<Vec<_>, _>>()?))
    }

    /// Merges weighted rotations, given by their factors, factor by factor; `None` if the sizes differ.
    pub(crate) fn merge(
        weighted: &[(f64, Vec<Tensor<2>>)],
        rule: MergeRule,
    ) -> Result<Option<Self>, LinalgError> {
        let sizes = |factors: &[Tensor<2>]| factors.iter().map(Tensor::dims).collect::<Vec<_>>();
        let Some((_, first)) = weighted.first() else { return Ok(None) };
        if weighted.iter().any(|(_, factors)| sizes(factors) != sizes(first)) {
            return Ok(None);
        }
        let factor = |index: usize| {
            let factor =
                |(weight, factors): &(f64, Vec<Tensor<2>>)| (*weight, factors[index].clone());
            merge_rotations(&weighted.iter().map(factor).collect::<Vec<_>>(), rule)
        };
        let factors = (0..first.len()).map(factor).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Self::from_factors(factors)))
    }
}

/// `I`, `[n, n]`, with the float type and device of `like`.
fn identity(n: usize, like: &Tensor<2>) -> Tensor<2> {
    Tensor::<2>::eye(n, &like.device()).cast(like.dtype())
}
