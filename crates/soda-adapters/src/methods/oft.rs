//! OFT (Qiu et al., NeurIPS 2023, arXiv 2306.07280): a block-diagonal rotation of the input or the output.
//!
//! The convention is that of PEFT and OFTv2 (arXiv 2506.19847): `y = (x R) W0ᵀ`, with `R` made from packed
//! skew-symmetric parameters ([`BlockRotation`]).

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_linalg::LinalgError;

use super::block_rotation::{BlockRotation, CayleyForm, nearest_divisor};
use super::bounds::{MAX_BLOCK, MAX_TERMS, check_most};
use super::cost_model::CostModel;
use super::soda::Side;
use crate::adapter::Adapter;
use crate::base_weight::BaseWeight;
use crate::error::AdapterError;
use crate::method::Method;
use crate::rotation_merge::{MergeRule, merge_optional};
use crate::weight::Weight;

/// Settings of OFT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OftConfig {
    /// Size of the blocks. A width that is not a multiple of the size uses the divisor nearest to the size.
    pub block_size: usize,
    /// The transform from a skew-symmetric block to a rotation.
    pub cayley: CayleyForm,
    /// Whether all blocks share one set of parameters.
    pub block_share: bool,
    /// COFT's `ε`: the norm of each block's skew-symmetric matrix is at most `ε / √blocks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<f64>,
    /// The side of the weight that is rotated.
    pub side: Side,
}

impl Default for OftConfig {
    /// The defaults of PEFT 0.21.
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

    fn init(&self, _path: &str, weight: &Weight) -> Result<Oft, AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: NAME, reason });
        if self.block_size < 2 {
            return refuse("a block turns at least 2 entries");
        }
        check_most(NAME, self.block_size, MAX_BLOCK, "the block size is at most 4096")?;
        if let CayleyForm::Neumann { terms } = self.cayley {
            check_most(NAME, terms, MAX_TERMS, "a Neumann series has at most 100 terms")?;
        }
        if matches!(self.cayley, CayleyForm::Neumann { terms: ..3 }) {
            return refuse("a Neumann series has at least 3 terms");
        }
        if self.constraint.is_some_and(|eps| !eps.is_finite() || eps <= 0.0) {
            return refuse("the constraint is a number above 0");
        }
        let w = weight.compute_matrix();
        let rotation = |width: usize| {
            let size = nearest_divisor(width, self.block_size);
            let (share, form, eps) = (self.block_share, self.cayley, self.constraint);
            BlockRotation::identity(width, size, share, form, eps, &w)
        };
        let [input, output] = w.dims();
        Ok(Oft {
            rotation: self.side.has_input().then(|| rotation(input)),
            output_rotation: self.side.has_output().then(|| rotation(output)),
        })
    }
}

/// The adapter of one weight: `R w R'` on the stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Oft {
    /// `R` of the input, if it is rotated.
    pub rotation: Option<BlockRotation>,
    /// `R'` of the output, if it is rotated.
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

    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let mut cost = CostModel::layer(rows, input, output);
        if let Some(rotation) = &self.rotation {
            cost = cost.and_rotation(rows, input, output, rotation.block_size());
        }
        if let Some(rotation) = &self.output_rotation {
            cost = cost.and_rotation(rows, output, input, rotation.block_size());
        }
        if !cost.prefers_input(x, w) {
            return None;
        }
        let rotate = |rotation: &Option<BlockRotation>, x: Tensor<2>| match rotation {
            Some(rotation) => rotation.right(x.cast(rotation.skew.val().dtype())).cast(w.dtype()),
            None => x,
        };
        let y = w.product(rotate(&self.rotation, x.clone()));
        Some(rotate(&self.output_rotation, y))
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let power = |rotation: Option<BlockRotation>| rotation.map(|r| r.power(t)).transpose();
        Ok(Self { rotation: power(self.rotation)?, output_rotation: power(self.output_rotation)? })
    }

    fn merge(weighted: Vec<(f64, Self)>, rule: MergeRule) -> Result<Option<Self>, LinalgError> {
        let side = |select: fn(&Self) -> &Option<BlockRotation>| {
            let rotation = |(weight, oft): &(f64, Self)| Some((*weight, select(oft).clone()?));
            let rotations = weighted.iter().filter_map(rotation).collect();
            merge_optional(rotations, |rotations| BlockRotation::merge(rotations, rule))
        };
        let (input, output) = (side(|oft| &oft.rotation)?, side(|oft| &oft.output_rotation)?);
        let pair = input.zip(output);
        Ok(pair.map(|(rotation, output_rotation)| Self { rotation, output_rotation }))
    }
}
