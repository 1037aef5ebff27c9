//! Putting the tensors of a checkpoint into a module.
//!
//! A visit lists the module's parameters and checks the headers of the files against them. Then a second
//! traversal in the same order stores the tensors, which other threads read, check and convert meanwhile.

use std::collections::BTreeSet;
use std::path::PathBuf;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bytes, DType, Device, FloatDType, Tensor, TensorData};
use safetensors::Dtype;
use soda_kernels::{QuantLayout, QuantizedMatrix, StoredWeight, has_vendor_blas, transposed};

use super::checkpoint::Checkpoint;
use super::finite::first_non_finite;
use super::keys::{BUFFERS, checkpoint_key};
use super::precision::WeightPrecision;
use super::prefetch::{Job, Prefetch};
use super::published::Published;
use super::safetensors::Entry;
use super::storage::OffloadedBlocks;
use crate::error::{ModelError, WeightsError};

/// The number of weights that may be missing until they are listed.
const SMALL_NETWORK: usize = 1 << 24;

impl Checkpoint {
    /// Loads every weight of `module` as `dtype` and freezes the module.
    ///
    /// The memory is that of the weights, of at most 512 MiB of tensors that are read ahead, and of the
    /// largest tensor.
    ///
    /// # Errors
    ///
    /// [`ModelError::Weights`] for a key that is missing or unused, a wrong shape, an integer tensor or a
    /// weight that is not finite.
    pub fn load_into<M: Module>(self, module: M, dtype: FloatDType) -> Result<M, ModelError> {
        self.load_into_mixed(module, &dtype.into())
    }

    /// Loads every weight of `module` in its precision, and freezes the module.
    ///
    /// # Errors
    ///
    /// The errors of [`Checkpoint::load_into`].
    pub fn load_into_mixed<M: Module>(
        self,
        module: M,
        precision: &WeightPrecision,
    ) -> Result<M, ModelError> {
        self.check_size(&module)?;
        let mut visit = Visit::default();
        module.visit(&mut visit);
        let device = module.devices().into_iter().next();
        // A device whose library reads weights as the file has them needs no transposition.
        let keeps_order = device.as_ref().is_some_and(reads_file_order);
        let reads = self.reads(&visit.parameters, precision, keeps_order)?;
        let load = |module: M| {
            Prefetch::scope(&reads, |tensors| {
                let mut store = Store { reads: &reads, tensors, next: 0, failure: None };
                let module = module.map(&mut store);
                match store.failure {
                    Some(error) => Err(error),
                    None => Ok(module.no_grad()),
                }
            })
        };
        // Weights live longer than all other tensors, and must not hold pages of the device's memory pools.
        match device {
            Some(device) => device.memory_persistent_allocations(module, load),
            None => load(module),
        }
    }

    /// Refuses a network that is much larger than the file.
    ///
    /// Its weights would be initialised before the report says which of them the file lacks.
    fn check_size<M: Module>(&self, module: &M) -> Result<(), ModelError> {
        let stored: usize = self.entries.values().map(Entry::elements).sum();
        let needed = module.num_params();
        if needed / 4 <= stored + SMALL_NETWORK {
            return Ok(());
        }
        let reason = format!(
            "config.json describes a network of {needed} numbers, and the file has {stored}"
        );
        Err(WeightsError::Mismatch { path: self.path.clone(), reason }.into())
    }

