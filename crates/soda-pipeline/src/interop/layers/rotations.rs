//! OFT of PEFT, OneTrainer, LyCORIS and kohya's scripts, and PEFT's BOFT and HRA.
//!
//! | dialect | tensors | rotation of the weight |
//! |---|---|---|
//! | PEFT, OneTrainer | `oft_R.weight`, packed `Q` | of inputs, Cayley by a Neumann series or exact |
//! | LyCORIS, kohya | `oft_blocks`, `Q = X - Xᵀ` | of outputs, `W = Rᵀ W0` with `R = (I + Q)(I - Q)⁻¹` |
//! | PEFT's BOFT | `boft_R`, `Q = (X - Xᵀ) / 2`, and `boft_s` | of inputs, with a scale of outputs |
//! | PEFT's HRA | `hra_u`, the vectors of reflections | of inputs, `W = W0 H_1 ⋯ H_r` |

use std::ops::Sub;

use burn::tensor::{DType, Tensor, TensorData};
use soda_adapters::boft::BoftConfig;
use soda_adapters::oft::OftConfig;
use soda_adapters::soda::{RotationConfig, Side, SodaConfig, Structure};
use soda_adapters::{CayleyForm, MethodConfig, Weight};

use super::delta::adapted_delta;
use crate::error::InteropError;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::{LayerTensors, Parameters, to_tensor};
use crate::interop::peft::{PeftConfig, PeftOft};

/// An OFT, BOFT or HRA of one weight.
pub(crate) struct Rotation {
    /// The method with the block size of this weight.
    pub(crate) method: MethodConfig,
    /// The tensors by their names in an adapter.
    pub(crate) parameters: Parameters,
}

impl Rotation {
    /// Computes `ΔWᵀ`.
    pub(super) fn delta(&self, path: &str, weight: &Weight) -> Result<Tensor<2>, InteropError> {
        adapted_delta(&self.method, path, weight, self.parameters.clone())
    }
}

/// Reads the tensors of an OFT.
pub(super) fn read_oft(
    layer: &LayerTensors,
    config: Option<&PeftConfig>,
    weight: &Weight,
) -> Result<Rotation, InteropError> {
    if !layer.has(Role::Skew) {
        let kohya = layer.has(Role::KohyaOftBlocks);
        let role = if kohya { Role::KohyaOftBlocks } else { Role::OftBlocks };
        return square_blocks(layer, role, weight);
    }
    // OneTrainer has the default settings of PEFT, and the block size is that of the tensors.
    let default = PeftOft { oft_block_size: 0, ..PeftOft::default() };
    match config {
        Some(PeftConfig::Oft(config)) => packed(layer, config, weight),
        _ => packed(layer, &default, weight),
    }
}

/// Whether a layer has LyCORIS' or kohya's blocks of one row, each the rotation by nothing.
///
/// LyCORIS makes them for as few outputs as `conv_out` has.
pub(super) fn rotates_nothing(layer: &LayerTensors, weight: &Weight) -> bool {
    let outputs = weight.dims()[1];
    [Role::OftBlocks, Role::KohyaOftBlocks].iter().any(|role| layer.shape(*role) == [outputs, 1, 1])
}

/// Reads LyCORIS' OFT with a factor of each output, as `ΔWᵀ`.
pub(super) fn rescaled_delta(
    layer: &LayerTensors,
    weight: &Weight,
) -> Result<Tensor<2>, InteropError> {
    let outputs = weight.dims()[1];
    let factors = layer.required(Role::Rescale, "rescale")?;
    if factors.num_elements() != outputs {
        return Err(layer.misfit(Role::Rescale, &format!("[{outputs}, 1]")));
    }
    let factors = to_tensor(factors, [1, outputs], &weight.device());
    let w = weight.matrix().cast(DType::F32);
    let rotated = if rotates_nothing(layer, weight) {
        w.clone()
    } else {
        let rotation = square_blocks(layer, Role::OftBlocks, weight)?;
        w.clone() + rotation.delta(layer.weight(), weight)?
    };
    Ok(rotated * factors - w)
}

/// Reads the packed entries of PEFT and OneTrainer.
fn packed(
    layer: &LayerTensors,
    config: &PeftOft,
    weight: &Weight,
) -> Result<Rotation, InteropError> {
    let input = weight.dims()[0];
    let data = layer.required(Role::Skew, "oft_R")?;
    let misfit = || {
        layer
            .misfit(Role::Skew, &format!("[blocks, n(n-1)/2] with blocks of n that divide {input}"))
    };
    let &[blocks, entries] = data.shape().as_slice() else { return Err(misfit()) };
    // `n` of the `n(n-1)/2` entries.
    let size = (0..).find(|n: &usize| n * n.saturating_sub(1) / 2 >= entries).unwrap_or(0);
    let shared = config.block_share || (blocks == 1 && size < input);
    let rotated = if shared { size.max(1) * (input / size.max(1)) } else { size * blocks };
    if size < 2 || size * (size - 1) / 2 != entries || rotated != input || (shared && blocks != 1) {
        return Err(misfit());
    }
    // OneTrainer's mark divides the parameters by the root of the number of entries.
    let divisor = if layer.has(Role::ScaledSkew) { (entries as f64).sqrt() } else { 1.0 };
    let values: Vec<f32> = data.iter::<f64>().map(|value| (value / divisor) as f32).collect();
    let terms = config.num_cayley_neumann_terms;
    let method = OftConfig {
        // A size that does not divide the width stands for the nearest one that does.
        block_size: if config.oft_block_size == 0 { size } else { config.oft_block_size },
        cayley: if config.use_cayley_neumann {
            CayleyForm::Neumann { terms }
        } else {
            CayleyForm::Exact
        },
        block_share: shared,
        constraint: config.coft.then_some(config.eps),
        ..OftConfig::default()
    };
    let data = TensorData::new(values, [blocks, entries]);
    Ok(Rotation { method: method.into(), parameters: vec![("rotation.skew".into(), data)] })
}

