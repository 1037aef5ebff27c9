//! The tensors that a file has for one weight.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::key_names::Role;
use crate::error::InteropError;

/// The tensors of an adapter by their names in it.
pub(super) type Parameters = Vec<(Cow<'static, str>, TensorData)>;

/// The tensors that a file has for one weight.
pub(super) struct LayerTensors {
    /// Path of the weight.
    weight: String,
    /// The module's name in the file, to which the patterns of a PEFT configuration refer.
    module: String,
    /// Names and values.
    tensors: BTreeMap<Role, (String, TensorData)>,
}

impl LayerTensors {
    /// Makes an empty layer for the weight at a path, and the name of its module in the file.
    pub(super) fn new(weight: &str, module: &str) -> Self {
        let (weight, module) = (weight.to_owned(), module.to_owned());
        Self { weight, module, tensors: BTreeMap::new() }
    }

    /// Adds a tensor by its name in the file.
    ///
    /// # Errors
    /// [`InteropError::SameRole`] if another name of the file has the same meaning.
    pub(super) fn insert(
        &mut self,
        role: Role,
        key: String,
        data: TensorData,
    ) -> Result<(), InteropError> {
        match self.tensors.insert(role, (key.clone(), data)) {
            None => Ok(()),
            Some((first, _)) => {
                let weight = self.weight.clone();
                Err(InteropError::SameRole { weight, first, second: key })
            }
        }
    }

    /// Path of the weight.
    pub(super) fn weight(&self) -> &str {
        &self.weight
    }

    /// The module's name in the file.
    pub(super) fn module(&self) -> &str {
        &self.module
    }

    pub(super) fn has(&self, role: Role) -> bool {
        self.tensors.contains_key(&role)
    }

    /// The tensor with a role.
    pub(super) fn get(&self, role: Role) -> Option<&TensorData> {
        self.tensors.get(&role).map(|(_, data)| data)
    }

    /// The tensors with their roles and their names in the file.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Role, &str, &TensorData)> {
        self.tensors.iter().map(|(role, (key, data))| (*role, key.as_str(), data))
    }

    /// Replaces the values of a tensor that is there.
    pub(super) fn with(mut self, role: Role, data: TensorData) -> Self {
        if let Some((_, old)) = self.tensors.get_mut(&role) {
            *old = data;
        }
        self
    }

    /// The name of the first tensor whose role is none of `known`.
    pub(super) fn other_than(&self, known: &[Role]) -> Option<&str> {
        let other = |(role, _): &(&Role, _)| !known.contains(role);
        self.tensors.iter().find(other).map(|(_, (key, _))| key.as_str())
    }

    /// The shape of a tensor, empty if the file does not have it.
    pub(super) fn shape(&self, role: Role) -> &[usize] {
        self.get(role).map_or(&[], |data| data.shape().as_slice())
    }

    /// The size of the second axis of a tensor, if the file has it as a matrix.
    pub(super) fn second_axis(&self, role: Role) -> Option<usize> {
        self.get(role)?.shape().as_slice().get(1).copied()
    }

    /// The only value of a tensor; `None` if the file does not have it.
    ///
    /// # Errors
    /// [`InteropError::TensorShape`] for a tensor with several values, or none.
    pub(super) fn number(&self, role: Role) -> Result<Option<f64>, InteropError> {
        let Some((_, data)) = self.tensors.get(&role) else { return Ok(None) };
        match data.iter::<f64>().collect::<Vec<_>>()[..] {
            [value] => Ok(Some(value)),
            _ => Err(self.misfit(role, "one number")),
        }
    }

    /// The tensor with a role; `name` is its name in the message.
    ///
    /// # Errors
    /// [`InteropError::MissingTensor`], and [`InteropError::TensorShape`] for one without values.
    pub(super) fn required(
        &self,
        role: Role,
        name: &'static str,
    ) -> Result<&TensorData, InteropError> {
        let Some((_, data)) = self.tensors.get(&role) else {
            return Err(InteropError::MissingTensor { weight: self.weight.clone(), tensor: name });
        };
        // A shape such as `[1 << 32, 0]` says nothing about the number of values, and must not size anything.
        if data.num_elements() == 0 {
            return Err(self.misfit(role, "at least one value"));
        }
        Ok(data)
    }

    /// The tensor with a role as the matrix with its first axis as rows.
    ///
    /// # Errors
    /// As [`LayerTensors::required`], and [`InteropError::TensorShape`] for a number without axes.
    pub(super) fn matrix(
        &self,
        role: Role,
        name: &'static str,
        device: &Device,
    ) -> Result<Tensor<2>, InteropError> {
        let data = self.required(role, name)?;
        let Some(rows) = data.shape().as_slice().first().copied() else {
            return Err(self.misfit(role, "a matrix"));
        };
        let cols = data.num_elements() / rows;
        Ok(to_tensor(data, [rows, cols], device))
    }

    /// The tensor with a role as a matrix `[rows, cols]`.
    ///
    /// # Errors
    /// As [`LayerTensors::matrix`], and [`InteropError::TensorShape`] for another size.
    pub(super) fn sized_matrix(
        &self,
        role: Role,
        name: &'static str,
        [rows, cols]: [usize; 2],
        device: &Device,
    ) -> Result<Tensor<2>, InteropError> {
        let matrix = self.matrix(role, name, device)?;
        if matrix.dims() == [rows, cols] {
            return Ok(matrix);
        }
        Err(self.misfit(role, &format!("[{rows}, {cols}]")))
    }

    /// The error of a tensor whose shape is not the `expected` one.
    pub(super) fn misfit(&self, role: Role, expected: &str) -> InteropError {
        let (key, found) = match self.tensors.get(&role) {
            Some((key, data)) => (key.clone(), data.shape().as_slice().to_vec()),
            None => (String::new(), Vec::new()),
        };
        let (weight, expected) = (self.weight.clone(), expected.to_owned());
        InteropError::TensorShape { key, found, weight, expected }
    }

    /// The error of a tensor that no method can represent; `tensor` describes it.
    pub(super) fn unsupported(&self, tensor: &'static str) -> InteropError {
        InteropError::UnsupportedTensor { weight: self.weight.clone(), tensor }
    }
}

/// Uploads values in f32 with as many elements as `shape`.
pub(super) fn to_tensor<const D: usize>(
    data: &TensorData,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let values: Vec<f32> = data.iter().collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Copies a matrix to the host in f32.
pub(super) fn to_host(matrix: Tensor<2>) -> TensorData {
    let dims = matrix.dims();
    let values: Vec<f32> = matrix.into_data().iter().collect();
    TensorData::new(values, dims)
}
