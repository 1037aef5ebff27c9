//! Which weights of a network are not stored as floats on the device, but quantized or in host memory.
//!
//! These are the linear weights of the repeated blocks, nearly all weights of a transformer. What stays in
//! floats on the device is small, and an error in it reaches every token:
//!
//! | stays | reason |
//! |---|---|
//! | embeddings of latents, prompts, timesteps, sizes; the last projection | the first and last layers |
//! | modulations by the timestep | scale and shift every channel of a block |
//! | norms, biases | vectors |
//! | convolutions | no format for them |

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rayon::prelude::*;
use soda_kernels::{
    ActivationFormat, QuantFormat, QuantLayout, QuantizedMatrix, StoredWeight, stored_weights,
    take_stored,
};

use super::parameters::stored_parameters;

/// How the linear weights of a network's repeated blocks are stored. The default is floats on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightStorage {
    /// The number format; `None` for the dtype of the network.
    pub quantization: Option<QuantFormat>,
    /// The format of activations in products with weights in [`QuantFormat::Fp8`].
    pub activations: ActivationFormat,
    /// The number of blocks whose weights are in host memory, at most all. They are spread evenly over the
    /// network, so that the device copies one while it computes another.
    pub offload: usize,
}

/// The names of the lists of repeated blocks.
const BLOCKS: &[&str] = &[
    "transformer_blocks",
    "single_transformer_blocks",
    "layers",
    "noise_refiner",
    "context_refiner",
];

/// The names of layers in blocks that stay: modulations by the timestep.
const KEPT: &[&str] = &["adaLN_modulation"];

/// Whether the linear weight at `path` is stored as [`WeightStorage`] says.
pub(super) fn is_stored(path: &str) -> bool {
    let has = |names: &[&str]| path.split('.').any(|segment| names.contains(&segment));
    has(BLOCKS) && !has(KEPT)
}

impl WeightStorage {
    /// The layout of the quantized linear weight at `path`, `[in, out]`; `None` if it stays in floats.
    pub(super) fn layout(&self, path: &str, shape: &[usize]) -> Option<QuantLayout> {
        let &[input, output] = shape else { return None };
        let format = self.quantization.filter(|_| is_stored(path))?;
        Some(QuantLayout::new(format, [output, input])?.with_activations(self.activations))
    }
}

/// The block of the parameter at `path`: the path up to its number. `None` if it is in none.
pub(super) fn block(path: &str) -> Option<&str> {
    let mut end = 0;
    let mut segments = path.split('.').peekable();
    let mut found = None;
    while let Some(segment) = segments.next() {
        end += segment.len();
        if BLOCKS.contains(&segment)
            && let Some(number) = segments.peek()
        {
            found = path.get(..end + 1 + number.len());
        }
        end += 1;
    }
    found
}

/// The blocks of a network whose linear weights are in host memory.
pub(super) struct OffloadedBlocks(BTreeSet<String>);

impl OffloadedBlocks {
    /// Chooses `count` blocks of the network whose parameters have these paths, at even distances.
    pub(super) fn choose<'a>(paths: impl IntoIterator<Item = &'a str>, count: usize) -> Self {
        let mut blocks: Vec<&str> = Vec::new();
        if count > 0 {
            let mut seen = BTreeSet::new();
            blocks.extend(paths.into_iter().filter_map(block).filter(|block| seen.insert(*block)));
        }
        let (all, count) = (blocks.len(), count.min(blocks.len()));
        // Block `i` is chosen if a multiple of `all / count` lies in the interval from `i` to `i + 1`.
        let chosen = |index: &usize| (index + 1) * count / all > index * count / all;
        let chosen = (0..all).filter(chosen).map(|index| blocks[index].to_owned());
        Self(chosen.collect())
    }

    /// Whether the linear weight at `path` is in host memory.
    pub(super) fn contain(&self, path: &str) -> bool {
        is_stored(path) && block(path).is_some_and(|block| self.0.contains(block))
    }
}

/// The storage of one network's weights.
pub struct NetworkStorage {
    storage: WeightStorage,
    offloaded: OffloadedBlocks,
    dtype: FloatDType,
}

impl NetworkStorage {
    /// The storage of the weights of `module`, which computes in `dtype`.
    pub fn new<M: Module>(module: &M, storage: WeightStorage, dtype: FloatDType) -> Self {
        let parameters = stored_parameters(module);
        let paths = parameters.iter().map(|parameter| parameter.path.as_str());
        let offloaded = OffloadedBlocks::choose(paths, storage.offload);
        Self { storage, offloaded, dtype }
    }

