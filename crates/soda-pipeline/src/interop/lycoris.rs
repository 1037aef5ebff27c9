//! Conversion of LoHa and LoKr as LyCORIS, ComfyUI and A1111 store them.
//!
//! Each layer of such a file has its own rank and `α`. The conversion gives all layers one rank and a scale
//! of 1 without a change of any delta: it pads the factors with zeros, and multiplies a factor by the scale.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

use soda_adapters::loha::LohaConfig;
use soda_adapters::lokr::{LokrConfig, factorization};
use soda_adapters::{Method as _, MethodConfig, Weight};

use super::key_names::Role;
use super::layer_tensors::{Converted, LayerTensors, Layers, required};
use crate::error::InteropError;

/// A rank above that of any layer, with which LoKr stores both matrices whole.
const WHOLE: usize = 1 << 20;

/// A matrix on the host, in row-major order.
struct HostMatrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl HostMatrix {
    /// Reads a tensor of any rank as the matrix with its first axis as rows.
    fn from_data(data: &TensorData) -> Self {
        let rows = data.shape().as_slice().first().copied().unwrap_or(1);
        let values: Vec<f32> = data.iter().collect();
        Self { rows, cols: values.len() / rows.max(1), values }
    }

    /// Multiplies every entry by `scale`.
    fn scaled(mut self, scale: f64) -> Self {
        for value in &mut self.values {
            *value = (f64::from(*value) * scale) as f32;
        }
        self
    }

    /// Pads the matrix with zeros to `[rows, cols]`.
    fn padded(&self, rows: usize, cols: usize) -> TensorData {
        let at = |index: usize| {
            let (row, col) = (index / cols, index % cols);
            let inside = row < self.rows && col < self.cols;
            if inside { self.values[row * self.cols + col] } else { 0.0 }
        };
        TensorData::new((0..rows * cols).map(at).collect::<Vec<f32>>(), [rows, cols])
    }

    /// Computes `self other`, summed in f64; `None` if the sizes do not fit.
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

/// Returns `α/r` of a layer, or 1 if it has no `α`.
fn scale(tensors: &LayerTensors, rank: usize) -> f64 {
    let alpha = tensors.get(&Role::Alpha).and_then(|alpha| alpha.iter::<f64>().next());
    alpha.map_or(1.0, |alpha| alpha / rank.max(1) as f64)
}

/// Converts LoHa, `ΔW = (α/r) (W1a W1b) ∘ (W2a W2b)`.
pub(super) fn loha(layers: &Layers) -> Result<Converted, InteropError> {
    const FACTORS: [(Role, &str, &str); 4] = [
        (Role::HadaW1A, "hada_w1_a", "w1_a"),
        (Role::HadaW1B, "hada_w1_b", "w1_b"),
        (Role::HadaW2A, "hada_w2_a", "w2_a"),
        (Role::HadaW2B, "hada_w2_b", "w2_b"),
    ];
    let mut matrices = Vec::new();
    for (weight, tensors) in layers {
        for (role, lycoris_name, name) in FACTORS {
            let mut matrix = HostMatrix::from_data(required(weight, tensors, role, lycoris_name)?);
            if role == Role::HadaW1B {
                let scale = scale(tensors, matrix.rows);
                matrix = matrix.scaled(scale);
            }
            matrices.push((weight, name, matrix));
        }
    }
    let rank = |(_, name, matrix): &(_, &str, HostMatrix)| {
        if name.ends_with('a') { matrix.cols } else { matrix.rows }
    };
    let rank = matrices.iter().map(rank).max().unwrap_or(1);
    let method = MethodConfig::from(LohaConfig { rank, ..LohaConfig::default() });
    let tensors = matrices.into_iter().map(|(weight, name, matrix)| {
        let padded = match name.ends_with('a') {
            true => matrix.padded(matrix.rows, rank),
            false => matrix.padded(rank, matrix.cols),
        };
        (method.tensor_name(weight, name), padded)
    });
    let tensors = tensors.collect();
    Ok((method, tensors))
}

/// Converts LoKr, `ΔW = (α/r) W1 ⊗ W2`. If both matrices are whole there is no `r`, and the scale is 1.
pub(super) fn lokr(
    layers: &Layers,
    weights: &BTreeMap<String, Weight>,
) -> Result<Converted, InteropError> {
    let mut factors = Vec::new();
    for (weight, tensors) in layers {
        let (first, _) = factor(weight, tensors, W1)?;
        let (second, rank) = factor(weight, tensors, W2)?;
        let rank = factor(weight, tensors, W1)?.1.or(rank);
        let scale = rank.map_or(1.0, |rank| scale(tensors, rank));
        factors.push((weight, first, second.scaled(scale)));
    }
    // The file does not have LyCORIS' setting `factor`: find the value that gives the shapes.
    let fits = |setting: Option<usize>| {
        factors.iter().all(|(weight, first, second)| {
            let window = weights.get(*weight).map_or(1, Weight::window);
            let side = |small: usize, large: usize| {
                factorization(small * large, setting) == (small, large)
            };
            side(first.rows, second.rows) && side(first.cols, second.cols / window)
        })
    };
    let most = factors.iter().map(|(_, w1, _)| w1.rows.max(w1.cols)).max().unwrap_or(1);
    let setting = std::iter::once(None)
        .chain((1..=most).map(Some))
        .find(|setting| fits(*setting))
        .ok_or_else(|| InteropError::UnsupportedTensor {
            weight: layers.keys().next().cloned().unwrap_or_default(),
            tensor: "lokr_w1 of a size that no `factor` gives",
        })?;
    let config = LokrConfig { rank: WHOLE, factor: setting, ..LokrConfig::default() };
    let method = MethodConfig::from(config);
    let mut tensors = BTreeMap::new();
    for (weight, first, second) in factors {
        for (name, matrix) in [("w1.whole", first), ("w2.whole", second)] {
            tensors
                .insert(method.tensor_name(weight, name), matrix.padded(matrix.rows, matrix.cols));
        }
    }
    Ok((method, tensors))
}

/// The tensors of a LoKr matrix with their names: the whole matrix, and the two factors of a product.
type MatrixNames = [(Role, &'static str); 3];

const W1: MatrixNames =
    [(Role::LokrW1, "lokr_w1"), (Role::LokrW1A, "lokr_w1_a"), (Role::LokrW1B, "lokr_w1_b")];
const W2: MatrixNames =
    [(Role::LokrW2, "lokr_w2"), (Role::LokrW2A, "lokr_w2_a"), (Role::LokrW2B, "lokr_w2_b")];

/// Returns a LoKr matrix, and its rank if it is a product.
fn factor(
    weight: &str,
    tensors: &LayerTensors,
    [whole, a, b]: MatrixNames,
) -> Result<(HostMatrix, Option<usize>), InteropError> {
    if let Some(data) = tensors.get(&whole.0) {
        return Ok((HostMatrix::from_data(data), None));
    }
    if !tensors.contains_key(&a.0) {
        let weight = weight.to_owned();
        return Err(InteropError::MissingTensor { weight, tensor: whole.1 });
    }
    let (a, second) = (
        HostMatrix::from_data(required(weight, tensors, a.0, a.1)?),
        required(weight, tensors, b.0, b.1)?,
    );
    let product = a.product(&HostMatrix::from_data(second)).ok_or_else(|| {
        InteropError::UnsupportedTensor {
            weight: weight.to_owned(),
            tensor: "product of low rank whose two sides do not fit",
        }
    })?;
    Ok((product, Some(a.cols)))
}
