//! SODA on one weight: the spectrum moves, then the basis turns.

use burn::module::{Module, Reparameterization};
use burn::tensor::{DType, Tensor};

use super::{Rotation, Spectrum};

/// `Wᵀ = R (W0ᵀ + ΔS)`: the adapter of one linear layer, on its stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Soda {
    /// `R`, or the identity where absent.
    pub rotation: Option<Rotation>,
    /// `ΔS`, or zero where absent.
    pub spectrum: Option<Spectrum>,
}

impl Reparameterization for Soda {
    const NAME: &'static str = "soda";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let dims = base.dims();
        let dtype = base.dtype();
        // The adapter is f32 whatever the model computes in; a fresh one survives the two casts
        // exactly, since it gives back the base's own bits.
        let mut w: Tensor<2> = base.cast(DType::F32).reshape([dims[0] as i32, -1]);
        if let Some(spectrum) = &self.spectrum {
            w = spectrum.apply(w);
        }
        if let Some(rotation) = &self.rotation {
            w = rotation.apply(w);
        }
        w.reshape(dims).cast(dtype)
    }
}