    /// Stores the linear weight at `path`, `[in, out]`, in its format and place. `None` if it stays in floats
    /// on the device. `matrix` makes the floats `[out, in]`.
    ///
    /// What is quantized is quantized as it is. Other weights in host memory are cast.
    pub fn store(
        &self,
        path: &str,
        shape: [usize; 2],
        device: &Device,
        matrix: impl FnOnce() -> TensorData,
    ) -> Option<StoredWeight> {
        if let Some(layout) = self.storage.layout(path, &shape) {
            return Some(self.place(path, &encode(layout, matrix()), device));
        }
        let floats = || matrix().convert_dtype(self.dtype.into());
        self.offloaded.contain(path).then(|| StoredWeight::offloaded_floats(&floats(), device))?
    }

    /// Puts the codes of the weight at `path` in their place.
    fn place(&self, path: &str, codes: &QuantizedMatrix, device: &Device) -> StoredWeight {
        if self.offloaded.contain(path) {
            StoredWeight::offloaded_codes(codes, device)
        } else {
            device.memory_persistent_allocations((), |()| StoredWeight::quantized(codes, device))
        }
    }
}

/// The codes of the floats `[out, in]` of a weight.
fn encode(layout: QuantLayout, matrix: TensorData) -> QuantizedMatrix {
    let values = matrix.convert_dtype(DType::F32).try_into_vec();
    QuantizedMatrix::encode(&values.unwrap_or_default(), layout)
}

/// Stores the linear weights of a network's blocks, in floats on the device or waiting in host memory, in the
/// format and the place of `storage`. Weights that are stored already stay as they are.
///
/// The network computes in `dtype`. The module has no adapters.
pub fn store<M: Module>(module: M, storage: WeightStorage, dtype: FloatDType) -> M {
    if storage == WeightStorage::default() && stored_weights(&module).is_empty() {
        return module;
    }
    let storage = NetworkStorage::new(&module, storage, dtype);
    let (module, stored) = take_stored(module);
    let codes = |(path, weight): (&String, &StoredWeight)| {
        let layout = storage.storage.layout(path, &weight.dims())?;
        Some((path.clone(), encode(layout, weight.waiting()?)))
    };
    let codes = stored.par_iter().filter_map(codes).collect();
    let (path, containers) = (Vec::new(), Vec::new());
    module.map(&mut Store { storage, stored, codes, path, containers })
}

struct Store {
    storage: NetworkStorage,
    /// The weights that were stored already or wait, by path.
    stored: BTreeMap<String, StoredWeight>,
    /// The codes of those that wait.
    codes: BTreeMap<String, QuantizedMatrix>,
    path: Vec<String>,
    containers: Vec<String>,
}

