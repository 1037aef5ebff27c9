//! OFT (Qiu et al., NeurIPS 2023, arXiv 2306.07280) in the convention of PEFT and OFTv2 (arXiv 2506.19847):
//! `y = (x R) W0ᵀ`, `R` block-diagonal, from packed skew parameters (see [`blocks`](crate::blocks)).

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::LinalgError;

use crate::blocks::{BlockRotation, CayleyForm, nearest_divisor};
use crate::cost::Cost;
use crate::error::AdapterError;
use crate::fold::{Weight, compute_dtype};
use crate::merge::{Combine, optional};
use crate::method::{Adapter, Method};
use crate::soda::Side;

/// Settings of OFT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OftConfig {
    /// Size of the blocks; a width that it does not divide takes its nearest divisor.
    pub block_size: usize,
    /// How a skew block becomes a rotation.
    pub cayley: CayleyForm,
    /// One block for all places.
    pub block_share: bool,
    /// COFT: no block's skew matrix may have a norm above this over the root of the number of blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<f64>,
    /// Which side of the weight turns.
    pub side: Side,
}

impl Default for OftConfig {
    /// PEFT's defaults.
    fn default() -> Self {
        Self {
            block_size: 32,
            cayley: CayleyForm::Neumann { terms: 5 },
            block_share: false,
            constraint: None,
            side: Side::Input,
        }
    }
}

const NAME: &str = "oft";

impl Method for OftConfig {
    type Adapter = Oft;

    fn name(&self) -> &'static str {
        NAME
    }

    fn adapter(&self, _path: &str, weight: &Weight) -> Result<Oft, AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: NAME, reason });
        if self.block_size < 2 {
            return refuse("a block turns at least 2 entries");
        }
        if matches!(self.cayley, CayleyForm::Neumann { terms: ..3 }) {
            return refuse("a Neumann series has at least 3 terms");
        }
        if self.constraint.is_some_and(|eps| !eps.is_finite() || eps <= 0.0) {
            return refuse("the constraint is a number above 0");
        }
        let w = weight.matrix.clone().cast(compute_dtype(weight.matrix.dtype()));
        let rotation = |width: usize| {
            let size = nearest_divisor(width, self.block_size);
            let (share, form, eps) = (self.block_share, self.cayley, self.constraint);
            BlockRotation::identity(width, size, share, form, eps, &w)
        };
        let [input, output] = w.dims();
        Ok(Oft {
            rotation: self.side.input().then(|| rotation(input)),
            output_rotation: self.side.output().then(|| rotation(output)),
        })
    }
}

/// `R w R'` on the stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Oft {
    /// `R` of the input.
    pub rotation: Option<BlockRotation>,
    /// `R'` of the output.
    pub output_rotation: Option<BlockRotation>,
}

impl Adapter for Oft {
    fn apply(&self, mut w: Tensor<2>) -> Tensor<2> {
        if let Some(rotation) = &self.rotation {
            w = rotation.left(w);
        }
        if let Some(rotation) = &self.output_rotation {
            w = rotation.right(w);
        }
        w
    }

    fn product(&self, x: &Tensor<2>, w: &Tensor<2>) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let mut cost = Cost::layer(rows, input, output);
        if let Some(rotation) = &self.rotation {
            cost = cost.and_rotation(rows, input, output, rotation.size());
        }
        if let Some(rotation) = &self.output_rotation {
            cost = cost.and_rotation(rows, output, input, rotation.size());
        }
        if !cost.input_side(x) {
            return None;
        }
        let turn = |rotation: &Option<BlockRotation>, x: Tensor<2>| match rotation {
            Some(rotation) => rotation.right(x.cast(rotation.skew.val().dtype())).cast(w.dtype()),
            None => x,
        };
        let y = matmul(turn(&self.rotation, x.clone()), w.clone());
        Some(turn(&self.output_rotation, y))
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let power = |rotation: Option<BlockRotation>| rotation.map(|r| r.power(t)).transpose();
        Ok(Self { rotation: power(self.rotation)?, output_rotation: power(self.output_rotation)? })
    }

    fn combine(parts: Vec<(f64, Self)>, how: Combine) -> Result<Option<Self>, LinalgError> {
        let side = |of: fn(&Self) -> &Option<BlockRotation>| {
            let turned = |(weight, part): &(f64, Self)| Some((*weight, of(part).clone()?));
            let rotations = parts.iter().filter_map(turned).collect();
            optional(rotations, |rotations| BlockRotation::combine(rotations, how))
        };
        let (input, output) = (side(|part| &part.rotation)?, side(|part| &part.output_rotation)?);
        let pair = input.zip(output);
        Ok(pair.map(|(rotation, output_rotation)| Self { rotation, output_rotation }))
    }
}
