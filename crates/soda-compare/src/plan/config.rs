//! The TOML form of a plan.
//!
//! An arm is a name and a few settings over those that all arms share. It can vary anything that a training
//! configuration has: methods, factors, losses, learning rates. An arm may list candidate settings
//! (`search`). They are tried on the data sets of `[search]`, which may not be scored.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Table;

use super::choice::ChoiceConfig;
use super::data_set::DataSetConfig;
use crate::error::{CompareError, PlanError};
use crate::evaluation::{MergeConfig, StrengthConfig};

/// The plan of a comparison as written in TOML.
///
/// ```
/// # fn main() -> Result<(), soda_compare::CompareError> {
/// let config = soda_compare::ComparisonConfig::from_toml(
///     "[train]\nbase = 'models/toy'\nsteps = 100\nbatch_size = 4\n\
///      [score]\ndata = ['photos/mug', 'photos/dog']\nseeds = [0, 1, 2]\n\
///      [[arm]]\nname = 'soda'\n[[arm]]\nname = 'lora'\ntrain.method = 'lora'",
/// )?;
/// assert_eq!(config.check()?.num_scored(), 12);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonConfig {
    /// The settings that all arms share: a training configuration without `data` and `seed`.
    pub train: Table,
    /// Settings for the data sets of a kind. They override `train`; an arm's settings override them.
    #[serde(default, rename = "kind")]
    pub kinds: BTreeMap<String, Table>,
    /// The data sets and seeds that are scored.
    pub score: RunGrid,
    /// The data sets and seeds on which settings are chosen, and how.
    #[serde(default)]
    pub search: Option<SearchConfig>,
    /// The arms. The others are tested against the first.
    #[serde(rename = "arm")]
    pub arms: Vec<ArmConfig>,
    /// Evaluations of adapters at other strengths.
    #[serde(default)]
    pub strength: Vec<StrengthConfig>,
    /// Evaluations of merged adapters.
    #[serde(default)]
    pub merge: Vec<MergeConfig>,
}

/// Every data set with every seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunGrid {
    /// The data sets.
    pub data: Vec<DataSetConfig>,
    /// The seeds.
    pub seeds: Vec<u64>,
}

/// How settings are chosen among candidates.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchConfig {
    /// The data sets.
    pub data: Vec<DataSetConfig>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The rule that chooses.
    #[serde(default)]
    pub choose: ChoiceConfig,
    /// Whether candidates are dropped before all their runs (successive halving, arXiv 1502.07943): all have
    /// one run, the best third two, the best ninth four, and so on.
    #[serde(default)]
    pub halving: bool,
}

impl SearchConfig {
    /// The data sets and seeds.
    pub(crate) fn grid(&self) -> RunGrid {
        RunGrid { data: self.data.clone(), seeds: self.seeds.clone() }
    }
}

/// One arm of a comparison.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmConfig {
    /// The name of the arm.
    pub name: String,
    /// The data sets of this arm instead of those of [`ComparisonConfig::score`], such as styles beside
    /// subjects.
    #[serde(default)]
    pub data: Vec<DataSetConfig>,
    /// The settings of the arm, over those of [`ComparisonConfig::train`].
    #[serde(default)]
    pub train: Table,
    /// Candidate settings to choose from, each over `train`. Without any, `train` alone is used.
    #[serde(default)]
    pub search: Vec<Table>,
}

impl ComparisonConfig {
    /// Parses a plan.
    ///
    /// # Errors
    /// A syntax error, an unknown or a missing field. The message says where.
    pub fn from_toml(text: &str) -> Result<Self, CompareError> {
        toml::from_str(text).map_err(|error| PlanError::Parse(error).into())
    }
}
