//! LyCORIS' LoHa and LoKr, as its scripts, ComfyUI and A1111 store them.
//!
//! A layer of such a file has a rank and an `α` of its own. What is read is brought to settings that all
//! layers share without a change of any delta: ranks are filled up with zeros, scales go into a factor.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

use super::names::Part;
use super::read::{Layers, Parts, Read, part};
use crate::adaptation::key;
use crate::error::AdapterError;
use crate::fold::Weight;
use crate::loha::LohaConfig;
use crate::lokr::{LokrConfig, split};
use crate::table::MethodConfig;

/// A rank that no layer reaches, at which LoKr keeps both of its matrices whole.
const WHOLE: usize = 1 << 20;

/// A matrix on the host, row by row.
struct Rows {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Rows {
    /// A tensor of any rank as the matrix with its first axis as rows.
    fn read(data: &TensorData) -> Self {
        let rows = data.shape().as_slice().first().copied().unwrap_or(1);
        let values: Vec<f32> = data.iter().collect();
        Self { rows, cols: values.len() / rows.max(1), values }
    }

    fn scaled(mut self, scale: f64) -> Self {
        for value in &mut self.values {
            *value = (f64::from(*value) * scale) as f32;
        }
        self
    }

    /// Filled up with zeros.
    fn padded(&self, rows: usize, cols: usize) -> TensorData {
        let at = |index: usize| {
            let (row, col) = (index / cols, index % cols);
            let inside = row < self.rows && col < self.cols;
            if inside { self.values[row * self.cols + col] } else { 0.0 }
        };
        TensorData::new((0..rows * cols).map(at).collect::<Vec<f32>>(), [rows, cols])
    }

    /// `self other`, or `None` where the sizes do not fit.
    fn product(&self, other: &Self) -> Option<Self> {
        let (rows, cols) = (self.rows, other.cols);
        let at = |index: usize| {
            let (row, col) = (index / cols, index % cols);
            let term = |k: usize| {
                f64::from(self.values[row * self.cols + k])
                    * f64::from(other.values[k * cols + col])
            };
            (0..self.cols).map(term).sum::<f64>() as f32
        };
        let fits = self.cols == other.rows;
        fits.then(|| Self { rows, cols, values: (0..rows * cols).map(at).collect() })
    }
}

/// `α/r` of a layer, 1 where it has no `α`.
fn scale(parts: &Parts, rank: usize) -> f64 {
    let alpha = parts.get(&Part::Alpha).and_then(|alpha| alpha.iter::<f64>().next());
    alpha.map_or(1.0, |alpha| alpha / rank.max(1) as f64)
}

/// `ΔW = (α/r) (W1a W1b) ∘ (W2a W2b)`
pub(super) fn loha(layers: &Layers) -> Result<Read, AdapterError> {
    const PARTS: [(Part, &str, &str); 4] = [
        (Part::HadaW1A, "hada_w1_a", "w1_a"),
        (Part::HadaW1B, "hada_w1_b", "w1_b"),
        (Part::HadaW2A, "hada_w2_a", "w2_a"),
        (Part::HadaW2B, "hada_w2_b", "w2_b"),
    ];
    let mut rows = Vec::new();
    for (weight, parts) in layers {
        for (which, theirs, ours) in PARTS {
            let mut matrix = Rows::read(part(weight, parts, which, theirs)?);
            if which == Part::HadaW1B {
                let scale = scale(parts, matrix.rows);
                matrix = matrix.scaled(scale);
            }
            rows.push((weight, ours, matrix));
        }
    }
    let rank = |(_, name, matrix): &(_, &str, Rows)| {
        if name.ends_with('a') { matrix.cols } else { matrix.rows }
    };
    let rank = rows.iter().map(rank).max().unwrap_or(1);
    let method = MethodConfig::from(LohaConfig { rank, ..LohaConfig::default() });
    let tensors = rows.into_iter().map(|(weight, name, matrix)| {
        let padded = match name.ends_with('a') {
            true => matrix.padded(matrix.rows, rank),
            false => matrix.padded(rank, matrix.cols),
        };
        (key(&method, weight, name), padded)
    });
    let tensors = tensors.collect();
    Ok((method, tensors))
}

/// `ΔW = (α/r) W1 ⊗ W2`; where both are whole there is no `r`, and the scale is 1.
pub(super) fn lokr(
    layers: &Layers,
    weights: &BTreeMap<String, Weight>,
) -> Result<Read, AdapterError> {
    let mut factors = Vec::new();
    for (weight, parts) in layers {
        let (first, _) = factor(weight, parts, W1)?;
        let (second, rank) = factor(weight, parts, W2)?;
        let rank = factor(weight, parts, W1)?.1.or(rank);
        let scale = rank.map_or(1.0, |rank| scale(parts, rank));
        factors.push((weight, first, second.scaled(scale)));
    }
    // The setting by which LyCORIS split the sides; the file does not say it, its shapes do.
    let fits = |setting: Option<usize>| {
        factors.iter().all(|(weight, first, second)| {
            let window = weights.get(*weight).map_or(1, Weight::window);
            let side = |small: usize, large: usize| split(small * large, setting) == (small, large);
            side(first.rows, second.rows) && side(first.cols, second.cols / window)
        })
    };
    let most = factors.iter().map(|(_, w1, _)| w1.rows.max(w1.cols)).max().unwrap_or(1);
    let setting = std::iter::once(None)
        .chain((1..=most).map(Some))
        .find(|setting| fits(*setting))
        .ok_or_else(|| AdapterError::ForeignPart {
            weight: layers.keys().next().cloned().unwrap_or_default(),
            part: "lokr_w1 of a size that no `factor` gives",
        })?;
    let config = LokrConfig { rank: WHOLE, factor: setting, ..LokrConfig::default() };
    let method = MethodConfig::from(config);
    let mut tensors = BTreeMap::new();
    for (weight, first, second) in factors {
        for (name, matrix) in [("w1.whole", first), ("w2.whole", second)] {
            tensors.insert(key(&method, weight, name), matrix.padded(matrix.rows, matrix.cols));
        }
    }
    Ok((method, tensors))
}

/// A matrix whole, or as a product: the parts and their names.
type Names = [(Part, &'static str); 3];

const W1: Names =
    [(Part::LokrW1, "lokr_w1"), (Part::LokrW1A, "lokr_w1_a"), (Part::LokrW1B, "lokr_w1_b")];
const W2: Names =
    [(Part::LokrW2, "lokr_w2"), (Part::LokrW2A, "lokr_w2_a"), (Part::LokrW2B, "lokr_w2_b")];

/// The matrix, and its rank if it was a product.
fn factor(
    weight: &str,
    parts: &Parts,
    [whole, a, b]: Names,
) -> Result<(Rows, Option<usize>), AdapterError> {
    if let Some(data) = parts.get(&whole.0) {
        return Ok((Rows::read(data), None));
    }
    if !parts.contains_key(&a.0) {
        let weight = weight.to_owned();
        return Err(AdapterError::MissingPart { weight, part: whole.1 });
    }
    let (a, second) = (Rows::read(part(weight, parts, a.0, a.1)?), part(weight, parts, b.0, b.1)?);
    let product = a.product(&Rows::read(second)).ok_or_else(|| AdapterError::ForeignPart {
        weight: weight.to_owned(),
        part: "product of low rank whose two sides do not fit",
    })?;
    Ok((product, Some(a.cols)))
}
