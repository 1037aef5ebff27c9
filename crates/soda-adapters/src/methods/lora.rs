//! LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): `W = W0 + s B A`, with the variants that are settings of
//! it.
//!
//! | setting | meaning | source |
//! |---|---|---|
//! | default | `s = α/r`, `A` kaiming uniform, `B = 0` | PEFT, kohya's scripts |
//! | `rank_stabilized` | `s = α/√r` | arXiv 2312.03732 |
//! | `init = "pissa"` | `A`, `B` are initially the leading singular triples | arXiv 2404.02948 |
//! | `dora` | a trained magnitude beside the direction | arXiv 2402.09353, [`dora`](super::dora) |
//! | `timestep_mask` | fewer directions at much noise (T-LoRA) | arXiv 2507.05964 |
//!
//! On the weight as burn stores it, `[in, out]`, the adapter is `w + s a b` with `a` `[in, r]` and `b`
//! `[r, out]`. The kernel of a convolution is the matrix `out x (in kh kw)`. This makes `a` the `kh x kw`
//! convolution and `b` the `1 x 1` convolution of PEFT and kohya's scripts.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use regex::Regex;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::LinalgError;

use super::bounds::low_rank_scale;
use super::cost_model::{CostModel, product_dtype};
use super::dora::Magnitude;
use super::low_rank::low_rank_product;
use super::timestep_mask::TimestepMask;
use crate::adapter::Adapter;
use crate::base_weight::BaseWeight;
use crate::error::{AdapterError, TargetError};
use crate::method::Method;
use crate::path_pattern::matches_one_path;
use crate::rotation_merge::MergeRule;
use crate::seeded_init::SeededInit;
use crate::weight::Weight;

/// Settings of LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// `r`, at most the smaller side of the weight.
    pub rank: usize,
    /// `α`; the default is the rank, which makes `s = 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Whether `s = α/√r` instead of `α/r`.
    pub rank_stabilized: bool,
    /// Ranks of the weights whose path matches a regular expression. Of several matches, the longest pattern
    /// applies.
    pub rank_pattern: BTreeMap<String, usize>,
    /// `α` of the weights whose path matches a regular expression, by the rule of `rank_pattern`.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Initial values of the factors.
    pub init: LoraInit,
    /// Whether DoRA's magnitude of each output is trained too.
    pub dora: bool,
    /// The mask of T-LoRA, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_mask: Option<TimestepMask>,
    /// Seed of the random initial values.
    pub seed: u64,
}

/// Initial values of LoRA's factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoraInit {
    /// `A` is uniform in `±1/√in`, `B = 0`.
    #[default]
    Kaiming,
    /// `A = U √S`, `B = √S Vᵀ / s` of the leading singular triples. The initial product is subtracted from
    /// the base: `W0 + s (A B - A₀ B₀)`.
    Pissa,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: None,
            rank_stabilized: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            init: LoraInit::default(),
            dora: false,
            timestep_mask: None,
            seed: 0,
        }
    }
}

impl LoraConfig {
    /// The default settings with [`LoraInit::Pissa`].
    pub fn pissa() -> Self {
        Self { init: LoraInit::Pissa, ..Self::default() }
    }

    /// The default settings with DoRA's magnitude.
    pub fn dora() -> Self {
        Self { dora: true, ..Self::default() }
    }

    /// The default settings with the mask of T-LoRA.
    pub fn t_lora() -> Self {
        Self { timestep_mask: Some(TimestepMask::default()), ..Self::default() }
    }

    /// Checks the mask, and the weight that it is for.
    fn check_mask(&self, path: &str, weight: &Weight) -> Result<(), AdapterError> {
        let Some(mask) = self.timestep_mask else { return Ok(()) };
        mask.check(NAME)?;
        if self.dora {
            let reason =
                "`timestep_mask` and `dora` exclude each other: a magnitude has no timestep";
            return Err(AdapterError::Config { method: NAME, reason });
        }
        TimestepMask::check_weight(path, weight)
    }

