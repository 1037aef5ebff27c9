//! Which weights a method adapts: regular expressions over module paths, and named presets.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::attach::MARKER;
use crate::error::AdapterError;
use crate::fold::Weight;
use crate::leaf::{Leaf, leaves};

/// A named set of targets.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// How it is called.
    pub name: &'static str,
    /// Regular expression over weight paths.
    pub pattern: &'static str,
    /// The rank a weight must have, where the names alone do not say it.
    rank: Option<usize>,
}

/// The named target sets, in the names of diffusers' UNets and transformers' text encoders.
pub const PRESETS: &[Preset] = &[
    Preset { name: "attention", pattern: r"\.(to_q|to_k|to_v|to_out\.0)\.weight$", rank: None },
    Preset {
        name: "cross-attention",
        pattern: r"\.attn2\.(to_q|to_k|to_v|to_out\.0)\.weight$",
        rank: None,
    },
    Preset {
        name: "attention+ff",
        pattern: r"\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)\.weight$",
        rank: None,
    },
    Preset { name: "all-linear", pattern: r"\.weight$", rank: Some(2) },
    Preset { name: "conv", pattern: r"\.weight$", rank: Some(4) },
    Preset {
        name: "text-attention",
        pattern: r"\.self_attn\.(q_proj|k_proj|v_proj|out_proj)\.weight$",
        rank: None,
    },
    Preset {
        name: "text-attention+mlp",
        pattern: r"\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))\.weight$",
        rank: None,
    },
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
    /// Exactly these weights.
    pub fn paths<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        Self(paths.into_iter().map(|path| format!("^{}$", regex::escape(path))).collect())
    }

    /// The selected weights of `module` by path.
    ///
    /// # Errors
    /// A pattern that does not parse or matches nothing, a selected weight that is no matrix, and a
    /// module that already is on the tape.
    pub fn select<M: Module>(&self, module: &M) -> Result<BTreeMap<String, Weight>, AdapterError> {
        self.select_under("", module)
    }

    /// [`Targets::select`] in the part of `module` whose paths begin with `prefix`; patterns see, and the result has, the
    /// paths without it.
    pub(crate) fn select_under<M: Module>(
        &self,
        prefix: &str,
        module: &M,
    ) -> Result<BTreeMap<String, Weight>, AdapterError> {
        if self.0.is_empty() {
            let presets = PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ");
            return Err(AdapterError::NoTargets { presets });
        }
        let adapted = format!(".{MARKER}.");
        let inside = |mut leaf: Leaf| {
            leaf.path = leaf.path.strip_prefix(prefix)?.to_owned();
            (!leaf.path.contains(&adapted)).then_some(leaf)
        };
        let leaves: Vec<_> = leaves(module).into_iter().filter_map(inside).collect();
        let mut selected = BTreeMap::new();
        for pattern in &self.0 {
            let pattern = Pattern::new(pattern)?;
            let mut matches = leaves
                .iter()
                .filter(|leaf| pattern.matches(&leaf.path, leaf.shape.len()))
                .peekable();
            if matches.peek().is_none() {
                return Err(pattern.unmatched(&leaves));
            }
            for leaf in matches {
                selected.insert(leaf.path.clone(), Weight::of(leaf)?);
            }
        }
        Ok(selected)
    }

    /// The paths that [`select`](Self::select) will find in a network whose weights are not there yet.
    ///
    /// # Errors
    /// A pattern that does not parse.
    pub fn expected<M: Module>(&self, module: &M) -> Result<BTreeSet<String>, AdapterError> {
        let patterns: Vec<Pattern<'_>> =
            self.0.iter().map(|pattern| Pattern::new(pattern)).collect::<Result<_, _>>()?;
        let mut shapes = Shapes::default();
        module.visit(&mut shapes);
        let wanted =
            |(path, rank): &(String, usize)| patterns.iter().any(|p| p.matches(path, *rank));
        Ok(shapes.found.into_iter().filter(wanted).map(|(path, _)| path).collect())
    }
}

/// Path and rank of every floating-point parameter, without making any that is not made yet.
#[derive(Default)]
struct Shapes {
    path: Vec<String>,
    found: Vec<(String, usize)>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        self.found.push((self.path.join("."), D));
    }
}

struct Pattern<'a> {
    given: &'a str,
    regex: Regex,
    rank: Option<usize>,
}

impl<'a> Pattern<'a> {
    fn new(given: &'a str) -> Result<Self, AdapterError> {
        let preset = PRESETS.iter().find(|preset| preset.name == given);
        let expression = preset.map_or(given, |preset| preset.pattern);
        let regex = Regex::new(expression).map_err(|error| AdapterError::pattern(given, &error))?;
        Ok(Self { given, regex, rank: preset.and_then(|preset| preset.rank) })
    }

    fn matches(&self, path: &str, rank: usize) -> bool {
        // Rank 2 is a linear layer's weight or a table of embeddings, which no product goes through.
        let table = path.ends_with("_embedding.weight");
        self.regex.is_match(path) && self.rank.is_none_or(|wanted| wanted == rank && !table)
    }

    fn unmatched(&self, leaves: &[Leaf]) -> AdapterError {
        let matrices = leaves.iter().filter(|leaf| matches!(leaf.shape.len(), 2 | 4));
        let paths: Vec<_> = matrices.map(|leaf| leaf.path.as_str()).collect();
        AdapterError::UnmatchedPattern {
            pattern: self.given.to_owned(),
            count: paths.len(),
            examples: paths.iter().take(3).copied().collect::<Vec<_>>().join(", "),
        }
    }
}
