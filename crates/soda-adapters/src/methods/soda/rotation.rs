//! The rotation of one side of a weight.
//!
//! `y = x R W0ᵀ` rotates the input before the layer. On the weight as burn stores it, `W0ᵀ` `[in, out]`, `R`
//! multiplies from the left, and a rotation of the output multiplies from the right. `R` is never formed.
//!
//! | structure | `R` | multiply-adds for each entry of a row |
//! |---|---|---|
//! | Kronecker | `R1 ⊗ … ⊗ Rm` | `Σ nᵢ` |
//! | Kronecker, permuted | `(⊗ Aᵢ) Pᵀ (⊗ Bᵢ) P` | `2 Σ nᵢ` |
//! | group and shuffle | `diag(A1, …) Pᵀ diag(B1, …) P`, blocks of `b` | `2 b` |
//! | subspace | `I + Q (Rr - I) Qᵀ`, `Q` `[n, r]` orthonormal and frozen | `2 r` |
//! | Householder | `I + Z S Zᵀ`, the product of `r` [reflections](super::reflections) | `2 r` |
//!
//! | parametrization | trained | `Rᵢ` |
//! |---|---|---|
//! | Stiefel | `Rᵢ`, on the manifold | the trained matrix |
//! | Cayley | any square matrix | the Cayley transform of its skew-symmetric part |
//! | unconstrained | any square matrix | the trained matrix, which need not be orthogonal |
//!
//! With scales, the rotation of a subspace becomes `diag(a) Rr diag(b)`, as PSOFT (arXiv 2505.11235) has it.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{
    LinalgError, block_diag_left, block_diag_right, cayley, kron_left, kron_right, rotation_power,
    skew,
};

use super::config::Parametrization;
use super::reflections::compact;
use crate::methods::permutation::Permutation;

/// The trained matrices of a rotation, or the parameters that make them.
///
/// One of `factors`, `generators`, `matrices`, `blocks` and `reflections` has the parameters of a product,
/// and the others are empty. The first Kronecker factor has the slowest index.
#[derive(Module, Debug)]
pub struct Rotation {
    /// The factors `Rᵢ`, `[nᵢ, nᵢ]`, on the Stiefel manifold.
    pub factors: Vec<Param<Tensor<2>>>,
    /// Free matrices `[nᵢ, nᵢ]`: `Rᵢ` is the Cayley transform of the skew-symmetric part.
    pub generators: Vec<Param<Tensor<2>>>,
    /// Free matrices `[nᵢ, nᵢ]`, which are the factors and need not be orthogonal.
    pub matrices: Vec<Param<Tensor<2>>>,
    /// The blocks of a block-diagonal product, `[n / b, b, b]`, in any parametrization.
    pub blocks: Option<Param<Tensor<3>>>,
    /// The vectors `uᵢ` of reflections, `[n, r]`.
    pub reflections: Option<Param<Tensor<2>>>,
    /// `Q`, `[n, r]`, frozen, for a rotation in a subspace; the one factor is `Rr`.
    pub basis: Option<Param<Tensor<2>>>,
    /// `a` and `b` of a rotation in a subspace.
    pub scales: Option<Scales>,
    /// The second product, at most one, between the permutation and its inverse.
    pub permuted: Vec<Rotation>,
    #[module(skip)]
    permutation: Option<Permutation>,
    #[module(skip)]
    parametrization: Parametrization,
}

/// The scales on either side of a rotation in a subspace.
#[derive(Module, Debug)]
pub struct Scales {
    /// `a`, `[r]`, on the side of the input.
    pub input: Param<Tensor<1>>,
    /// `b`, `[r]`, on the side of the output.
    pub output: Param<Tensor<1>>,
}