    /// `r` and `s` of the weight at `path`, whose smaller side is `most`.
    fn rank_and_scale(&self, path: &str, most: usize) -> Result<(usize, f64), AdapterError> {
        let rank = longest_match(&self.rank_pattern, path)?.unwrap_or(self.rank);
        let alpha = longest_match(&self.alpha_pattern, path)?.or(self.alpha);
        low_rank_scale(NAME, rank, alpha)?;
        let root = if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        let scale = alpha.unwrap_or(rank as f64) / root;
        if self.init == LoraInit::Pissa && scale == 0.0 {
            let reason = "PiSSA divides by the scale, so alpha is not 0";
            return Err(AdapterError::Config { method: NAME, reason });
        }
        Ok((rank.min(most), scale))
    }
}

const NAME: &str = "lora";

impl Method for LoraConfig {
    type Adapter = Lora;

    fn name(&self) -> &'static str {
        NAME
    }

    fn needs_svd(&self) -> bool {
        self.init == LoraInit::Pissa
    }

    fn needs_its_base(&self) -> bool {
        self.init == LoraInit::Pissa || self.dora
    }

    fn depends_on_timestep(&self) -> bool {
        self.timestep_mask.is_some()
    }

    fn init(&self, path: &str, weight: &Weight) -> Result<Lora, AdapterError> {
        self.check_mask(path, weight)?;
        let w = weight.compute_matrix();
        let [input, output] = w.dims();
        let (rank, scale) = self.rank_and_scale(path, input.min(output))?;
        let init = SeededInit::new(self.seed, path, weight);
        let (a, b, start) = match self.init {
            LoraInit::Kaiming => {
                (init.kaiming("a", [input, rank], input), init.zeros([rank, output]), None)
            }
            LoraInit::Pissa => {
                let svd = weight.svd().map_err(|source| AdapterError::Decomposition {
                    path: path.to_owned(),
                    source,
                })?;
                let svd = svd.svd;
                let root = svd.s.narrow(0, 0, rank).sqrt();
                let a = svd.u.narrow(1, 0, rank) * root.clone().unsqueeze_dim(0);
                let b = svd.vt.narrow(0, 0, rank) * root.div_scalar(scale).unsqueeze_dim(1);
                (a.clone(), b.clone(), Some((a, b)))
            }
        };
        Ok(Lora {
            a: Param::from_tensor(a),
            b: Param::from_tensor(b),
            magnitude: self.dora.then(|| Magnitude::from_weight(&w)),
            start,
            scale,
            mask: self.timestep_mask,
        })
    }
}

/// Returns the value of the longest pattern that matches `path`.
fn longest_match<T: Copy>(
    patterns: &BTreeMap<String, T>,
    path: &str,
) -> Result<Option<T>, AdapterError> {
    let mut found: Option<(usize, T)> = None;
    for (pattern, value) in patterns {
        let matches = match matches_one_path(pattern, path) {
            Some(matches) => matches,
            None => Regex::new(pattern)
                .map_err(|error| TargetError::invalid_pattern(pattern, &error))?
                .is_match(path),
        };
        if matches && found.is_none_or(|(length, _)| pattern.len() > length) {
            found = Some((pattern.len(), *value));
        }
    }
    Ok(found.map(|(_, value)| value))
}

/// The adapter of one weight: `w + s (a b - a₀ b₀)`, normalized to DoRA's magnitude if it has one.
#[derive(Module, Debug)]
pub struct Lora {
    /// `a`, `[in, r]`.
    pub a: Param<Tensor<2>>,
    /// `b`, `[r, out]`.
    pub b: Param<Tensor<2>>,
    /// DoRA's magnitude, if it is trained.
    pub magnitude: Option<Magnitude>,
    /// `a₀`, `b₀` of PiSSA, which follow from the base and are not saved.
    start: Option<(Tensor<2>, Tensor<2>)>,
    /// `s` times the strength.
    scale: f64,
    /// The mask of T-LoRA.
    #[module(skip)]
    mask: Option<TimestepMask>,
}

impl Lora {
    fn delta(&self) -> Tensor<2> {
        let product = matmul(self.a.val(), self.b.val());
        let change = match &self.start {
            Some((a, b)) => product - matmul(a.clone(), b.clone()),
            None => product,
        };
        change.mul_scalar(self.scale)
    }

