//! What the training data say of a weight before its adapter is made: directions of its rows and columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};

/// What a method wants to be measured before it makes adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationRequest {
    /// Number of samples, each with its own noise and timestep.
    pub draws: usize,
    /// Whether the probes use the singular value decompositions of the weights.
    pub needs_svd: bool,
}

/// The measured directions of each weight, by its path. [`Probe`](crate::Probe) measures them.
#[derive(Clone, Debug, Default)]
pub struct Calibration(pub(crate) BTreeMap<String, Arc<WeightDirections>>);

/// The measured directions of one weight.
#[derive(Clone, Debug, Default)]
pub(crate) struct WeightDirections {
    /// Directions of the input.
    pub(crate) input: Option<SideDirections>,
    /// Directions of the output.
    pub(crate) output: Option<SideDirections>,
    /// The size of the gradient of each singular value, `[k]`.
    pub(crate) spectrum: Option<Tensor<1>>,
}

/// The measured directions of one side of a weight.
#[derive(Clone, Debug)]
pub(crate) struct SideDirections {
    /// Orthonormal directions, the most important first, `[n, p]`.
    pub(crate) vectors: Tensor<2>,
    /// The size of the signal in each direction, `[p]`, descending.
    pub(crate) sizes: Tensor<1>,
}

/// What is known of the directions of a weight.
#[derive(Clone, Debug, Default)]
pub(crate) enum Directions {
    /// Nothing. A method that needs them has to be calibrated.
    #[default]
    Unknown,
    /// They were measured.
    Measured(Arc<WeightDirections>),
    /// They are among the tensors of a trained state, which replaces any values.
    InState,
}

impl Calibration {
    /// The tensors to store, in f32: `<path of the weight>.` and `input` `[in, p]`, `input_sizes` `[p]`,
    /// `output` `[out, p]`, `output_sizes` `[p]` or `spectrum` `[k]`.
    /// [`Probe::stored`](crate::Probe::stored) reads them.
    pub fn to_tensors(&self) -> BTreeMap<String, TensorData> {
        let mut tensors = BTreeMap::new();
        for (path, directions) in &self.0 {
            for (name, data) in directions.to_tensors() {
                tensors.insert(format!("{path}.{name}"), data);
            }
        }
        tensors
    }

    /// The measured directions by path of the weight.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (&str, &WeightDirections)> {
        self.0.iter().map(|(path, directions)| (path.as_str(), &**directions))
    }

    /// The directions of one weight.
    pub(crate) fn get(&self, path: &str) -> Directions {
        self.0.get(path).cloned().map_or(Directions::Unknown, Directions::Measured)
    }
}

impl WeightDirections {
    fn to_tensors(&self) -> impl Iterator<Item = (&'static str, TensorData)> {
        let data = |tensor: Tensor<1>, shape: &[usize]| {
            let values: Vec<f32> = tensor.cast(DType::F32).into_data().iter().collect();
            TensorData::new(values, shape.to_vec())
        };
        let vectors = |side: &Option<SideDirections>| {
            side.as_ref().map(|side| data(side.vectors.clone().flatten(0, 1), &side.vectors.dims()))
        };
        let vector = |x: &Tensor<1>| data(x.clone(), &x.dims());
        let sizes = |side: &Option<SideDirections>| side.as_ref().map(|side| vector(&side.sizes));
        let named = [
            ("input", vectors(&self.input)),
            ("input_sizes", sizes(&self.input)),
            ("output", vectors(&self.output)),
            ("output_sizes", sizes(&self.output)),
            ("spectrum", self.spectrum.as_ref().map(vector)),
        ];
        named.into_iter().filter_map(|(name, data)| Some((name, data?)))
    }
}
