//! Products of rows with a Kronecker product: all factors in one kernel for each pass.

mod groups;
mod three_half;

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;

use self::groups::KroneckerGroups;
use self::three_half::Kronecker3Half;
use super::multi_tensor::{cat, split};

/// The kernels for a Kronecker product.
#[derive(Clone, Copy)]
pub(crate) enum Kronecker {
    /// Three factors on rows of half precision, which each warp keeps in registers.
    ThreeHalf(Kronecker3Half),
    /// Up to four factors on groups of rows in shared memory.
    Groups(KroneckerGroups),
}

impl Kronecker {
    /// The kernels for square factors `a` of these sizes, stored transposed or not, on these rows. `None` if
    /// there are none.
    pub(crate) fn new(
        rows: &[&CubeTensor],
        a: &[CubeTensor],
        sizes: &[usize],
        transposed: bool,
    ) -> Option<Self> {
        let three = Kronecker3Half::new(rows, a, sizes, transposed).map(Self::ThreeHalf);
        three
            .or_else(|| KroneckerGroups::new(rows.first()?, a, sizes, transposed).map(Self::Groups))
    }

    /// Multiplies the rows `x` with `A1 ⊗ … ⊗ Am`.
    pub(crate) fn forward(self, x: CubeTensor, a: Vec<CubeTensor>) -> CubeTensor {
        match self {
            Self::ThreeHalf(kernel) => kernel.forward(x, a),
            Self::Groups(kernel) => kernel.forward(x, cat(a)),
        }
    }

    /// The gradients by `x` if `with_dx` and by the factors, and [`Kronecker::forward`] if `with_product`.
    pub(crate) fn gradient(
        self,
        x: CubeTensor,
        a: Vec<CubeTensor>,
        dy: CubeTensor,
        with_dx: bool,
        with_product: bool,
    ) -> (Option<CubeTensor>, Vec<CubeTensor>, Option<CubeTensor>) {
        match self {
            Self::ThreeHalf(kernel) => {
                let (dx, da, y) = kernel.gradient(x, a, dy, with_product);
                (with_dx.then_some(dx), da, y)
            }
            Self::Groups(kernel) => {
                let lengths: Vec<_> = a.iter().map(|a| a.shape().num_elements()).collect();
                let a = cat(a);
                let y = with_product.then(|| kernel.forward(x.clone(), a.clone()));
                let (dx, da) = kernel.gradient(x, a, dy, with_dx);
                (dx, split(da, &lengths), y)
            }
        }
    }
}