    /// What to read for each parameter. Checks that parameters and tensors are each other's, by the headers.
    fn reads(
        &self,
        parameters: &[Parameter],
        precision: &WeightPrecision,
        keeps_order: bool,
    ) -> Result<Vec<Read>, ModelError> {
        let is_buffer = |key: &String| BUFFERS.iter().any(|buffer| key.ends_with(buffer));
        let mut unused: BTreeSet<&String> =
            self.entries.keys().filter(|key| !is_buffer(key)).collect();
        let mut published = Published::take_all(&self.entries, &mut unused)?;
        for key in unused.iter().filter(|key| !published.contains_key(**key)) {
            float_dtype(&self.entries[*key])?;
        }
        let paths = parameters.iter().map(|parameter| parameter.path.as_str());
        let offloaded = OffloadedBlocks::choose(paths, precision.storage.offload);
        let mut missing = Vec::new();
        let mut reads = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            let keys = [parameter.path.clone(), parameter.key()];
            let mut found = keys.iter().filter_map(|key| self.entries.get_key_value(key));
            let Some((key, entry)) = found.find(|(key, _)| unused.remove(key)) else {
                missing.push(parameter.key());
                continue;
            };
            let published = published.remove(key);
            let stored = match published {
                Some(_) => DType::F32,
                None => float_dtype(entry)?,
            };
            let is_transposed = entry.transposed != parameter.is_linear_weight();
            let exact = precision.exact.contains(&parameter.path);
            let is_stored = is_transposed && parameter.is_linear_weight();
            let layout = || precision.storage.layout(&parameter.path, &parameter.shape);
            let layout = if is_stored { layout() } else { None };
            let is_offloaded = is_stored && offloaded.contain(&parameter.path);
            let dtype = match exact {
                false => precision.dtype.into(),
                true if stored.size() == 2 => stored,
                true => DType::F32,
            };
            reads.push(Read {
                entry: entry.clone(),
                published,
                is_transposed,
                waits: exact && (is_offloaded || layout.is_some()),
                layout: layout.filter(|_| !exact),
                is_offloaded,
                shape: parameter.shape.clone(),
                stored,
                dtype,
                keeps_order,
            });
        }
        let path = || -> PathBuf { self.path.clone() };
        if !missing.is_empty() {
            return Err(WeightsError::MissingKeys { path: path(), keys: missing }.into());
        }
        if !unused.is_empty() {
            let keys = unused.into_iter().map(|key| self.entries[key].key.clone()).collect();
            return Err(WeightsError::UnusedKeys { path: path(), keys }.into());
        }
        match reads.iter().find(|read| !read.fits()) {
            None => Ok(reads),
            Some(read) => {
                let (key, found) = (read.entry.key.clone(), read.found_shape().to_vec());
                let expected = read.file_shape();
                Err(WeightsError::Shape { path: path(), key, expected, found }.into())
            }
        }
    }
}

/// Whether the device's library reads a linear weight in the order of the file, `[out, in]`.
fn reads_file_order(device: &Device) -> bool {
    has_vendor_blas(&Tensor::<1>::zeros([1], (device, DType::F32)))
}

/// The dtype of a tensor in a file.
fn float_dtype(entry: &Entry) -> Result<DType, ModelError> {
    match entry.dtype {
        Dtype::F64 => Ok(DType::F64),
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => Err(WeightsError::DType {
            path: entry.source.path.clone(),
            key: entry.key.clone(),
            dtype: format!("{other:?}"),
        }
        .into()),
    }
}

/// A float parameter of a module.
struct Parameter {
    path: String,
    /// The type of the struct that holds it, such as `Linear`.
    layer: String,
    shape: Vec<usize>,
}

impl Parameter {
    fn is_linear_weight(&self) -> bool {
        self.layer == "Linear" && self.path.ends_with("weight") && self.shape.len() == 2
    }

    /// The checkpoint's key.
    fn key(&self) -> String {
        checkpoint_key(&self.path, &self.layer)
    }
}

/// Lists the parameters of a module in the order of a traversal.
#[derive(Default)]
struct Visit {
    names: Vec<String>,
    containers: Vec<String>,
    parameters: Vec<Parameter>,
}

impl ModuleVisitor for Visit {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.push(name.to_owned());
        self.containers.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut structs = self.containers.iter().rev();
        let layer = structs.find_map(|container| container.strip_prefix("Struct:"));
        self.parameters.push(Parameter {
            path: self.names.join("."),
            layer: layer.unwrap_or_default().to_owned(),
            shape: param.lazy_shape().to_vec(),
        });
    }
}

/// A tensor to read for a parameter.
struct Read {
    entry: Entry,
    /// How the file has a quantized weight.
    published: Option<Published>,
    /// Whether the file has the parameter's axes in reverse order.
    is_transposed: bool,
    /// The shape of the parameter.
    shape: Vec<usize>,
    /// The dtype in the file; f32 for a quantized weight.
    stored: DType,
    /// The dtype of the parameter.
    dtype: DType,
    /// Whether the parameter is a view of the tensor as the file has it.
    keeps_order: bool,
    /// The layout of a weight that is quantized.
    layout: Option<QuantLayout>,
    /// Whether the weight stays in host memory.
    is_offloaded: bool,
    /// Whether the weight waits in host memory until its adapter is made.
    waits: bool,
}

/// A tensor that has been read.
enum Loaded {
    Float(TensorData),
    Quantized(QuantizedMatrix),
}

impl Read {
    /// The shape that the tensor should have in the file.
    fn file_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.is_transposed {
            shape.reverse();
        }
        shape
    }

    /// The shape that the tensor has in the file.
    fn found_shape(&self) -> &[usize] {
        match &self.published {
            Some(published) => published.shape(&self.entry),
            None => &self.entry.shape,
        }
    }

    fn fits(&self) -> bool {
        // burn has no scalars: CLIP's `logit_scale` is a vector of length 1.
        let scalar = self.entry.shape.is_empty() && self.shape == [1];
        scalar || self.found_shape() == self.file_shape()
    }
}

