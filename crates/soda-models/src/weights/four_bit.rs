//! Weights in 4 bits as bitsandbytes stores them: NF4 and FP4, two numbers a byte, the first one in the high
//! bits.
//!
//! | tensor beside `<weight>` | contents |
//! |---|---|
//! | `<weight>.quant_map` | the 16 numbers of the codes, f32 |
//! | `<weight>.absmax` | the factor of each block of numbers, f32, or its code |
//! | `<weight>.nested_quant_map`, `<weight>.nested_absmax` | the same of these codes |
//! | `<weight>.quant_state.bitsandbytes__nf4` | JSON: shape, blocks, and what is added to factors |

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ::safetensors::Dtype;
use serde::Deserialize;

use super::safetensors::Entry;
use crate::error::{ModelError, WeightsError};

/// What follows the key of a weight in that of its description. The type of the codes follows.
const STATE: &str = ".quant_state.bitsandbytes__";
/// The most bytes of a description.
const LONGEST_STATE: usize = 1 << 16;

/// A weight in 4 bits, beside its codes.
#[derive(Debug)]
pub(super) struct FourBit {
    shape: Vec<usize>,
    /// The numbers that share a factor.
    block: usize,
    map: Entry,
    absmax: Entry,
    nested: Option<Nested>,
}

/// How factors are quantized.
#[derive(Debug)]
struct Nested {
    block: usize,
    offset: f32,
    map: Entry,
    absmax: Entry,
}

/// The description of a weight. `dtype` is the type that bitsandbytes computes in, which does not concern the
/// numbers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    #[serde(rename = "quant_type")]
    _quant_type: String,
    blocksize: usize,
    #[serde(rename = "dtype")]
    _dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    #[serde(rename = "nested_dtype")]
    _nested_dtype: Option<String>,
    nested_offset: Option<f32>,
}

impl FourBit {
    /// The key of the weight that a tensor describes.
    pub(super) fn described(key: &str) -> Option<&str> {
        key.split_once(STATE).map(|(weight, _)| weight)
    }

    /// Reads the description of the weight `key`, and takes the tensors beside it off `unused`.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Mismatch`] for a description that is not bitsandbytes', and for tensors that are
    /// missing or of another size than it says.
    pub(super) fn take(
        entries: &BTreeMap<String, Entry>,
        (key, entry): (&str, &Entry),
        state_key: &str,
        unused: &mut BTreeSet<&String>,
    ) -> Result<Self, ModelError> {
        let refuse = |reason: String| -> ModelError {
            let reason = format!("{key} is in 4 bits, and {reason}");
            WeightsError::Mismatch { path: entry.source.path.clone(), reason }.into()
        };
        let mut take = |name: &str, dtypes: &[Dtype], count: usize| {
            let name = format!("{key}.{name}");
            let found = entries.get(&name).ok_or_else(|| refuse(format!("{name} is missing")))?;
            if !dtypes.contains(&found.dtype) || found.elements() != count {
                let (shape, dtype) = (&found.shape, found.dtype);
                return Err(refuse(format!(
                    "{name} must have {count} numbers in {}, and has the shape {shape:?} in {dtype}",
                    dtypes[0]
                )));
            }
            unused.remove(&name);
            Ok(found.clone())
        };
        let name = state_key.strip_prefix(key).unwrap_or(state_key).trim_start_matches('.');
        let size = entries.get(state_key).map_or(0, Entry::elements).min(LONGEST_STATE);
        let state = take(name, &[Dtype::U8], size)?;
        let bytes =
            state.read().map_err(|e| ModelError::io(&state.source.path, "a weight file", e))?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|error| refuse(format!("its description cannot be read: {error}")))?;
        let numbers = state.shape.iter().try_fold(1usize, |all, side| all.checked_mul(*side));
        let is_packed = entry.dtype == Dtype::U8
            && numbers.is_some_and(|numbers| numbers.div_ceil(2) == entry.elements());
        let (Some(numbers), true) = (numbers, is_packed) else {
            return Err(refuse(format!(
                "the shape {:?} does not fit {} bytes",
                state.shape,
                entry.elements()
            )));
        };
        if state.blocksize == 0 || state.nested_blocksize == Some(0) {
            return Err(refuse("its blocks have no numbers".to_owned()));
        }
        let blocks = numbers.div_ceil(state.blocksize);
        let map = take("quant_map", &[Dtype::F32], 16)?;
        let (absmax, nested) = match state.nested_blocksize {
            None => (take("absmax", &[Dtype::F32], blocks)?, None),
            Some(block) => {
                let absmax = take("absmax", &[Dtype::U8], blocks)?;
                let nested = Nested {
                    block,
                    offset: state.nested_offset.unwrap_or_default(),
                    map: take("nested_quant_map", &[Dtype::F32], 256)?,
                    absmax: take("nested_absmax", &[Dtype::F32], blocks.div_ceil(block))?,
                };
                (absmax, Some(nested))
            }
        };
        Ok(Self { shape: state.shape, block: state.blocksize, map, absmax, nested })
    }

    /// The shape of the weight.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The numbers of these codes, in f32.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(super) fn decode(&self, codes: &[u8]) -> io::Result<Vec<f32>> {
        let map = floats(&self.map)?;
        let factors: Vec<f32> = match &self.nested {
            None => floats(&self.absmax)?,
            Some(nested) => {
                let (map, scales) = (floats(&nested.map)?, floats(&nested.absmax)?);
                let codes = self.absmax.read()?;
                let blocks = codes.chunks(nested.block).zip(&scales);
                let factor =
                    |code: &u8, scale: f32| map[usize::from(*code)] * scale + nested.offset;
                blocks.flat_map(|(block, scale)| block.iter().map(|c| factor(c, *scale))).collect()
            }
        };
        let numbers = self.shape.iter().product();
        let codes = codes.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(numbers);
        let mut values: Vec<f32> = codes.map(|code| map[usize::from(code)]).collect();
        for (block, factor) in values.chunks_mut(self.block).zip(&factors) {
            block.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(values)
    }
}

/// The numbers of a tensor in f32.
fn floats(entry: &Entry) -> io::Result<Vec<f32>> {
    let bytes = entry.read()?;
    let (numbers, _) = bytes.as_chunks::<4>();
    Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
