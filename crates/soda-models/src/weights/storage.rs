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

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, FloatDType, Tensor};
use soda_kernels::{QuantFormat, QuantLayout, QuantizedMatrix, StoredWeight};

use super::parameters::{is_placeholder, stored_parameters};

/// How the linear weights of a network's repeated blocks are stored. The default is floats on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightStorage {
    /// The number format; `None` for the dtype of the network.
    pub quantization: Option<QuantFormat>,
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

/// The layout of the quantized linear weight at `path`, `[in, out]`; `None` if it stays in floats.
pub(super) fn layout(path: &str, shape: &[usize], format: QuantFormat) -> Option<QuantLayout> {
    let &[input, output] = shape else { return None };
    if is_stored(path) { QuantLayout::new(format, [output, input]) } else { None }
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

/// Stores the linear weights of a network's blocks that are in floats on the device, in the format and the
/// place of `storage`. Weights that are stored already stay as they are.
///
/// What is quantized is quantized as it is. Other weights in host memory are cast to `dtype`. The module has
/// no adapters.
pub fn store<M: Module>(module: M, storage: WeightStorage, dtype: FloatDType) -> M {
    if storage == WeightStorage::default() {
        return module;
    }
    let parameters = stored_parameters(&module);
    let paths = parameters.iter().map(|parameter| parameter.path.as_str());
    let offloaded = OffloadedBlocks::choose(paths, storage.offload);
    let (path, containers) = (Vec::new(), Vec::new());
    let quantization = storage.quantization;
    module.map(&mut Store { quantization, offloaded, dtype, path, containers })
}

struct Store {
    quantization: Option<QuantFormat>,
    offloaded: OffloadedBlocks,
    dtype: FloatDType,
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
        let value = param.base();
        if is_placeholder(&value.dims()) {
            return param;
        }
        let path = self.path.join(".");
        let format = self.quantization;
        let layout = format.and_then(|format| layout(&path, &value.dims(), format));
        let (device, dtype) = (value.device(), value.dtype());
        // A GPU has the weight in this order.
        let matrix = value.swap_dims(0, 1);
        let weight = match (layout, self.offloaded.contain(&path)) {
            (Some(layout), is_offloaded) => {
                let data = matrix.into_data().convert_dtype(DType::F32);
                let values: Vec<f32> = data.try_into_vec().unwrap_or_default();
                let matrix = QuantizedMatrix::encode(&values, layout);
                Some(if is_offloaded {
                    StoredWeight::offloaded_codes(&matrix, &device)
                } else {
                    device.memory_persistent_allocations((), |()| {
                        StoredWeight::quantized(&matrix, &device)
                    })
                })
            }
            (None, true) => {
                StoredWeight::offloaded_floats(&matrix.cast(self.dtype).into_data(), &device)
            }
            (None, false) => None,
        };
        match weight {
            Some(weight) => weight.replace(param, dtype),
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_weights_of_blocks_are_quantized() {
        let quantized = |path: &str| layout(path, &[64, 128], QuantFormat::Int8).is_some();
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
        assert!(layout("layers.0.w.weight", &[60, 128], QuantFormat::Nf4).is_none());
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
}