impl Job for Read {
    type Result = Result<Loaded, ModelError>;

    fn bytes(&self) -> usize {
        // Codes are made of f32, and made into f32.
        let through_f32 = self.layout.is_some() || self.published.is_some();
        let dtype = if through_f32 { DType::F32 } else { self.dtype };
        let width = dtype.size().max(self.entry.dtype.bitsize() / 8);
        self.shape.iter().product::<usize>() * width
    }

    fn run(&self) -> Self::Result {
        let path = &self.entry.source.path;
        let io = |e| ModelError::io(path, "a weight file", e);
        let (bytes, dtype) = match &self.published {
            None => (self.entry.read().map_err(io)?, self.entry.dtype),
            Some(published) => {
                let values = published.read(&self.entry).map_err(io)?;
                (values.iter().flat_map(|x| x.to_le_bytes()).collect(), Dtype::F32)
            }
        };
        // Checked here, where the tensor has a name. Later, NaN would be a black image.
        let bad = first_non_finite(dtype, &bytes);
        let data = TensorData::try_from_bytes(
            Bytes::from_bytes_vec(bytes),
            self.file_shape(),
            self.stored,
        )
        .map_err(|e| WeightsError::Safetensors { path: path.clone(), reason: e.to_string() })?;
        if let Some(index) = bad {
            let value = data.iter::<f64>().nth(index).unwrap_or(f64::NAN);
            let (path, key) = (path.clone(), self.entry.key.clone());
            return Err(WeightsError::NonFinite { path, key, index, value }.into());
        }
        if let Some(layout) = self.layout {
            let values: Vec<f32> =
                data.convert_dtype(DType::F32).try_into_vec().unwrap_or_default();
            return Ok(Loaded::Quantized(QuantizedMatrix::encode(&values, layout)));
        }
        let data = data.convert_dtype(self.dtype);
        let stays = self.is_offloaded || self.waits;
        let reorders = self.is_transposed && !self.keeps_order && !stays;
        Ok(Loaded::Float(if reorders { transposed(&data) } else { data }))
    }
}

/// Stores the tensors in the parameters, in the order of [`Visit`].
struct Store<'a> {
    reads: &'a [Read],
    tensors: &'a Prefetch<'a, Read>,
    next: usize,
    failure: Option<ModelError>,
}

impl ModuleMapper for Store<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let index = self.next;
        self.next += 1;
        let (None, Some(read)) = (&self.failure, self.reads.get(index)) else { return param };
        match self.tensors.take(index) {
            Some(Ok(Loaded::Quantized(matrix))) => {
                let device = param.lazy_device();
                let weight = match read.is_offloaded {
                    true => StoredWeight::offloaded_codes(&matrix, &device),
                    false => StoredWeight::quantized(&matrix, &device),
                };
                weight.replace(param, read.dtype)
            }
            Some(Ok(Loaded::Float(data))) if read.waits || read.is_offloaded => {
                let device = param.lazy_device();
                let weight = match read.waits {
                    true => StoredWeight::waiting_floats(&data, &device),
                    false => StoredWeight::offloaded_floats(&data, &device),
                };
                match weight {
                    Some(weight) => weight.replace(param, read.dtype),
                    None => param,
                }
            }
            Some(Ok(Loaded::Float(data))) => {
                let (id, device) = (param.id, param.lazy_device());
                let tensor = Tensor::<D>::from_data(data, (&device, read.dtype));
                let tensor = match read.is_transposed && read.keeps_order {
                    true => tensor.swap_dims(0, 1),
                    false => tensor,
                };
                param.transform_for_load(tensor, id)
            }
            Some(Err(error)) => {
                self.failure = Some(error);
                param
            }
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_transposition_moves_every_element() {
        for [rows, columns] in [[1, 1], [3, 70], [70, 3], [33, 65]] {
            let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            for dtype in [DType::F16, DType::F32, DType::F64] {
                let data = TensorData::new(values.clone(), [rows, columns]).convert_dtype(dtype);
                let expected: Vec<f64> = (0..rows * columns)
                    .map(|i| data.iter::<f64>().nth(i % rows * columns + i / rows).unwrap())
                    .collect();
                let found = transposed(&data);
                assert_eq!(found.shape()[..], [columns, rows]);
                assert_eq!(found.iter::<f64>().collect::<Vec<_>>(), expected);
            }
        }
    }
}