impl Rotation {
    /// Makes the identity with factors of the given sizes, with the float type and device of `like`.
    pub fn identity(sizes: &[usize], parametrization: Parametrization, like: &Tensor<2>) -> Self {
        let point = |n: &usize| match parametrization {
            Parametrization::Stiefel | Parametrization::Unconstrained => identity(*n, like),
            Parametrization::Cayley => Tensor::zeros([*n, *n], (&like.device(), like.dtype())),
        };
        let points = sizes.iter().map(|n| Param::from_tensor(point(n))).collect();
        let empty = Self::empty(parametrization);
        match parametrization {
            Parametrization::Stiefel => Self { factors: points, ..empty },
            Parametrization::Cayley => Self { generators: points, ..empty },
            Parametrization::Unconstrained => Self { matrices: points, ..empty },
        }
    }

    /// Makes the identity of `width` in blocks of `size`, a divisor of `width`.
    pub(crate) fn block_identity(
        width: usize,
        size: usize,
        parametrization: Parametrization,
        like: &Tensor<2>,
    ) -> Self {
        let shape = [width / size, size, size];
        let zeros = Tensor::zeros(shape, (&like.device(), like.dtype()));
        let blocks = match parametrization {
            Parametrization::Cayley => zeros,
            Parametrization::Stiefel | Parametrization::Unconstrained => {
                zeros + identity(size, like).unsqueeze_dim(0)
            }
        };
        Self { blocks: Some(Param::from_tensor(blocks)), ..Self::empty(parametrization) }
    }

    /// Makes the product of the reflections by `u` `[n, r]`. It is the identity if the columns are equal in
    /// pairs.
    pub(crate) fn from_reflections(u: Tensor<2>) -> Self {
        let reflections = Some(Param::from_tensor(u));
        Self { reflections, ..Self::empty(Parametrization::Stiefel) }
    }

    fn empty(parametrization: Parametrization) -> Self {
        Self {
            factors: Vec::new(),
            generators: Vec::new(),
            matrices: Vec::new(),
            blocks: None,
            reflections: None,
            basis: None,
            scales: None,
            permuted: Vec::new(),
            permutation: None,
            parametrization,
        }
    }

    /// Makes the rotation with these factors.
    pub(crate) fn from_factors(factors: impl IntoIterator<Item = Tensor<2>>) -> Self {
        let factors = factors.into_iter().map(Param::from_tensor).collect();
        Self { factors, ..Self::empty(Parametrization::Stiefel) }
    }

    /// Puts a rotation with one factor into the subspace with the orthonormal basis `q` `[n, r]`.
    pub(crate) fn within(self, q: Tensor<2>) -> Self {
        Self { basis: Some(Param::from_tensor(q).set_require_grad(false)), ..self }
    }

    /// Multiplies with `second` in the order of `permutation`: `R Pᵀ R2 P`.
    pub(crate) fn then_permuted(self, second: Self, permutation: Permutation) -> Self {
        Self { permuted: vec![second], permutation: Some(permutation), ..self }
    }

    /// Gives a rotation in a subspace of dimension `r` scales of 1, with the float type and device of `like`.
    pub(crate) fn scaled(self, r: usize, like: &Tensor<2>) -> Self {
        let ones = || Param::from_tensor(Tensor::ones([r], (&like.device(), like.dtype())));
        Self { scales: Some(Scales { input: ones(), output: ones() }), ..self }
    }

    /// `Q`, `[n, r]`, of a rotation in a subspace.
    pub(crate) fn basis(&self) -> Option<Tensor<2>> {
        self.basis.as_ref().map(Param::val)
    }

    /// `diag(a) Rr diag(b) - I`, `[r, r]`. It is on the autodiff graph if the parameters are.
    pub(crate) fn deviation(&self) -> Tensor<2> {
        let mut factor = self.factors().remove(0);
        let identity = identity(factor.dims()[0], &factor);
        if let Some(Scales { input, output }) = &self.scales {
            factor = factor * input.val().unsqueeze_dim(1) * output.val().unsqueeze_dim(0);
        }
        factor - identity
    }

    /// `Z` and `S` with `R = I + Z S Zᵀ`, for a rotation in a subspace or of reflections.
    fn low_rank(&self) -> Option<(Tensor<2>, Tensor<2>)> {
        if let Some(u) = &self.reflections {
            return Some(compact(u.val()));
        }
        self.basis().map(|q| (q, self.deviation()))
    }