impl ModuleMapper for Store {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let mut structs = self.containers.iter().rev();
        let layer = structs.find_map(|container| container.strip_prefix("Struct:"));
        if D != 2 || layer != Some("Linear") {
            return param;
        }
        let (path, value) = (self.path.join("."), param.base());
        let (device, dtype) = (value.device(), value.dtype());
        let weight = match (self.codes.remove(&path), self.stored.remove(&path)) {
            (Some(codes), _) => Some(self.storage.place(&path, &codes, &device)),
            (None, Some(weight)) => match weight.waiting() {
                None => Some(weight),
                Some(matrix) => {
                    let (dims, shape) = (weight.dims(), |axis| weight.dims()[axis]);
                    match self.storage.store(&path, dims, &device, || matrix) {
                        None => {
                            let shape: [usize; D] = std::array::from_fn(shape);
                            return param.map(|_| weight.to_float(dtype).reshape(shape));
                        }
                        stored => stored,
                    }
                }
            },
            (None, None) => {
                let dims = value.dims();
                // A GPU has the weight in this order.
                let matrix = || value.swap_dims(0, 1).into_data();
                self.storage.store(&path, [dims[0], dims[1]], &device, matrix)
            }
        };
        match weight {
            Some(weight) => weight.replace(param, dtype),
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use soda_kernels::with_stored;

    use super::*;

    #[test]
    fn linear_weights_of_blocks_are_quantized() {
        let storage = |format| WeightStorage {
            quantization: Some(format),
            activations: ActivationFormat::Fp8,
            ..WeightStorage::default()
        };
        let int8 = storage(QuantFormat::Int8);
        let quantized = |path: &str| int8.layout(path, &[64, 128]).is_some();
        assert!(quantized("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight"));
        assert!(quantized("single_transformer_blocks.3.attn.to_qkv_mlp_proj.weight"));
        assert!(quantized("noise_refiner.0.feed_forward.w1.weight"));
        assert!(quantized("text_model.encoder.layers.0.self_attn.q_proj.weight"));
        for path in [
            "layers.4.adaLN_modulation.0.weight",
            "x_embedder.weight",
            "proj_out.weight",
            "time_embedding.linear_1.weight",
            "mid_block.attentions.0.proj_in.weight",
        ] {
            assert!(!quantized(path), "{path}");
        }
        let path = "layers.0.w.weight";
        assert!(storage(QuantFormat::Nf4).layout(path, &[60, 128]).is_none());
        // Activations have the format that is asked for where the weight is of the same.
        let activations = |storage: WeightStorage| {
            storage.layout(path, &[64, 128]).map(|layout| layout.activations())
        };
        assert_eq!(activations(int8), Some(ActivationFormat::Float));
        assert_eq!(activations(storage(QuantFormat::Fp8)), Some(ActivationFormat::Fp8));
    }

    #[test]
    fn offloaded_blocks_are_spread_over_the_network() {
        let paths: Vec<String> = (0..4)
            .map(|index| format!("transformer_blocks.{index}.attn.to_q.weight"))
            .chain((0..6).map(|index| format!("single_transformer_blocks.{index}.proj.weight")))
            .chain(["proj_out.weight".to_owned()])
            .collect();
        let offloaded = |count: usize| {
            let blocks = OffloadedBlocks::choose(paths.iter().map(String::as_str), count);
            let places = (0..paths.len()).filter(|index| blocks.contain(&paths[*index]));
            places.collect::<Vec<_>>()
        };
        assert!(offloaded(0).is_empty());
        assert_eq!(offloaded(1), [9]);
        assert_eq!(offloaded(5), [1, 3, 5, 7, 9]);
        assert_eq!(offloaded(10), (0..10).collect::<Vec<_>>());
        assert_eq!(offloaded(99), offloaded(10));
        let path = "up_blocks.1.attentions.0.transformer_blocks.3.ff.net.2.weight";
        assert_eq!(block(path), Some("up_blocks.1.attentions.0.transformer_blocks.3"));
        assert_eq!(block("time_embedding.linear_1.weight"), None);
        // A modulation stays on the device, in every block.
        let path = "layers.0.adaLN_modulation.0.weight";
        assert!(!OffloadedBlocks::choose([path], 1).contain(path));
    }

    #[test]
    fn waiting_weights_are_stored_as_weights_on_the_device_are() {
        let device = Device::default();
        let network =
            Network { layers: (0..3).map(|_| LinearConfig::new(64, 8).init(&device)).collect() };
        let wait = |layer: &Linear| {
            let data = layer.weight.val().transpose().into_data();
            StoredWeight::waiting_floats(&data, &device)
        };
        let weights =
            network.layers.iter().enumerate().filter_map(|(index, layer)| {
                Some((format!("layers.{index}.weight"), wait(layer)?))
            });
        let waiting = with_stored(network.clone(), weights.collect());
        for quantization in [None, Some(QuantFormat::Int8), Some(QuantFormat::Nf4)] {
            let storage = WeightStorage { quantization, offload: 1, ..WeightStorage::default() };
            let stored = |network: &Network| {
                let stored = store(network.clone(), storage, FloatDType::F16);
                let all = stored_weights(&stored).into_iter();
                let all = all.map(|(path, weight)| (path, weight.format(), weight.to_bytes()));
                let floats = stored.layers.iter().map(|layer| layer.weight.base().dims());
                (all.collect::<Vec<_>>(), floats.collect::<Vec<_>>())
            };
            let (expected, found) = (stored(&network), stored(&waiting));
            assert_eq!(expected.0.len(), if quantization.is_some() { 3 } else { 1 });
            assert!(found == expected, "{quantization:?}");
            assert!(
                stored_weights(&store(waiting.clone(), storage, FloatDType::F16))
                    .values()
                    .all(|weight| !weight.is_waiting())
            );
        }
        assert_eq!(store(waiting, WeightStorage::default(), FloatDType::F16).layers.len(), 3);
    }

    #[derive(Module, Debug)]
    struct Network {
        layers: Vec<Linear>,
    }
}
