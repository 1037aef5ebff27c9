//! Which weights a method adapts: regular expressions over parameter paths, and named presets of them.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use regex::Regex;
use serde::{Deserialize, Serialize};
use soda_kernels::stored_weights;

use crate::error::{AdapterError, TargetError};
use crate::named_params::{ADAPTER_SEGMENT, NamedParam, named_params};
use crate::path_pattern::matches_one_path;
use crate::weight::Weight;

/// A name for a target pattern.
///
/// The presets of Stable Diffusion's networks are in the crate `soda-pipeline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPreset {
    /// The name, which a [`Targets`] list may hold in place of a pattern.
    pub name: &'static str,
    /// Regular expression over parameter paths.
    pub pattern: &'static str,
    /// The rank that a selected weight must have; `None` for any rank.
    pub rank: Option<usize>,
}

impl TargetPreset {
    /// All weights of linear layers.
    pub const ALL_LINEAR: Self = Self { name: "all-linear", pattern: r"\.weight$", rank: Some(2) };
    /// All kernels of convolutions.
    pub const CONV: Self = Self { name: "conv", pattern: r"\.weight$", rank: Some(4) };
    /// The presets that make sense for any network.
    pub const GENERIC: &'static [Self] = &[Self::ALL_LINEAR, Self::CONV];
}

/// A selection of weights: names of presets, or regular expressions over paths such as
/// `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight`.
///
/// ```
/// use burn::{nn::LinearConfig, tensor::Device};
/// use soda_adapters::Targets;
///
/// let layer = LinearConfig::new(12, 8).init(&Device::default());
/// let weights = Targets(vec![r"^weight$".into()]).select(&layer)?;
/// assert_eq!(weights["weight"].dims(), [12, 8]);
/// assert!(Targets(vec!["to_q".into()]).select(&layer).is_err());
/// # Ok::<(), soda_adapters::AdapterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Targets(pub Vec<String>);

impl Targets {
    /// Selects exactly the weights with these paths.
    pub fn from_paths<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        Self(paths.into_iter().map(|path| format!("^{}$", regex::escape(path))).collect())
    }

    /// Returns the selected weights of `module` by path, with the presets [`TargetPreset::GENERIC`].
    ///
    /// # Errors
    /// [`TargetError`] for an empty list, for a pattern that is not a regular expression or matches no
    /// weight, for a selected parameter that is not a matrix, and for a module on an autodiff device.
    pub fn select<M: Module>(&self, module: &M) -> Result<BTreeMap<String, Weight>, AdapterError> {
        self.select_within(module, "", TargetPreset::GENERIC)
    }

    /// [`Targets::select`] with other presets, in the part of `module` whose paths begin with `prefix`.
    ///
    /// The patterns are matched against paths without the prefix, and the returned paths are without it. A
    /// prefix ends with a dot, as `unet.`; an empty one selects in the whole module.
    ///
    /// # Errors
    /// As [`Targets::select`].
    pub fn select_within<M: Module>(
        &self,
        module: &M,
        prefix: &str,
        presets: &[TargetPreset],
    ) -> Result<BTreeMap<String, Weight>, AdapterError> {
        if self.0.is_empty() {
            let presets = presets.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ");
            return Err(TargetError::NoPattern { presets }.into());
        }
        let adapter_tensors = format!(".{ADAPTER_SEGMENT}.");
        let inside = |mut param: NamedParam| {
            param.path = param.path.strip_prefix(prefix)?.to_owned();
            (!param.path.contains(&adapter_tensors)).then_some(param)
        };
        let params: Vec<_> = named_params(module).into_iter().filter_map(inside).collect();
        let stored = stored_weights(module);
        let weight = |param: &NamedParam| match stored.get(&format!("{prefix}{}", param.path)) {
            Some(stored) => Weight::from_stored(stored.clone(), param),
            None => Weight::from_param(param),
        };
        let mut selected = BTreeMap::new();
        for pattern in &self.0 {
            let pattern = Pattern::new(pattern, presets)?;
            let mut matches = params
                .iter()
                .filter(|param| pattern.matches(&param.path, param.shape.len()))
                .peekable();
            if matches.peek().is_none() {
                return Err(pattern.unmatched(&params).into());
            }
            for param in matches {
                selected.insert(param.path.clone(), weight(param)?);
            }
        }
        Ok(selected)
    }

    /// Returns the paths that the targets will select in a module whose parameters are not initialized yet.
    ///
    /// # Errors
    /// [`TargetError::InvalidPattern`] for a pattern that is not a regular expression.
    pub fn matching_paths<M: Module>(
        &self,
        module: &M,
        presets: &[TargetPreset],
    ) -> Result<BTreeSet<String>, AdapterError> {
        let patterns = self.0.iter().map(|pattern| Pattern::new(pattern, presets));
        let patterns = patterns.collect::<Result<Vec<Pattern<'_>>, _>>()?;
        let mut ranks = CollectRanks::default();
        module.visit(&mut ranks);
        let wanted =
            |(path, rank): &(String, usize)| patterns.iter().any(|p| p.matches(path, *rank));
        Ok(ranks.found.into_iter().filter(wanted).map(|(path, _)| path).collect())
    }
}

/// Collects path and rank of every floating-point parameter, without initializing a lazy one.
#[derive(Default)]
struct CollectRanks {
    path: Vec<String>,
    found: Vec<(String, usize)>,
}

impl ModuleVisitor for CollectRanks {
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
    /// The compiled expression; `None` for a pattern of one path.
    regex: Option<Regex>,
    rank: Option<usize>,
}

impl<'a> Pattern<'a> {
    fn new(given: &'a str, presets: &[TargetPreset]) -> Result<Self, TargetError> {
        let preset = presets.iter().find(|preset| preset.name == given);
        let expression = preset.map_or(given, |preset| preset.pattern);
        let compile =
            || Regex::new(expression).map_err(|error| TargetError::invalid_pattern(given, &error));
        let one_path = preset.is_none() && matches_one_path(given, "").is_some();
        let regex = if one_path { None } else { Some(compile()?) };
        Ok(Self { given, regex, rank: preset.and_then(|preset| preset.rank) })
    }

    fn matches(&self, path: &str, rank: usize) -> bool {
        // A rank of 2 does not tell a linear layer from an embedding table, which is no factor of a product.
        let table = path.ends_with("_embedding.weight");
        let matches = match &self.regex {
            Some(regex) => regex.is_match(path),
            None => matches_one_path(self.given, path) == Some(true),
        };
        matches && self.rank.is_none_or(|wanted| wanted == rank && !table)
    }

    fn unmatched(&self, params: &[NamedParam]) -> TargetError {
        let matrices = params.iter().filter(|param| matches!(param.shape.len(), 2 | 4));
        let paths: Vec<_> = matrices.map(|param| param.path.as_str()).collect();
        TargetError::UnmatchedPattern {
            pattern: self.given.to_owned(),
            count: paths.len(),
            examples: paths.iter().take(3).copied().collect::<Vec<_>>().join(", "),
        }
    }
}