    /// Computes `x R` for rows `x` `[rows, n]`.
    pub(crate) fn rows(&self, x: Tensor<2>) -> Tensor<2> {
        if let Some((z, s)) = self.low_rank() {
            let z = z.cast(x.dtype());
            let turned = matmul(matmul(x.clone(), z.clone()), s.cast(x.dtype()));
            return x + matmul(turned, z.transpose());
        }
        let mut x = match self.diagonal_blocks() {
            Some(blocks) => {
                let dtype = x.dtype();
                block_diag_right(x.cast(blocks.dtype()), blocks).cast(dtype)
            }
            None => kron_right(x, &self.factors()),
        };
        if let Some(permutation) = &self.permutation {
            for second in &self.permuted {
                // `x Pᵀ` and `x P`.
                x = permutation.inverse().columns(second.rows(permutation.columns(x)));
            }
        }
        x
    }

    /// Computes `R w` for `w` `[n, m]`.
    pub(crate) fn columns(&self, mut w: Tensor<2>) -> Tensor<2> {
        if let Some((z, s)) = self.low_rank() {
            let turned = matmul(s, matmul(z.clone().transpose(), w.clone()));
            return w + matmul(z, turned);
        }
        if let Some(permutation) = &self.permutation {
            for second in &self.permuted {
                w = permutation.inverse().rows(second.columns(permutation.rows(w)));
            }
        }
        match self.diagonal_blocks() {
            Some(blocks) => block_diag_left(blocks, w),
            None => kron_left(&self.factors(), w),
        }
    }

    /// The factors, if the rotation is one Kronecker product.
    pub(crate) fn kronecker_factors(&self) -> Option<Vec<Tensor<2>>> {
        let others = self.basis.is_some() || self.reflections.is_some() || self.blocks.is_some();
        (!others && self.permuted.is_empty()).then(|| self.factors())
    }

    /// Multiply-adds of `x R` for each entry of `x`.
    pub(crate) fn cost_per_entry(&self) -> usize {
        let cols = |matrix: &Param<Tensor<2>>| matrix.val().dims()[1];
        let columns = self.basis.as_ref().or(self.reflections.as_ref());
        let own = match (columns, &self.blocks) {
            (Some(columns), _) => 2 * cols(columns),
            (None, Some(blocks)) => blocks.val().dims()[2],
            (None, None) => {
                self.factors.iter().chain(&self.generators).chain(&self.matrices).map(cols).sum()
            }
        };
        own + self.permuted.iter().map(Self::cost_per_entry).sum::<usize>()
    }

    /// Computes the factors `R1, …, Rm`. They are on the autodiff graph if the parameters are.
    pub fn factors(&self) -> Vec<Tensor<2>> {
        let transform = |generator: &Param<Tensor<2>>| {
            cayley(skew(generator.val().unsqueeze_dim(0))).squeeze_dim(0)
        };
        let given = self.factors.iter().chain(&self.matrices).map(Param::val);
        given.chain(self.generators.iter().map(transform)).collect()
    }

    /// Computes the blocks, `[n / b, b, b]`, of a block-diagonal product.
    fn diagonal_blocks(&self) -> Option<Tensor<3>> {
        let blocks = self.blocks.as_ref()?.val();
        Some(match self.parametrization {
            Parametrization::Stiefel | Parametrization::Unconstrained => blocks,
            Parametrization::Cayley => cayley(skew(blocks)),
        })
    }

    /// Whether nothing keeps the trained matrices orthogonal.
    pub(crate) fn is_unconstrained(&self) -> bool {
        self.parametrization == Parametrization::Unconstrained
    }

    /// The permutation between two products.
    pub(super) fn permutation(&self) -> Option<&Permutation> {
        self.permutation.as_ref()
    }

