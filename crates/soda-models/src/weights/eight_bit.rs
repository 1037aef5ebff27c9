//! Weights in 8 bits as published checkpoints have them: int8 with scales, and E4M3 with or without.
//!
//! | dtype | scale | written by |
//! |---|---|---|
//! | `I8` | `<layer>.weight_scale`, for each output or for all | torchao-like exports |
//! | `I8` | `<layer>.SCB`, 127 times the factor of each output | bitsandbytes |
//! | `F8_E4M3` | the same as the first, or `<layer>.scale_weight` | ComfyUI, the authors of FLUX.2 |
//! | `F8_E4M3` | none | plain casts |
//!
//! `<layer>.input_scale` is for products in 8 bits. Products here are in floats, which need none.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ::safetensors::Dtype;
use burn::tensor::{Bytes, DType, TensorData};
use soda_kernels::QuantFormat;

use super::safetensors::Entry;
use crate::error::{ModelError, WeightsError};

/// The names of scales of weights with the number by which they are divided, and of activations.
const SCALES: [(&str, f32); 3] = [("weight_scale", 1.0), ("scale_weight", 1.0), ("SCB", 127.0)];
const OF_ACTIVATIONS: &str = "input_scale";
/// How bitsandbytes orders its codes: 0 in rows, the only order that it writes today.
const ORDER: &str = "weight_format";

/// The scale of a tensor in 8 bits.
#[derive(Debug)]
pub(super) struct Scale {
    entry: Entry,
    divisor: f32,
}

/// Whether a tensor is in 8 bits.
pub(super) fn is_eight_bit(entry: &Entry) -> bool {
    matches!(entry.dtype, Dtype::I8 | Dtype::F8_E4M3)
}

/// Takes the scale of the weight in 8 bits at `key` off `unused`, and that of its activations.
///
/// # Errors
///
/// [`WeightsError::Mismatch`] for int8 without a scale, for a scale that is neither one number nor one for
/// each output, or not in floats, and for codes that are not in rows.
pub(super) fn take_scale(
    entries: &BTreeMap<String, Entry>,
    (key, entry): (&String, &Entry),
    unused: &mut BTreeSet<&String>,
) -> Result<Option<Scale>, ModelError> {
    let layer = key.strip_suffix("weight").unwrap_or(key);
    unused.remove(&format!("{layer}{OF_ACTIVATIONS}"));
    let found = SCALES.iter().find_map(|(name, divisor)| {
        let (name, scale) = entries.get_key_value(&format!("{layer}{name}"))?;
        Some((name, scale, *divisor))
    });
    let refuse = |reason: String| {
        let path = entry.source.path.clone();
        Err(WeightsError::Mismatch { path, reason }.into())
    };
    let Some((name, scale, divisor)) = found else {
        return match entry.dtype {
            Dtype::I8 => refuse(format!("{key} is in int8 and has no {layer}weight_scale")),
            _ => Ok(None),
        };
    };
    unused.remove(name);
    let rows = entry.shape.first().copied().unwrap_or(1);
    let fits = scale.elements() == 1 || scale.elements() == rows;
    if !fits || !matches!(scale.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return refuse(format!(
            "{name} must be one number or {rows} in f32, f16 or bf16, and has the shape {:?} in {:?}",
            scale.shape, scale.dtype
        ));
    }
    if let Some((name, order)) = entries.get_key_value(&format!("{layer}{ORDER}")) {
        let read = |e| ModelError::io(&order.source.path, "a weight file", e);
        // Long tensors are not read.
        if order.elements() != 1 || order.read().map_err(read)?.iter().any(|byte| *byte != 0) {
            return refuse(format!("{name} is not 0: the codes of {key} are not in rows"));
        }
        unused.remove(name);
    }
    Ok(Some(Scale { entry: scale.clone(), divisor }))
}

/// The numbers of a tensor in 8 bits, in f32. `scales` are those of its [`Scale`].
pub(super) fn decode(entry: &Entry, codes: &[u8], scales: Option<Vec<f32>>) -> Vec<f32> {
    let table = match entry.dtype {
        Dtype::I8 => QuantFormat::Int8.table(),
        _ => QuantFormat::Fp8.table(),
    };
    let mut values: Vec<f32> = codes
        .iter()
        .map(|code| match entry.dtype {
            // The two codes of E4M3 that are not a number.
            Dtype::F8_E4M3 if code & 0x7f == 0x7f => f32::NAN,
            _ => table[usize::from(*code)],
        })
        .collect();
    let scales = scales.unwrap_or_default();
    if !scales.is_empty() {
        let each = values.len().div_ceil(scales.len()).max(1);
        for (values, scale) in values.chunks_mut(each).zip(&scales) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
    }
    values
}

impl Scale {
    /// Reads the factors, in f32.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(super) fn read(&self) -> io::Result<Vec<f32>> {
        let dtype = match self.entry.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => DType::F32,
        };
        let (count, bytes) = (self.entry.elements(), self.entry.read()?);
        Ok(match TensorData::try_from_bytes(Bytes::from_bytes_vec(bytes), [count], dtype) {
            Ok(data) => data.iter::<f32>().map(|scale| scale / self.divisor).collect(),
            Err(_) => vec![f32::NAN; count],
        })
    }
}
