//! Where the states of prompts come from: a text encoder, or the states of known prompts.

use std::collections::HashMap;
use std::fmt;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use sha2::{Digest as _, Sha256};
use soda_kernels::{checksum, stored_checksums};

use crate::condition::Condition;
use crate::qwen3::Qwen3TextModel;

/// How long a language model stays in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TextEncoderUse {
    /// It stays, and encodes any prompt.
    #[default]
    Keep,
    /// It encodes the prompts when it is read, and is freed before the denoiser is read. No other prompt can
    /// be encoded then.
    EncodeAndFree {
        /// All prompts that will be used, negative ones included.
        prompts: Vec<String>,
        /// Whether the weights are hashed before, for [`weights_hash`](super::Qwen3Encoder::weights_hash).
        hash: bool,
    },
}

/// Where the states of prompts come from.
#[derive(Debug, Clone)]
pub enum PromptStates {
    /// The text encoder.
    Encoder(Qwen3TextModel),
    /// The states of some prompts. The text encoder was freed.
    Encoded(EncodedPrompts),
}

/// The states of some prompts, in main memory.
#[derive(Clone)]
pub struct EncodedPrompts {
    /// States `[1, m, d]` for `m` tokens, by prompt.
    states: HashMap<String, TensorData>,
    /// The hash of the text encoder's weights, if it was asked for.
    hash: String,
}

/// The states are thousands of numbers for each prompt.
impl fmt::Debug for EncodedPrompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedPrompts").field("prompts", &self.states.keys()).finish()
    }
}

impl EncodedPrompts {
    /// Encodes each prompt by `encode`, which gives `[1, m, d]`.
    pub(super) fn new(
        prompts: Vec<String>,
        hash: String,
        encode: impl Fn(&str) -> Tensor<3>,
    ) -> Self {
        let mut states = HashMap::new();
        for prompt in prompts {
            states.entry(prompt).or_insert_with_key(|prompt| encode(prompt).into_data());
        }
        Self { states, hash }
    }

    /// Whether the prompt was encoded.
    pub fn has(&self, prompt: &str) -> bool {
        self.states.contains_key(prompt)
    }

    /// The hash of the text encoder's weights, empty if it was not asked for.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// The condition of prompts. `sees_padding` as in [`ChatForm`](super::ChatForm).
    ///
    /// # Panics
    ///
    /// If a prompt was not encoded.
    #[track_caller]
    pub(super) fn condition(
        &self,
        prompts: &[String],
        sees_padding: bool,
        device: &Device,
    ) -> Condition {
        let of_prompt = |prompt: &String| {
            let states = self.states.get(prompt);
            let states = states.unwrap_or_else(|| panic!("the prompt was not encoded: {prompt}"));
            let text = Tensor::<3>::from_data(states.clone(), (device, states.dtype()));
            let lengths = (!sees_padding).then(|| vec![text.dims()[1]]);
            Condition { text, lengths, added: None }
        };
        Condition::cat_texts(prompts.iter().map(of_prompt).collect())
    }
}

/// The SHA-256 of the shapes, dtypes and checksums of the weights of a network, in hexadecimal digits.
pub(super) fn weights_hash<M: Module>(network: &M) -> String {
    struct Lines(String);
    impl ModuleVisitor for Lines {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            let (shape, dtype) = (value.shape(), value.dtype());
            let sum = checksum(value.reshape([shape.num_elements()]));
            self.0 += &format!("{shape:?} {dtype:?} {sum:016x} ");
        }
    }
    let mut lines = Lines(String::new());
    network.visit(&mut lines);
    for (path, format, sum) in stored_checksums(network) {
        lines.0 += &format!("{path} {format:?} {sum:016x} ");
    }
    format!("{:x}", Sha256::digest(lines.0))
}
