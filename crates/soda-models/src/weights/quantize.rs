//! Which weights of a network are quantized, and the quantization of a loaded network.
//!
//! The linear weights of the repeated blocks are quantized: they are nearly all weights of a
//! transformer. What stays in floats is small, and an error in it reaches every token:
//!
//! | stays | reason |
//! |---|---|
//! | embeddings of latents, prompts, timesteps, sizes; the last projection | the first and last layers |
//! | modulations by the timestep | scale and shift every channel of a block |
//! | norms, biases | vectors |
//! | convolutions | no format for them |

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};
use soda_kernels::{QuantFormat, QuantLayout, QuantizedMatrix, QuantizedWeight};

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

/// The layout of the linear weight at `path`, `[in, out]`; `None` if it stays in floats.
pub(super) fn layout(path: &str, shape: &[usize], format: QuantFormat) -> Option<QuantLayout> {
    let &[input, output] = shape else { return None };
    let has = |names: &[&str]| path.split('.').any(|segment| names.contains(&segment));
    if has(BLOCKS) && !has(KEPT) { QuantLayout::new(format, [output, input]) } else { None }
}

/// Quantizes the linear weights of a network's blocks that are in floats. Quantized ones stay as they are.
///
/// The module has no adapters.
pub fn quantize<M: Module>(module: M, format: QuantFormat) -> M {
    module.map(&mut Quantize { format, path: Vec::new(), containers: Vec::new() })
}

struct Quantize {
    format: QuantFormat,
    path: Vec<String>,
    containers: Vec<String>,
}

impl ModuleMapper for Quantize {
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
        match layout(&self.path.join("."), &value.dims(), self.format) {
            None => param,
            Some(layout) => {
                let (device, dtype) = (value.device(), value.dtype());
                // A GPU has the weight in this order.
                let data = value.swap_dims(0, 1).into_data().convert_dtype(DType::F32);
                let values: Vec<f32> = data.try_into_vec().unwrap_or_default();
                let matrix = QuantizedMatrix::encode(&values, layout);
                let weight = device
                    .memory_persistent_allocations((), |()| QuantizedWeight::new(&matrix, &device));
                weight.replace(param, dtype)
            }
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
}