/// Reads the square blocks of LyCORIS and kohya's scripts.
fn square_blocks(
    layer: &LayerTensors,
    role: Role,
    weight: &Weight,
) -> Result<Rotation, InteropError> {
    let output = weight.dims()[1];
    let data = layer.required(role, "oft_blocks")?;
    let &[blocks, size, same] = data.shape().as_slice() else {
        let four_axes = data.rank() == 4 && role == Role::OftBlocks;
        let butterfly = "butterfly of rotations (LyCORIS' BOFT)";
        return Err(match four_axes {
            true => layer.unsupported(butterfly),
            false => layer.misfit(role, "[blocks, n, n]"),
        });
    };
    if size != same || size < 2 || blocks.checked_mul(size) != Some(output) {
        return Err(layer.misfit(role, &format!("[{output} / n, n, n]")));
    }
    let values: Vec<f64> = data.iter().collect();
    let blocks_of_q = values.chunks_exact(size * size);
    let packed: Vec<f64> = blocks_of_q.flat_map(|block| above_diagonal(block, size)).collect();
    // The norm is of `Q`, both halves of which are equal up to sign.
    let norm = (2.0 * packed.iter().map(|value| value * value).sum::<f64>()).sqrt();
    let bound = layer.number(Role::Alpha)?.map(|alpha| alpha * output as f64);
    let factor = match (role, bound) {
        (Role::KohyaOftBlocks, None) => {
            let weight = layer.weight().to_owned();
            return Err(InteropError::MissingTensor { weight, tensor: "alpha (the constraint)" });
        }
        (Role::KohyaOftBlocks, Some(bound)) => (norm.min(bound) + 1e-8) / (norm + 1e-8),
        (_, Some(bound)) if bound > 0.0 && norm + 1e-8 > bound => bound / (norm + 1e-8),
        _ => 1.0,
    };
    // `w R` on the stored weight `[in, out]` is `Rᵀ W`, and the exact form of `-Q` is `R`.
    let skew: Vec<f32> = packed.into_iter().map(|value| (-value * factor) as f32).collect();
    let skew = TensorData::new(skew, [blocks, size * (size - 1) / 2]);
    let method = OftConfig {
        block_size: size,
        cayley: CayleyForm::Exact,
        side: Side::Output,
        ..OftConfig::default()
    };
    Ok(Rotation { method: method.into(), parameters: vec![("output_rotation.skew".into(), skew)] })
}

/// Reads the tensors of PEFT's BOFT.
pub(super) fn read_boft(layer: &LayerTensors, weight: &Weight) -> Result<Rotation, InteropError> {
    let [input, output] = weight.dims();
    let data = layer.required(Role::BoftBlocks, "boft_R")?;
    let scale = layer.required(Role::BoftScale, "boft_s")?;
    let misfit = || layer.misfit(Role::BoftBlocks, &format!("[levels, {input} / n, n, n]"));
    let &[levels, blocks, size, same] = data.shape().as_slice() else { return Err(misfit()) };
    if size != same || size < 2 || blocks.checked_mul(size) != Some(input) {
        return Err(misfit());
    }
    if scale.num_elements() != output {
        return Err(layer.misfit(Role::BoftScale, &format!("[{output}, 1]")));
    }
    let values: Vec<f32> = data.iter().collect();
    let mut parameters = Vec::new();
    for (level, blocks) in values.chunks_exact(input * size).enumerate() {
        let halves = blocks.chunks_exact(size * size).flat_map(|block| above_diagonal(block, size));
        let skew: Vec<f32> = halves.map(|difference| difference / 2.0).collect();
        let skew = TensorData::new(skew, [input / size, size * (size - 1) / 2]);
        parameters.push((format!("levels.{level}.rotation.skew").into(), skew));
    }
    let scale: Vec<f32> = scale.iter().collect();
    parameters.push(("scale".into(), TensorData::new(scale, [output])));
    Ok(Rotation { method: BoftConfig { block_size: size, levels }.into(), parameters })
}

/// Reads the vectors of PEFT's HRA.
pub(super) fn read_hra(layer: &LayerTensors, weight: &Weight) -> Result<Rotation, InteropError> {
    let input = weight.dims()[0];
    let data = layer.required(Role::Reflections, "hra_u")?;
    let &[rows, rank] = data.shape().as_slice() else {
        return Err(layer.misfit(Role::Reflections, &format!("[{input}, r]")));
    };
    if rows != input || rank < 2 || rank > input {
        return Err(layer.misfit(Role::Reflections, &format!("[{input}, r] with r from 2")));
    }
    if rank % 2 == 1 {
        return Err(layer.unsupported("odd number of reflections (HRA)"));
    }
    let values: Vec<f32> = data.iter().collect();
    let rotation = RotationConfig {
        structure: Structure::Householder,
        rank: Some(rank),
        ..RotationConfig::default()
    };
    let method = SodaConfig { rotation: Some(rotation), ..SodaConfig::hra() };
    let vectors = TensorData::new(values, [rows, rank]);
    Ok(Rotation {
        method: method.into(),
        parameters: vec![("rotation.reflections".into(), vectors)],
    })
}

/// The entries of `X - Xᵀ` above the diagonal, row by row.
fn above_diagonal<T: Copy + Sub<Output = T>>(x: &[T], size: usize) -> Vec<T> {
    let pairs = (0..size).flat_map(|row| (row + 1..size).map(move |col| (row, col)));
    pairs.map(|(row, col)| x[row * size + col] - x[col * size + row]).collect()
}
