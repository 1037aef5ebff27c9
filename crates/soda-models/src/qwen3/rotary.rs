//! Rotary position embedding (Su et al., arXiv 2104.09864), in the halves of a head.
//!
//! ```text
//! (a, b) -> (a cos(p f_i) - b sin(p f_i), b cos(p f_i) + a sin(p f_i)),   f_i = theta^(-2i/d)
//! ```
//!
//! `a` and `b` are the channels `i` and `i + d/2` of the token at position `p`. transformers computes angles
//! in f32, and so does this file.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The cosines and sines of all positions and frequencies.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    /// `[1, 1, n, d]`.
    cos: Tensor<4>,
    /// `[1, 1, n, d]`, negative in the first half.
    sin: Tensor<4>,
}

impl Rotary {
    /// Makes the table of `tokens` positions for heads of `width` channels, in `dtype`.
    pub(super) fn new(
        tokens: usize,
        width: usize,
        theta: f64,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let half = width / 2;
        let frequency =
            |i: usize| 1.0 / theta.powf(f64::from(2.0 * i as f32 / width as f32)) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let mut cos = Vec::with_capacity(tokens * width);
        let mut sin = Vec::with_capacity(tokens * width);
        for position in 0..tokens {
            let angles = || frequencies.iter().map(|f| f64::from(position as f32 * f));
            cos.extend(angles().chain(angles()).map(|angle| angle.cos() as f32));
            sin.extend(angles().map(|angle| -angle.sin() as f32));
            sin.extend(angles().map(|angle| angle.sin() as f32));
        }
        let table = |values| {
            let data = TensorData::new(values, [1, 1, tokens, width]);
            Tensor::<4>::from_data(data, device).cast(dtype)
        };
        Self { cos: table(cos), sin: table(sin) }
    }

    /// Rotates heads `[b, h, n, d]`.
    pub(super) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let swapped =
            Tensor::cat(vec![x.clone().narrow(3, half, half), x.clone().narrow(3, 0, half)], 3);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::randn;

    /// The product of a rotated query and a rotated key depends on the distance of their positions alone.
    #[test]
    fn products_depend_on_the_distance() {
        let device = Device::default();
        let rotary = Rotary::new(12, 8, 1e4, DType::F32, &device);
        let at_all = |x: Tensor<4>| rotary.apply(x.expand([1, 1, 12, 8]));
        let q = at_all(randn(0, 0, [1, 1, 1, 8], &device));
        let k = at_all(randn(0, 1, [1, 1, 1, 8], &device));
        let product = |p: usize, r: usize| {
            let row = |x: &Tensor<4>, at| x.clone().narrow(2, at, 1);
            (row(&q, p) * row(&k, r)).sum().into_scalar::<f32>()
        };
        for (p, r) in [(3, 0), (7, 4), (11, 8)] {
            assert!((product(p, r) - product(4, 1)).abs() < 1e-5, "{p} {r}");
        }
        assert!((product(4, 1) - product(5, 1)).abs() > 1e-3);
    }
}
