//! The rotation of one side of a weight: `R = R1 ⊗ R2 ⊗ … ⊗ Rm`, each factor small, square and orthogonal, or
//! `R = I + Q (Rr - I) Qᵀ` in a subspace with the orthonormal basis `Q` `[n, r]`.
//!
//! `y = x R W0ᵀ` rotates the input before the layer. On the weight as burn stores it, `W0ᵀ` `[in, out]`, `R`
//! multiplies from the left, and a rotation of the output multiplies from the right. The Kronecker product is
//! never formed: each factor is a mode product, with `in · out · Σ nᵢ` multiply-adds in all.
//!
//! A rotation in a subspace has one factor, `Rr` `[r, r]`, and costs `2 r` multiply-adds for each entry of a
//! row. It is orthogonal if `Rr` is.
//!
//! | parametrization | trained | `Rᵢ` |
//! |---|---|---|
//! | Stiefel | `Rᵢ`, on the manifold | the trained matrix |
//! | Cayley | any square matrix | the Cayley transform of its skew-symmetric part |
//! | unconstrained | any square matrix | the trained matrix, which need not be orthogonal |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{LinalgError, Qr, cayley, kron_left, kron_right, rotation_power, skew};

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
    /// `Q`, `[n, r]`, frozen, for a rotation in a subspace; the one factor is `Rr`.
    pub basis: Option<Param<Tensor<2>>>,
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
        Self { factors: Vec::new(), generators: Vec::new(), matrices: Vec::new(), basis: None }
    }

    /// Makes the rotation with these factors.
    pub(crate) fn from_factors(factors: impl IntoIterator<Item = Tensor<2>>) -> Self {
        let factors = factors.into_iter().map(Param::from_tensor).collect();
        Self { factors, ..Self::empty() }
    }

    /// Puts a rotation with one factor into the subspace with the orthonormal basis `q` `[n, r]`.
    pub(crate) fn within(self, q: Tensor<2>) -> Self {
        Self { basis: Some(Param::from_tensor(q).set_require_grad(false)), ..self }
    }

    /// `Q`, `[n, r]`, of a rotation in a subspace.
    pub(crate) fn basis(&self) -> Option<Tensor<2>> {
        self.basis.as_ref().map(Param::val)
    }

    /// `R1 - I`, `[r, r]`. It is on the autodiff graph if the parameters are.
    pub(crate) fn deviation(&self) -> Tensor<2> {
        let factor = self.factors().remove(0);
        let identity = identity(factor.dims()[0], &factor);
        factor - identity
    }

    /// Computes `x R` for rows `x` `[rows, n]`.
    pub(crate) fn rows(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(q) = self.basis() else { return kron_right(x, &self.factors()) };
        let q = q.cast(x.dtype());
        let turned = matmul(matmul(x.clone(), q.clone()), self.deviation().cast(x.dtype()));
        x + matmul(turned, q.transpose())
    }

    /// Computes `R w` for `w` `[n, m]`.
    pub(crate) fn columns(&self, w: Tensor<2>) -> Tensor<2> {
        let Some(q) = self.basis() else { return kron_left(&self.factors(), w) };
        let turned = matmul(self.deviation(), matmul(q.clone().transpose(), w.clone()));
        w + matmul(q, turned)
    }

    /// Multiply-adds of `x R` for each entry of `x`.
    pub(crate) fn cost_per_entry(&self) -> usize {
        match &self.basis {
            Some(q) => 2 * q.val().dims()[1],
            None => self.factors().iter().map(|factor| factor.dims()[0]).sum(),
        }
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
            let matrices = self.matrices.iter().map(scale).collect();
            return Ok(Self { matrices, basis: self.basis.clone(), ..Self::empty() });
        }
        let powers = self.factors().into_iter().map(|factor| rotation_power(&factor, t));
        let powers = Self::from_factors(powers.collect::<Result<Vec<_>, _>>()?);
        Ok(Self { basis: self.basis.clone(), ..powers })
    }

    /// Merges weighted rotations: factor by factor, or in the subspace that holds all their subspaces.
    /// Returns `None` for rotations of different forms or sizes.
    ///
    /// # Errors
    /// A rotation by half a turn has no logarithm.
    pub(crate) fn merge(
        weighted: &[(f64, Self)],
        rule: MergeRule,
    ) -> Result<Option<Self>, LinalgError> {
        let bases: Vec<_> = weighted.iter().filter_map(|(_, rotation)| rotation.basis()).collect();
        let factors: Vec<_> = weighted.iter().map(|(_, rotation)| rotation.factors()).collect();
        if !bases.is_empty() {
            return if bases.len() == weighted.len() {
                merge_subspaces(weighted, bases, rule)
            } else {
                Ok(None)
            };
        }
        let sizes = |factors: &[Tensor<2>]| factors.iter().map(Tensor::dims).collect::<Vec<_>>();
        let Some(first) = factors.first() else { return Ok(None) };
        if factors.iter().any(|factors| sizes(factors) != sizes(first)) {
            return Ok(None);
        }
        let factor = |index: usize| {
            let weights = weighted.iter().map(|(weight, _)| *weight);
            let factors = weights.zip(&factors).map(|(weight, f)| (weight, f[index].clone()));
            merge_rotations(&factors.collect::<Vec<_>>(), rule)
        };
        let factors = (0..first.len()).map(factor).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Self::from_factors(factors)))
    }
}

/// Merges rotations of subspaces within the sum of the subspaces, which each of them leaves invariant.
///
/// With a basis `P` of the sum, the rotation `i` is `I + PᵀQᵢ (Rᵢ - I) QᵢᵀP` there.
fn merge_subspaces(
    weighted: &[(f64, Rotation)],
    bases: Vec<Tensor<2>>,
    rule: MergeRule,
) -> Result<Option<Rotation>, LinalgError> {
    let n = bases[0].dims()[0];
    if bases.iter().any(|q| q.dims()[0] != n) {
        return Ok(None);
    }
    let all = Tensor::cat(bases, 1);
    let p = if all.dims()[1] < n { Qr::thin(&all)?.q } else { identity(n, &all) };
    let within = |(weight, rotation): &(f64, Rotation)| {
        let q = rotation.basis()?;
        let overlap = matmul(p.clone().transpose(), q);
        let turned = matmul(overlap.clone(), rotation.deviation());
        let change = matmul(turned, overlap.transpose());
        Some((*weight, identity(p.dims()[1], &change) + change))
    };
    let rotations: Vec<_> = weighted.iter().filter_map(within).collect();
    let merged = merge_rotations(&rotations, rule)?;
    Ok(Some(Rotation::from_factors([merged]).within(p)))
}

/// `I`, `[n, n]`, with the float type and device of `like`.
fn identity(n: usize, like: &Tensor<2>) -> Tensor<2> {
    Tensor::<2>::eye(n, &like.device()).cast(like.dtype())
}
