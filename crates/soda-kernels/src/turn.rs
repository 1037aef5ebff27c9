//! Kronecker products on rows by a kernel of the device's own, where it has one.
//!
//! As matrix products they are one a factor and way, each of many small matrices, with the whole operand read and
//! written; on a GPU a row fits the shared memory of a block, and goes through all of them there.

use burn::tensor::Tensor;

/// `y = M x` for every row `x` `[Π nᵢ]`, with `M = M1 ⊗ … ⊗ Mm` and square factors `Mᵢ`, vectors `[nᵢ nᵢ]`.
#[derive(Clone, Copy, Debug)]
pub struct KroneckerProduct<'a> {
    /// `nᵢ`.
    pub sizes: &'a [usize],
    /// Whether the vectors hold the factors' transposes.
    pub transposed: bool,
}

#[cfg_attr(
    not(feature = "cuda"),
    allow(unused_variables, clippy::unused_self, reason = "no device of the build has a kernel")
)]
impl KroneckerProduct<'_> {
    /// The rows `[rows, Π nᵢ]` turned, in the type of `x`; computed in float32, but that of half precision 11 or 16 bits are
    /// kept from one factor to the next. `None` where the device has no kernel for them: it takes float32 factors of at most
    /// 16 rows. Off the tape.
    pub fn apply(&self, x: &Tensor<2>, a: &[Tensor<1>]) -> Option<Tensor<2>> {
        #[cfg(feature = "cuda")]
        {
            let (x, a) = (primitive(x)?, primitives(a)?);
            let turn = crate::cuda::Turn::new(&[&x], &a, self.sizes, self.transposed)?;
            Some(Tensor::from_primitive::<Cube>(turn.forward(x, a)))
        }
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// The gradients by `x`, if wanted, and by the factors, from that of the product, and the product itself if `again`; `None`
    /// as for it.
    pub fn gradient(
        &self,
        x: &Tensor<2>,
        a: &[Tensor<1>],
        dy: &Tensor<2>,
        by_x: bool,
        again: bool,
    ) -> Option<KroneckerGradient> {
        #[cfg(feature = "cuda")]
        {
            let (x, a, dy) = (primitive(x)?, primitives(a)?, primitive(dy)?);
            let turn = crate::cuda::Turn::new(&[&x, &dy], &a, self.sizes, self.transposed)?;
            let (dx, da, y) = turn.gradient(x, a, dy, by_x, again);
            Some(KroneckerGradient {
                x: dx.map(Tensor::from_primitive::<Cube>),
                factors: da.into_iter().map(Tensor::from_primitive::<Cube>).collect(),
                product: y.map(Tensor::from_primitive::<Cube>),
            })
        }
        #[cfg(not(feature = "cuda"))]
        None
    }
}

/// What [`KroneckerProduct::gradient`] gives.
#[derive(Clone, Debug)]
pub struct KroneckerGradient {
    /// By the rows, where wanted.
    pub x: Option<Tensor<2>>,
    /// By the factors.
    pub factors: Vec<Tensor<1>>,
    /// The rows turned, where wanted.
    pub product: Option<Tensor<2>>,
}

#[cfg(feature = "cuda")]
type Cube = burn::backend::Cube;

#[cfg(feature = "cuda")]
fn primitive<const D: usize>(x: &Tensor<D>) -> Option<burn::backend::tensor::FloatTensor<Cube>> {
    x.clone().try_into_primitive::<Cube>().ok()
}

#[cfg(feature = "cuda")]
fn primitives(a: &[Tensor<1>]) -> Option<Vec<burn::backend::tensor::FloatTensor<Cube>>> {
    a.iter().map(primitive).collect()
}