    /// All factors and blocks, each square, those of the second product last.
    pub(super) fn parts(&self) -> Vec<Tensor<2>> {
        let mut parts = match self.diagonal_blocks() {
            Some(blocks) => {
                blocks.split(1, 0).into_iter().map(|block| block.squeeze_dim(0)).collect()
            }
            None => self.factors(),
        };
        parts.extend(self.permuted.iter().flat_map(Self::parts));
        parts
    }

    /// The same structure with other [`parts`](Self::parts), which are trained as they are.
    pub(super) fn with_parts(&self, parts: &mut impl Iterator<Item = Tensor<2>>) -> Self {
        let parametrization = match self.parametrization {
            Parametrization::Cayley => Parametrization::Stiefel,
            same => same,
        };
        let mut made = Self {
            basis: self.basis.clone(),
            scales: self.scales.clone(),
            permutation: self.permutation.clone(),
            ..Self::empty(parametrization)
        };
        if let Some(blocks) = &self.blocks {
            let blocks =
                parts.by_ref().take(blocks.val().dims()[0]).map(|part| part.unsqueeze_dim(0));
            made.blocks = Some(Param::from_tensor(Tensor::cat(blocks.collect(), 0)));
        } else {
            let count = self.factors.len() + self.generators.len() + self.matrices.len();
            let factors = parts.by_ref().take(count).map(Param::from_tensor).collect();
            match parametrization {
                Parametrization::Unconstrained => made.matrices = factors,
                Parametrization::Stiefel | Parametrization::Cayley => made.factors = factors,
            }
        }
        made.permuted = self.permuted.iter().map(|second| second.with_parts(parts)).collect();
        made
    }

    /// Computes `Rᵗ`: factor by factor, which is exact for one Kronecker product since
    /// `log(A ⊗ B) = log A ⊗ I + I ⊗ log B`; and in the plane of the vectors for reflections.
    ///
    /// Of two products, each moves along its own geodesic. The result has factors, in every parametrization
    /// of rotations. Unconstrained matrices have no geodesic and become `I + t (Mᵢ - I)`, and so do scales.
    pub(crate) fn power(self, t: f64) -> Result<Self, LinalgError> {
        if self.reflections.is_some() {
            return self.in_subspace()?.power(t);
        }
        let part = |part: Tensor<2>| {
            if !self.is_unconstrained() {
                return rotation_power(&part, t);
            }
            let identity = identity(part.dims()[0], &part);
            Ok(identity.clone() + (part - identity).mul_scalar(t))
        };
        let parts = self.parts().into_iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let power = self.with_parts(&mut parts.into_iter());
        let scale = |s: Param<Tensor<1>>| s.map(|s| (s - 1.0).mul_scalar(t) + 1.0);
        let scales = power
            .scales
            .map(|scales| Scales { input: scale(scales.input), output: scale(scales.output) });
        Ok(Self { scales, ..power })
    }
}