    /// Returns `a` `[in, k]` and `b` `[k, out]`, with the scale in `b`: `W = W0 + a b` up to DoRA's
    /// magnitude.
    ///
    /// `k` is the rank; for PiSSA it is twice the rank, because the initial product is subtracted.
    pub fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        let (a, b) = (self.a.val(), self.b.val().mul_scalar(self.scale));
        match &self.start {
            Some((a0, b0)) => (
                Tensor::cat(vec![a, a0.clone()], 1),
                Tensor::cat(vec![b, b0.clone().mul_scalar(-self.scale)], 0),
            ),
            None => (a, b),
        }
    }
}

impl Adapter for Lora {
    fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let direction = w + self.delta();
        match &self.magnitude {
            Some(magnitude) => magnitude.apply(direction),
            None => direction,
        }
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let magnitude = self.magnitude.map(|magnitude| magnitude.at_strength(t));
        Ok(Self { scale: self.scale * t, magnitude, ..self })
    }

    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let rank = self.a.val().dims()[1];
        if let Some(mask) = self.mask {
            let ranks = if self.start.is_some() { vec![rank; 2] } else { vec![rank] };
            return Some(mask.product(x, w, self.factors(), &ranks));
        }
        let mut cost = CostModel::layer(rows, input, output).and_factors(rows, input, rank, output);
        if self.magnitude.is_some() {
            // The norms need a product with the weight, in the type of the adapter.
            cost = cost.and_on_input(input * rank * output);
        }
        let dtypes_fit = match w {
            BaseWeight::Float(w) => w.dtype() == self.a.val().dtype(),
            BaseWeight::Stored(..) => true,
        };
        let dtypes_fit = dtypes_fit || self.magnitude.is_none();
        if !dtypes_fit || !cost.prefers_input(x, w) {
            return None;
        }
        let dtype = product_dtype(x, self.a.val().dtype());
        let scaled = |b: Tensor<2>| if self.scale == 1.0 { b } else { b.mul_scalar(self.scale) };
        if self.start.is_none() && self.magnitude.is_none() {
            return Some(low_rank_product(x, w, self.a.val(), scaled(self.b.val())));
        }
        let rows = x.clone().cast(dtype);
        let low_rank_product = |a: Tensor<2>, b: Tensor<2>| {
            matmul(matmul(rows.clone(), a.cast(dtype)), scaled(b).cast(dtype))
        };
        let mut change = low_rank_product(self.a.val(), self.b.val());
        if let Some((a, b)) = &self.start {
            change = change - low_rank_product(a.clone(), b.clone());
        }
        let y = w.product(x.clone()) + change.cast(w.dtype());
        Some(match &self.magnitude {
            Some(magnitude) => {
                let (a, b) = self.factors();
                let gain = magnitude.gain_of_low_rank(&w.to_float(), a, b).unsqueeze_dim(0);
                (y.cast(gain.dtype()) * gain).cast(w.dtype())
            }
            None => y,
        })
    }

    fn depends_on_timestep(&self) -> bool {
        self.mask.is_some()
    }

    fn low_rank(&self) -> Option<(Tensor<2>, Tensor<2>)> {
        self.magnitude.is_none().then(|| self.factors())
    }

    /// Concatenates the factors: in Euclidean space every rule is the weighted sum.
    fn merge(weighted: Vec<(f64, Self)>, _rule: MergeRule) -> Result<Option<Self>, LinalgError> {
        let has_no_sum = |lora: &Self| lora.magnitude.is_some() || lora.mask.is_some();
        if weighted.is_empty() || weighted.iter().any(|(_, lora)| has_no_sum(lora)) {
            return Ok(None);
        }
        let factors = weighted.iter().map(|(weight, lora)| {
            let (a, b) = lora.factors();
            (a, b.mul_scalar(*weight))
        });
        let (a, b): (Vec<_>, Vec<_>) = factors.unzip();
        let (a, b) = (Tensor::cat(a, 1), Tensor::cat(b, 0));
        let (a, b) = (Param::from_tensor(a), Param::from_tensor(b));
        Ok(Some(Self { a, b, magnitude: None, start: None, scale: 1.0, mask: None }))
    }
}
