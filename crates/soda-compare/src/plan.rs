//! What is compared: arms x data x seeds.
//!
//! An arm is a name and a few settings laid over those that all arms share, so that whatever a training
//! configuration can say can be compared: methods, factors, losses, rates. An arm may list settings to
//! choose from (`search`); they are tried on the data of `[search]`, which may not be scored.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use soda_train::TrainConfig;
use toml::Table;

use crate::error::CompareError;
use crate::probe::{MergeConfig, Probe, StrengthConfig};
use crate::results::{Record, Results};

/// A plan as written in TOML.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanConfig {
    /// Settings all arms share: a training configuration without `data` and `seed`.
    pub train: Table,
    /// What is scored.
    pub score: Grid,
    /// What settings are chosen on.
    #[serde(default)]
    pub search: Option<Grid>,
    /// What is compared; the first is what the others are tested against.
    #[serde(rename = "arm")]
    pub arms: Vec<ArmConfig>,
    /// Arms whose adapters are looked at at other strengths.
    #[serde(default)]
    pub strength: Vec<StrengthConfig>,
    /// Arms whose adapters are merged.
    #[serde(default)]
    pub merge: Vec<MergeConfig>,
}

/// Every data set with every seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Folders of pictures.
    pub data: Vec<PathBuf>,
    /// Seeds.
    pub seeds: Vec<u64>,
}

/// One of the things compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmConfig {
    /// Its name.
    pub name: String,
    /// What it is scored on, if not on that of [`PlanConfig::score`]: styles beside subjects.
    #[serde(default)]
    pub data: Vec<PathBuf>,
    /// Its settings, over those of [`PlanConfig::train`].
    #[serde(default)]
    pub train: Table,
    /// Settings to choose from, each over `train`; none: `train` is it.
    #[serde(default)]
    pub search: Vec<Table>,
}

/// A checked plan: every run's configuration is usable.
#[derive(Clone, Debug)]
pub struct Plan {
    arms: Vec<Arm>,
    score: Grid,
    search: Option<Grid>,
    strength: Vec<StrengthConfig>,
    merge: Vec<MergeConfig>,
}

#[derive(Clone, Debug)]
struct Arm {
    name: String,
    score: Grid,
    /// At least one.
    candidates: Vec<TrainConfig>,
}

/// One training.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Unique to everything that decides the result, and a file name.
    pub id: String,
    /// The arm.
    pub arm: String,
    /// Everything about it.
    pub config: TrainConfig,
}

impl PlanConfig {
    /// # Errors
    /// A syntax error, an unknown or a missing field; the message says where.
    pub fn from_toml(text: &str) -> Result<Self, CompareError> {
        toml::from_str(text).map_err(CompareError::ReadPlan)
    }

    /// Checks everything that needs no file.
    ///
    /// # Errors
    /// The first thing that could not be run, or would not be fair.
    pub fn check(self) -> Result<Plan, CompareError> {
        let Self { train, score, search, arms, strength, merge } = self;
        check_grid(&score, "score.data", "score.seeds")?;
        if let Some(search) = &search {
            check_grid(search, "search.data", "search.seeds")?;
            let mut scored = score.data.iter().chain(arms.iter().flat_map(|arm| &arm.data));
            if let Some(both) = scored.find(|data| search.data.contains(data)) {
                return Err(CompareError::TunedOnScored(both.clone()));
            }
        }
        if arms.is_empty() {
            return Err(CompareError::Empty("arm"));
        }
        let mut names = BTreeSet::new();
        for arm in &arms {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if arm.name.is_empty() || !arm.name.chars().all(plain) {
                return Err(CompareError::BadName(arm.name.clone()));
            }
            if !names.insert(&arm.name) {
                return Err(CompareError::SameName(arm.name.clone()));
            }
            if arm.search.len() > 1 && search.is_none() {
                return Err(CompareError::NoSearch(arm.name.clone()));
            }
        }
        let names = arms.iter().map(|arm| arm.name.as_str()).collect();
        strength.iter().try_for_each(|looks| looks.check(&names))?;
        merge.iter().try_for_each(|looks| looks.check(&names))?;
        let arms = arms.into_iter().map(|arm| resolve(arm, &train, &score));
        Ok(Plan { arms: arms.collect::<Result<_, _>>()?, score, search, strength, merge })
    }
}

impl Plan {
    /// Names of the arms, the one the others are tested against first.
    pub fn arms(&self) -> impl Iterator<Item = &str> {
        self.arms.iter().map(|arm| arm.name.as_str())
    }

    /// The base models of all runs.
    pub fn bases(&self) -> BTreeSet<&Path> {
        let configs = self.arms.iter().flat_map(|arm| &arm.candidates);
        configs.map(|config| config.base.as_path()).collect()
    }

    /// What is scored.
    pub fn score(&self) -> &Grid {
        &self.score
    }

    /// The runs that choose settings: every candidate of every arm that has more than one.
    pub fn search_runs(&self) -> Vec<Run> {
        let Some(grid) = &self.search else { return Vec::new() };
        let arms = self.arms.iter().filter(|arm| arm.candidates.len() > 1);
        arms.flat_map(|arm| arm.candidates.iter().flat_map(|config| runs(arm, config, grid)))
            .collect()
    }