/// `I`, `[n, n]`, with the float type and device of `like`.
pub(super) fn identity(n: usize, like: &Tensor<2>) -> Tensor<2> {
    Tensor::<2>::eye(n, &like.device()).cast(like.dtype())
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Distribution};
    use soda_linalg::{kron, rotation_exp};
    use soda_testing::max_abs;

    use super::*;

    fn dtype() -> DType {
        if Device::default().supports_dtype(DType::F64) { DType::F64 } else { DType::F32 }
    }

    fn eye(n: usize) -> Tensor<2> {
        Tensor::<2>::eye(n, &Device::default()).cast(dtype())
    }

    /// A random rotation.
    fn turn(n: usize) -> Tensor<2> {
        let normal = Distribution::Normal(0.0, 0.5);
        let a = Tensor::<2>::random([n, n], normal, &Device::default()).cast(dtype());
        rotation_exp(&(a.clone() - a.transpose())).expect("a skew-symmetric matrix")
    }

    /// The trained rotation of a structure of rotations of blocks or factors.
    fn trained(rotation: &Rotation) -> Rotation {
        let parts: Vec<_> = rotation.parts().iter().map(|part| turn(part.dims()[0])).collect();
        rotation.with_parts(&mut parts.into_iter())
    }

    fn assert_equal(a: Tensor<2>, b: Tensor<2>, what: &str) {
        let error = max_abs((a - b).into_data().iter::<f64>());
        let most = if dtype() == DType::F64 { 1e-12 } else { 2e-6 };
        assert!(error < most, "{what}: {error:.1e}");
    }

    /// `R` from its products with the identity from both sides.
    fn formed(rotation: &Rotation, n: usize) -> Tensor<2> {
        let r = rotation.columns(eye(n));
        assert_equal(rotation.rows(eye(n)), r.clone(), "rows and columns");
        assert_equal(matmul(r.clone(), r.clone().transpose()), eye(n), "orthogonality");
        r
    }

    #[test]
    fn permuted_product_is_the_dense_formula() {
        let like = eye(12);
        let identity = |sizes: &[usize]| Rotation::identity(sizes, Parametrization::Stiefel, &like);
        let permutation = Permutation::random(12, 0, &like);
        let p = permutation.rows(eye(12));
        let rotation = trained(&identity(&[3, 4]).then_permuted(identity(&[2, 2, 3]), permutation));
        let second = kron(&rotation.permuted[0].factors());
        let expected =
            matmul(kron(&rotation.factors()), matmul(p.clone().transpose(), matmul(second, p)));
        let found = formed(&rotation, 12);
        assert_equal(found.clone(), expected, "the formula");
        // Half a step along the geodesics of the factors, twice: not the square of the product, but the same
        // path.
        let half = rotation.clone().power(0.5).expect("no half turns");
        let quarter = half.power(0.5).expect("no half turns");
        let direct = rotation.power(0.25).expect("no half turns");
        assert_equal(formed(&quarter, 12), formed(&direct, 12), "the path");
    }

    /// The loops of the published code: blocks, then entry `r l` of the result to block `l`, then blocks.
    #[test]
    fn group_and_shuffle_is_that_of_the_published_code() {
        let (n, b) = (12, 3);
        let like = eye(n);
        let identity = || Rotation::block_identity(n, b, Parametrization::Stiefel, &like);
        let rotation = identity().then_permuted(identity(), Permutation::shuffle(n, b, &like));
        let rotation = trained(&rotation);
        let blocks = |rotation: &Rotation| -> Vec<f64> {
            rotation.diagonal_blocks().expect("blocks").into_data().iter().collect()
        };
        let (first, second) = (blocks(&rotation), blocks(&rotation.permuted[0]));
        let x: Vec<f64> = (0..n).map(|i| (i as f64 * 1.7).sin()).collect();
        let product = |x: &[f64], blocks: &[f64], block: usize, col: usize| -> f64 {
            (0..b).map(|row| x[block * b + row] * blocks[block * b * b + row * b + col]).sum()
        };
        let grouped: Vec<f64> = (0..n).map(|at| product(&x, &first, at / b, at % b)).collect();
        let count = n / b;
        let shuffled: Vec<f64> = (0..n).map(|at| grouped[at % b * count + at / b]).collect();
        let mut expected = vec![0.0; n];
        for (block, col) in (0..count).flat_map(|block| (0..b).map(move |col| (block, col))) {
            expected[col * count + block] = product(&shuffled, &second, block, col);
        }
        let row = |values: &[f64]| {
            let data = burn::tensor::TensorData::new(values.to_vec(), [1, n]);
            Tensor::<2>::from_data(data.convert_dtype(dtype()), (&Device::default(), dtype()))
        };
        assert_equal(rotation.rows(row(&x)), row(&expected), "the loops");
        formed(&rotation, n);
    }

    #[test]
    fn every_parametrization_starts_at_the_identity() {
        let like = eye(12);
        for parametrization in
            [Parametrization::Stiefel, Parametrization::Cayley, Parametrization::Unconstrained]
        {
            let identity = || Rotation::block_identity(12, 4, parametrization, &like);
            let rotation = identity().then_permuted(identity(), Permutation::shuffle(12, 4, &like));
            assert_equal(formed(&rotation, 12), eye(12), "the start");
        }
    }
}
