//! The iteration that turns a matrix into its polar factor, `X <- X (a I + b S + c S²)` with `S = XᵀX`: three products a step,
//! which are nearly all of the time of a decomposition by products.
//!
//! On CUDA the steps before the last are on tensor cores, whose numbers of 11 bits are two for each of float32's (Ootomo and
//! Yokota, arXiv 2203.03341): three products of theirs take half the time of one in float32. They sum a little worse than
//! float32 does, by some roundings; the last step, which is float32, takes what they leave of it in the factor's
//! orthogonality.

use burn::tensor::Tensor;

use crate::matmul::matmul;

#[cfg(feature = "cuda")]
type Cube = burn::backend::Cube;
#[cfg(feature = "cuda")]
type Halves = [burn::backend::tensor::FloatTensor<Cube>; 2];

/// `X` `[b, m, n]` and `XᵀX`, off the tape.
pub struct PolarIteration {
    x: Tensor<3>,
    square: Tensor<3>,
    #[cfg(feature = "cuda")]
    halves: Option<Halves>,
}

impl PolarIteration {
    /// Of `x` and its `square` `[b, n, n]`.
    pub fn new(x: Tensor<3>, square: Tensor<3>) -> Self {
        #[cfg(feature = "cuda")]
        {
            let primitive = x.clone().try_into_primitive::<Cube>().ok();
            let halves = primitive.filter(crate::cuda::takes_polar);
            let halves = halves.map(|x| crate::cuda::halves(x, 0.0));
            Self { x, square, halves }
        }
        #[cfg(not(feature = "cuda"))]
        Self { x, square }
    }

    /// `XᵀX`, to some roundings.
    pub fn gram(&self) -> &Tensor<3> {
        &self.square
    }

    /// The next iterate.
    #[must_use]
    pub fn step(self, coefficients: [f64; 3]) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(halves) = self.halves
            && let Ok(square) = self.square.clone().try_into_primitive::<Cube>()
        {
            let (halves, x, square) = crate::cuda::polar_step(halves, square, coefficients);
            let [x, square] = [x, square].map(Tensor::from_primitive::<Cube>);
            return Self { x, square, halves: Some(halves) };
        }
        let x = polynomial(self.x, self.square, coefficients);
        Self {
            square: gram(&x),
            x,
            #[cfg(feature = "cuda")]
            halves: None,
        }
    }

    /// The last iterate, in float32 throughout.
    pub fn finish(self, coefficients: [f64; 3]) -> Tensor<3> {
        #[cfg(feature = "cuda")]
        if self.halves.is_some() {
            let square = gram(&self.x);
            return polynomial(self.x, square, coefficients);
        }
        polynomial(self.x, self.square, coefficients)
    }

    /// `X` as it is.
    pub fn into_iterate(self) -> Tensor<3> {
        self.x
    }
}

fn polynomial(x: Tensor<3>, square: Tensor<3>, [a, b, c]: [f64; 3]) -> Tensor<3> {
    let [_, _, n] = x.dims();
    let identity = Tensor::<2>::eye(n, &x.device()).cast(x.dtype()).unsqueeze_dim::<3>(0);
    let inner = square.clone().mul_scalar(c) + identity.clone().mul_scalar(b);
    let outer = matmul(square, inner) + identity.mul_scalar(a);
    matmul(x, outer)
}

fn gram(x: &Tensor<3>) -> Tensor<3> {
    matmul(x.clone().transpose(), x.clone())
}
