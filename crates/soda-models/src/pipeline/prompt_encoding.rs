//! How a language model encodes prompts, where a user chooses it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text_encoders::TextEncoders;
use crate::error::ModelError;

/// How a language model encodes prompts: the arguments of the same names of diffusers' pipelines.
///
/// A field that is `None` leaves the choice to the model family. A denoiser that was trained on one encoding
/// draws well with this encoding alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptEncoding {
    /// Indices of the text encoder's hidden states that are stacked along the width: 0 is the embedding of
    /// the tokens, and negative ones count from the last state, -1. The default is 9, 18, 27 for FLUX.2
    /// klein and -2 for Z-Image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder_out_layers: Option<Vec<i64>>,
    /// The number of tokens that prompts are padded to (FLUX.2) or cut at (Z-Image). The default is the
    /// tokenizer's own limit, at most 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequence_length: Option<usize>,
}

impl PromptEncoding {
    /// Returns `self`, with the choices of `other` where `self` has none.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            text_encoder_out_layers: self
                .text_encoder_out_layers
                .or_else(|| other.text_encoder_out_layers.clone()),
            max_sequence_length: self.max_sequence_length.or(other.max_sequence_length),
        }
    }

    /// Whether `made`, the encoding of a loaded model, has all choices of `self`.
    pub fn is_met_by(&self, made: &Self) -> bool {
        self.clone().or(made) == *made
    }

    /// Refuses any choice for a model whose text encoders are CLIP's.
    pub(super) fn refuse_for_clip(&self) -> Result<(), ModelError> {
        let layers = self.text_encoder_out_layers.as_ref().map(|layers| format!("{layers:?}"));
        let length = self.max_sequence_length.map(|length| length.to_string());
        let field = [("text_encoder_out_layers", layers), ("max_sequence_length", length)];
        match field.into_iter().find_map(|(field, value)| Some((field, value?))) {
            Some((field, value)) => Err(ModelError::InvalidRequest {
                field,
                value,
                expected: "this model has CLIP text encoders: leave it out".to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// The choices as `name = value`, separated by commas, or `the model's own encoding` without a choice.
impl fmt::Display for PromptEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = &self.text_encoder_out_layers;
        let layers = layers.iter().map(|layers| format!("text_encoder_out_layers = {layers:?}"));
        let length = self.max_sequence_length.iter();
        let length = length.map(|length| format!("max_sequence_length = {length}"));
        let choices: Vec<String> = layers.chain(length).collect();
        match choices.is_empty() {
            true => f.write_str("the model's own encoding"),
            false => f.write_str(&choices.join(", ")),
        }
    }
}

impl TextEncoders {
    /// The encoding of prompts, all fields of which are set: no index is negative. For CLIP's text encoders
    /// no field is.
    pub fn prompt_encoding(&self) -> PromptEncoding {
        match self {
            Self::Clip(_) => PromptEncoding::default(),
            Self::Qwen3(qwen3) => PromptEncoding {
                text_encoder_out_layers: Some(
                    qwen3.out_layers.iter().map(|state| *state as i64).collect(),
                ),
                max_sequence_length: Some(qwen3.max_sequence_length),
            },
        }
    }

    /// The encoding of prompts where it is not the model family's own. Files of other tools and of a merged
    /// model do not hold it.
    pub fn chosen_prompt_encoding(&self) -> Option<PromptEncoding> {
        match self {
            Self::Qwen3(qwen3) if !qwen3.has_default_encoding => Some(self.prompt_encoding()),
            Self::Qwen3(_) | Self::Clip(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoding(layers: Option<&[i64]>, length: Option<usize>) -> PromptEncoding {
        PromptEncoding {
            text_encoder_out_layers: layers.map(<[i64]>::to_vec),
            max_sequence_length: length,
        }
    }

    #[test]
    fn a_choice_is_met_by_the_same_choice_alone() {
        let made = encoding(Some(&[9, 18, 27]), Some(512));
        assert!(PromptEncoding::default().is_met_by(&made));
        assert!(encoding(Some(&[9, 18, 27]), None).is_met_by(&made));
        assert!(!encoding(Some(&[9, 27, 18]), None).is_met_by(&made));
        assert!(!encoding(None, Some(256)).is_met_by(&made));
        assert!(!encoding(None, Some(512)).is_met_by(&PromptEncoding::default()));
    }

    #[test]
    fn the_first_choice_wins() {
        let first = encoding(Some(&[1]), None);
        let both = first.or(&encoding(Some(&[2]), Some(7)));
        assert_eq!(both, encoding(Some(&[1]), Some(7)));
        assert_eq!(both.to_string(), "text_encoder_out_layers = [1], max_sequence_length = 7");
    }
}