    /// The runs that are scored, with the settings that `results` of [`Plan::search_runs`] choose.
    ///
    /// A candidate of which a run is missing (it failed) is not chosen; of equals the first is. All arms meet one
    /// subject with one seed before the next, so that what was stopped half way is a smaller comparison and not one of
    /// half the arms.
    pub fn score_runs(&self, results: &Results<Record>) -> Vec<Run> {
        let chosen = |arm| Some(runs(arm, self.chosen(arm, results)?, &arm.score));
        let mut runs: Vec<_> = self
            .arms
            .iter()
            .filter_map(chosen)
            .flat_map(|runs| runs.into_iter().enumerate())
            .collect();
        runs.sort_by_key(|(place, _)| *place);
        runs.into_iter().map(|(_, run)| run).collect()
    }

    /// What is looked at once more of the `runs` that `results` has.
    pub fn probes(&self, runs: &[Run], results: &Results<Record>) -> Vec<Probe> {
        let strengths = self.strength.iter().flat_map(|looks| looks.probes(runs, results));
        strengths.chain(self.merge.iter().flat_map(|looks| looks.probes(runs, results))).collect()
    }

    fn chosen<'a>(&self, arm: &'a Arm, results: &Results<Record>) -> Option<&'a TrainConfig> {
        let (Some(grid), [_, _, ..]) = (&self.search, &arm.candidates[..]) else {
            return arm.candidates.first();
        };
        let mut best: Option<(f64, &TrainConfig)> = None;
        for config in &arm.candidates {
            let runs = runs(arm, config, grid);
            let merits: Option<Vec<f64>> =
                runs.iter().map(|run| results.get(&run.id)?.merit()).collect();
            let Some(merits) = merits else { continue };
            let merit = merits.iter().sum::<f64>() / merits.len() as f64;
            if best.is_none_or(|(most, _)| merit > most) {
                best = Some((merit, config));
            }
        }
        best.map(|(_, config)| config)
    }
}

fn check_grid(grid: &Grid, data: &'static str, seeds: &'static str) -> Result<(), CompareError> {
    match () {
        () if grid.data.is_empty() => Err(CompareError::Empty(data)),
        () if grid.seeds.is_empty() => Err(CompareError::Empty(seeds)),
        () => Ok(()),
    }
}

fn resolve(arm: ArmConfig, shared: &Table, score: &Grid) -> Result<Arm, CompareError> {
    let data = if arm.data.is_empty() { score.data.clone() } else { arm.data };
    let score = Grid { data, seeds: score.seeds.clone() };
    let alone = [Table::new()];
    let overlays = if arm.search.is_empty() { &alone[..] } else { &arm.search[..] };
    let configure = |overlay: &Table| -> Result<TrainConfig, CompareError> {
        let mut table = shared.clone();
        table.insert("data".to_owned(), score.data[0].display().to_string().into());
        lay_over(&mut table, &arm.train);
        lay_over(&mut table, overlay);
        let text = toml::to_string(&table).map_err(|error| CompareError::Settings {
            arm: arm.name.clone(),
            reason: error.to_string(),
        })?;
        TrainConfig::from_toml(&text)
            .and_then(|config| config.check().map(|()| config))
            .map_err(|source| CompareError::Arm { arm: arm.name.clone(), source })
    };
    let candidates = overlays.iter().map(configure).collect::<Result<_, _>>()?;
    Ok(Arm { name: arm.name, score, candidates })
}

/// Tables are merged, everything else replaced. A table that says what kind of thing it is (`name`)
/// replaces another kind: half of one method's settings mean nothing to the next.
fn lay_over(below: &mut Table, above: &Table) {
    for (key, value) in above {
        match (below.get_mut(key).and_then(|value| value.as_table_mut()), value.as_table()) {
            (Some(lower), Some(upper)) if same_kind(lower, upper) => lay_over(lower, upper),
            _ => drop(below.insert(key.clone(), value.clone())),
        }
    }
}

fn same_kind(lower: &Table, upper: &Table) -> bool {
    upper.get("name").is_none_or(|kind| lower.get("name") == Some(kind))
}

fn runs(arm: &Arm, config: &TrainConfig, grid: &Grid) -> Vec<Run> {
    let each = grid.seeds.iter().flat_map(|seed| grid.data.iter().map(move |data| (data, *seed)));
    each.map(|(data, seed)| {
        let config = TrainConfig { data: data.clone(), seed, ..config.clone() };
        Run { id: id(&arm.name, &config), arm: arm.name.clone(), config }
    })
    .collect()
}

/// Readable, and different for every configuration.
fn id(arm: &str, config: &TrainConfig) -> String {
    let data = config.data.file_name().unwrap_or_default().to_string_lossy();
    // A configuration that was read from TOML can be written as TOML.
    let hash = Sha256::digest(config.to_toml().unwrap_or_default());
    let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{arm}-{data}-{}-{hash}", config.seed)
}
