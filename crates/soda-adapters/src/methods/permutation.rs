//! Fixed permutations of an axis, as gathers forward and backward.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use soda_linalg::{AutogradFunction, apply_autograd};

/// The permutation `P` with `(P w)[i] = w[sources[i]]`.
///
/// The backward pass is a gather with the inverse, while burn's own would add into zeros.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    /// The permutation and its inverse.
    orders: [Arc<[i64]>; 2],
    /// The same on the device.
    indices: [Tensor<1, Int>; 2],
}

impl Permutation {
    /// Makes `P` from the index that each entry comes from, on the device of `like`.
    pub(crate) fn new(sources: Vec<usize>, like: &Tensor<2>) -> Self {
        let mut inverse = vec![0; sources.len()];
        for (to, from) in sources.iter().enumerate() {
            inverse[*from] = to as i64;
        }
        let forward: Vec<i64> = sources.into_iter().map(|from| from as i64).collect();
        let upload = |order: &Vec<i64>| {
            Tensor::from_data(TensorData::new(order.clone(), [order.len()]), &like.device())
        };
        let indices = [upload(&forward), upload(&inverse)];
        Self { orders: [forward.into(), inverse.into()], indices }
    }

    /// The perfect shuffle of `width` entries in blocks of `size`: entry `r` of block `l` comes from place
    /// `r · width / size + l`.
    ///
    /// Neighbours go to different blocks, as many as there are (GSOFT, arXiv 2406.10019).
    pub(crate) fn shuffle(width: usize, size: usize, like: &Tensor<2>) -> Self {
        let blocks = width / size;
        Self::new((0..width).map(|at| at % size * blocks + at / size).collect(), like)
    }

    /// A random permutation that depends on the seed and the width only.
    pub(crate) fn random(width: usize, seed: u64, like: &Tensor<2>) -> Self {
        // Files have the seed and not the permutation, so that the shuffle is spelt out: another version of
        // a library could draw in another order.
        let digest = Sha256::digest(format!("permutation {seed} {width}"));
        let mut rng = ChaCha8Rng::from_seed(digest.into());
        let mut sources: Vec<usize> = (0..width).collect();
        for last in (1..width).rev() {
            sources.swap(last, (rng.next_u64() % (last as u64 + 1)) as usize);
        }
        Self::new(sources, like)
    }

    /// `Pᵀ`.
    pub(crate) fn inverse(&self) -> Self {
        let ([order, inverse], [forward, backward]) = (self.orders.clone(), self.indices.clone());
        Self { orders: [inverse, order], indices: [backward, forward] }
    }

    /// Computes `P w` for `w` `[width, cols]`.
    pub(crate) fn rows(&self, w: Tensor<2>) -> Tensor<2> {
        let [width, cols] = w.dims();
        apply_autograd(self, w.reshape([1, width, cols]), &[]).reshape([width, cols])
    }

    /// Computes `x Pᵀ` for `x` `[rows, width]`: the columns in the order of [`Permutation::rows`].
    pub(crate) fn columns(&self, x: Tensor<2>) -> Tensor<2> {
        let [rows, width] = x.dims();
        apply_autograd(self, x.reshape([rows, width, 1]), &[]).reshape([rows, width])
    }
}

impl PartialEq for Permutation {
    fn eq(&self, other: &Self) -> bool {
        self.orders[0] == other.orders[0]
    }
}

impl AutogradFunction for Permutation {
    fn forward(&self, x: Tensor<3>, _: &[Tensor<1>]) -> Tensor<3> {
        let indices = self.indices[0].clone().to_device(&x.device());
        x.select(1, indices)
    }

    fn backward(
        &self,
        _: Tensor<3>,
        _: &[Tensor<1>],
        grad: Tensor<3>,
        _: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        let indices = self.indices[1].clone().to_device(&grad.device());
        (Some(grad.select(1, indices)), Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn like() -> Tensor<2> {
        Tensor::zeros([1, 1], &Device::default())
    }

    /// A file keeps the seed alone, so that these orders never change.
    #[test]
    fn orders_stay_those_of_stored_files() {
        let shuffle = Permutation::shuffle(6, 2, &like());
        assert_eq!(*shuffle.orders[0], [0, 3, 1, 4, 2, 5]);
        let random = |seed| Permutation::random(8, seed, &like()).orders[0].to_vec();
        assert_eq!(random(0), [1, 3, 5, 6, 0, 7, 4, 2]);
        assert_ne!(random(0), random(1));
    }

    #[test]
    fn the_inverse_undoes_the_permutation_of_both_axes() {
        let device = Device::default();
        let w = Tensor::<2>::random([12, 5], burn::tensor::Distribution::Default, &device);
        for p in [Permutation::random(12, 3, &w), Permutation::shuffle(12, 3, &w)] {
            let back = p.inverse().rows(p.rows(w.clone()));
            assert!(back.equal(w.clone()).all().into_scalar::<bool>());
            let columns = p.columns(w.clone().transpose()).transpose();
            assert!(columns.equal(p.rows(w.clone())).all().into_scalar::<bool>());
            assert!(p != p.inverse());
        }
    }
}
