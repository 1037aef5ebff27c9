//! Which weights a method adapts: regular expressions over module paths, and named presets.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::AdapterError;
use crate::leaf::leaves;

/// Named target sets: name, and the pattern over weight paths it stands for.
pub const PRESETS: &[(&str, &str)] = &[
    ("attention", r"\.(to_q|to_k|to_v|to_out\.0)\.weight$"),
    ("cross-attention", r"\.attn2\.(to_q|to_k|to_v|to_out\.0)\.weight$"),
    ("attention+ff", r"\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)\.weight$"),
];

/// A set of weights, by preset names or regular expressions over paths such as
/// `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Targets(pub Vec<String>);

impl Default for Targets {
    /// All attention projections, the targets of the paper.
    fn default() -> Self {
        Self(vec!["attention".to_owned()])
    }
}

impl Targets {
    /// The selected weights of `module` by path, each `[in, out]` as burn's `Linear` stores it.
    ///
    /// # Errors
    /// A pattern that does not parse or matches nothing, a selected weight that is no matrix, and a
    /// module that already is on the tape.
    pub fn select<M: Module>(
        &self,
        module: &M,
    ) -> Result<BTreeMap<String, Tensor<2>>, AdapterError> {
        if self.0.is_empty() {
            let presets = PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(AdapterError::NoTargets { presets });
        }
        let leaves = leaves(module);
        let mut selected = BTreeMap::new();
        for pattern in &self.0 {
            let regex = compile(pattern)?;
            let mut matches = leaves.iter().filter(|leaf| regex.is_match(&leaf.path)).peekable();
            if matches.peek().is_none() {
                let mut paths = leaves
                    .iter()
                    .filter(|leaf| leaf.shape.len() == 2)
                    .map(|leaf| leaf.path.as_str());
                let examples = paths.by_ref().take(3).collect::<Vec<_>>();
                return Err(AdapterError::UnmatchedPattern {
                    pattern: pattern.clone(),
                    count: examples.len() + paths.count(),
                    examples: examples.join(", "),
                });
            }
            for leaf in matches {
                let &[rows, cols] = leaf.shape.as_slice() else {
                    return Err(AdapterError::NotAMatrix {
                        path: leaf.path.clone(),
                        shape: leaf.shape.clone(),
                    });
                };
                if leaf.value.is_autodiff() {
                    return Err(AdapterError::OnTape { path: leaf.path.clone() });
                }
                selected.insert(leaf.path.clone(), leaf.value.clone().reshape([rows, cols]));
            }
        }
        Ok(selected)
    }
}

fn compile(pattern: &str) -> Result<Regex, AdapterError> {
    let expression =
        PRESETS.iter().find(|(name, _)| *name == pattern).map_or(pattern, |(_, regex)| regex);
    Regex::new(expression).map_err(|error| AdapterError::InvalidPattern {
        pattern: pattern.to_owned(),
        // The regex crate draws a picture over several lines; its last line says what is wrong.
        reason: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    })
}
