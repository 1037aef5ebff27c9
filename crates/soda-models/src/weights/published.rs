//! Quantized weights of published checkpoints, which become floats when they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::eight_bit::{Scale, decode, is_eight_bit, take_scale};
use super::four_bit::FourBit;
use super::safetensors::Entry;
use crate::error::ModelError;

/// The tensor that marks a file with weights in E4M3 for ComfyUI. Its numbers say nothing.
const MARK: &str = "scaled_fp8";

/// How a checkpoint stores a quantized weight.
#[derive(Debug)]
pub(super) enum Published {
    EightBit { scale: Option<Scale> },
    FourBit(Box<FourBit>),
}

impl Published {
    /// The quantized weights of a checkpoint, by key. The tensors beside them are taken off `unused`.
    ///
    /// # Errors
    ///
    /// A weight without the tensors that say what its codes are.
    pub(super) fn take_all(
        entries: &BTreeMap<String, Entry>,
        unused: &mut BTreeSet<&String>,
    ) -> Result<BTreeMap<String, Self>, ModelError> {
        let mut all = BTreeMap::new();
        for (key, entry) in entries {
            if key == MARK {
                unused.remove(key);
            } else if is_eight_bit(entry) {
                let scale = take_scale(entries, (key, entry), unused)?;
                all.insert(key.clone(), Self::EightBit { scale });
            } else if let Some(weight) = FourBit::described(key)
                && let Some(codes) = entries.get(weight)
            {
                let four_bit = FourBit::take(entries, (weight, codes), key, unused)?;
                all.insert(weight.to_owned(), Self::FourBit(Box::new(four_bit)));
            }
        }
        Ok(all)
    }

    /// The shape of the weight whose codes are the tensor `entry`.
    pub(super) fn shape<'a>(&'a self, entry: &'a Entry) -> &'a [usize] {
        match self {
            Self::EightBit { .. } => &entry.shape,
            Self::FourBit(four_bit) => four_bit.shape(),
        }
    }

    /// The numbers of the weight whose codes are `entry`, in f32.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(super) fn read(&self, entry: &Entry) -> io::Result<Vec<f32>> {
        let codes = entry.read()?;
        match self {
            Self::EightBit { scale } => {
                let scales = scale.as_ref().map(Scale::read).transpose()?;
                Ok(decode(entry, &codes, scales))
            }
            Self::FourBit(four_bit) => four_bit.decode(&codes),
        }
    }
}
