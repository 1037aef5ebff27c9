//! What is compared: arms x data x seeds.
//!
//! An arm is a name and a few settings laid over those that all arms share, so that whatever a training
//! configuration can say can be compared: methods, factors, losses, rates. An arm may list settings to
//! choose from (`search`); they are tried on the data of `[search]`, which may not be scored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use soda_train::TrainConfig;
use toml::Table;

use crate::data::DataConfig;
use crate::error::CompareError;
use crate::probe::{MergeConfig, Probe, StrengthConfig};
use crate::results::{Record, Results};

/// A plan as written in TOML.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanConfig {
    /// Settings all arms share: a training configuration without `data` and `seed`.
    pub train: Table,
    /// Settings that hold for the data sets of a kind, over `train` and under an arm's own.
    #[serde(default, rename = "kind")]
    pub kinds: BTreeMap<String, Table>,
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
    /// Data sets.
    pub data: Vec<DataConfig>,
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
    pub data: Vec<DataConfig>,
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
    /// At least one.
    candidates: Vec<Candidate>,
}

/// Settings to choose, as they are for each data set.
#[derive(Clone, Debug)]
struct Candidate {
    score: Vec<TrainConfig>,
    search: Vec<TrainConfig>,
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
        let Self { train, kinds, score, search, arms, strength, merge } = self;
        check_grid(&score, "score.data", "score.seeds")?;
        if let Some(search) = &search {
            check_grid(search, "search.data", "search.seeds")?;
            let mut scored = score.data.iter().chain(arms.iter().flat_map(|arm| &arm.data));
            let both = |data: &&DataConfig| {
                search.data.iter().any(|searched| searched.folder == data.folder)
            };
            if let Some(both) = scored.find(both) {
                return Err(CompareError::TunedOnScored(both.folder.clone()));
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
        let searched = search.as_ref().map(|search| &search.data[..]).unwrap_or_default();
        let shared = Shared { train: &train, kinds: &kinds, scored: &score.data, searched };
        let arms = arms.into_iter().map(|arm| shared.resolve(arm)).collect::<Result<_, _>>()?;
        Ok(Plan { arms, score, search, strength, merge })
    }
}

impl Plan {
    /// Names of the arms, the one the others are tested against first.
    pub fn arms(&self) -> impl Iterator<Item = &str> {
        self.arms.iter().map(|arm| arm.name.as_str())
    }

    /// The base models of all runs.
    pub fn bases(&self) -> BTreeSet<&Path> {
        self.configs().map(|config| config.base.as_path()).collect()
    }

    /// The folders that the runs read beside their base: pictures and judges.
    pub fn folders(&self) -> BTreeSet<PathBuf> {
        let of = |config: &TrainConfig| {
            let class = config.prior.as_ref().and_then(|prior| prior.data.clone());
            let judges = config.judges.iter();
            let judges = judges.flat_map(|judges| ["clip", "dino"].map(|name| judges.join(name)));
            [config.data.clone()].into_iter().chain(class).chain(judges).collect::<Vec<_>>()
        };
        self.configs().flat_map(of).collect()
    }

    /// Every arm's settings for every data set, all candidates; what the seed will be is not in them.
    pub fn configs(&self) -> impl Iterator<Item = &TrainConfig> {
        let candidates = self.arms.iter().flat_map(|arm| &arm.candidates);
        candidates.flat_map(|candidate| candidate.score.iter().chain(&candidate.search))
    }

    /// How many runs are scored.
    pub fn num_scored(&self) -> usize {
        let one = |arm: &Arm| arm.candidates.first().map_or(0, |one| one.score.len());
        self.arms.iter().map(one).sum::<usize>() * self.score.seeds.len()
    }

    /// What is scored.
    pub fn score(&self) -> &Grid {
        &self.score
    }

    /// The runs that choose settings: every candidate of every arm that has more than one.
    pub fn search_runs(&self) -> Vec<Run> {
        let Some(grid) = &self.search else { return Vec::new() };
        let arms = self.arms.iter().filter(|arm| arm.candidates.len() > 1);
        let runs = |arm: &Arm, one: &Candidate| runs(&arm.name, &one.search, &grid.seeds);
        arms.flat_map(|arm| {
            arm.candidates.iter().flat_map(|one| runs(arm, one)).collect::<Vec<_>>()
        })
        .collect()
    }

    /// The runs that are scored, with the settings that `results` of [`Plan::search_runs`] choose.
    ///
    /// A candidate of which a run is missing (it failed) is not chosen; of equals the first is. All arms meet one
    /// subject with one seed before the next, so that what was stopped half way is a smaller comparison and not one of
    /// half the arms.
    pub fn score_runs(&self, results: &Results<Record>) -> Vec<Run> {
        let chosen = |arm: &Arm| {
            let chosen = self.chosen(arm, results)?;
            Some(runs(&arm.name, &chosen.score, &self.score.seeds))
        };
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

    fn chosen<'a>(&self, arm: &'a Arm, results: &Results<Record>) -> Option<&'a Candidate> {
        let (Some(grid), [_, _, ..]) = (&self.search, &arm.candidates[..]) else {
            return arm.candidates.first();
        };
        let mut best: Option<(f64, &Candidate)> = None;
        for candidate in &arm.candidates {
            let runs = runs(&arm.name, &candidate.search, &grid.seeds);
            let merits: Option<Vec<f64>> =
                runs.iter().map(|run| results.get(&run.id)?.merit()).collect();
            let Some(merits) = merits else { continue };
            let merit = merits.iter().sum::<f64>() / merits.len() as f64;
            if best.is_none_or(|(most, _)| merit > most) {
                best = Some((merit, candidate));
            }
        }
        best.map(|(_, candidate)| candidate)
    }
}

fn check_grid(grid: &Grid, data: &'static str, seeds: &'static str) -> Result<(), CompareError> {
    match () {
        () if grid.data.is_empty() => Err(CompareError::Empty(data)),
        () if grid.seeds.is_empty() => Err(CompareError::Empty(seeds)),
        () => Ok(()),
    }
}

/// What the arms have in common.
struct Shared<'a> {
    train: &'a Table,
    kinds: &'a BTreeMap<String, Table>,
    scored: &'a [DataConfig],
    searched: &'a [DataConfig],
}

impl Shared<'_> {
    fn resolve(&self, arm: ArmConfig) -> Result<Arm, CompareError> {
        let alone = [Table::new()];
        let overlays = if arm.search.is_empty() { &alone[..] } else { &arm.search[..] };
        let scored = if arm.data.is_empty() { self.scored } else { &arm.data[..] };
        let all = |data: &[DataConfig], overlay: &Table| {
            data.iter().map(|data| self.configure(&arm, overlay, data)).collect::<Result<_, _>>()
        };
        let candidate = |overlay: &Table| {
            Ok(Candidate { score: all(scored, overlay)?, search: all(self.searched, overlay)? })
        };
        let candidates = overlays.iter().map(candidate).collect::<Result<_, _>>()?;
        Ok(Arm { name: arm.name, candidates })
    }

    /// The settings of an arm for a data set: what all share, what its kind shares, the arm's, and one to choose from.
    fn configure(
        &self,
        arm: &ArmConfig,
        overlay: &Table,
        data: &DataConfig,
    ) -> Result<TrainConfig, CompareError> {
        let mut table = self.train.clone();
        if let Some(kind) = &data.kind {
            let unknown = || CompareError::UnknownKind(kind.clone(), data.folder.clone());
            lay_over(&mut table, self.kinds.get(kind).ok_or_else(unknown)?);
        }
        lay_over(&mut table, &arm.train);
        lay_over(&mut table, overlay);
        if !data.fill(&mut table) {
            return Err(CompareError::NoClass(data.folder.clone()));
        }
        table.insert("data".to_owned(), data.folder.display().to_string().into());
        let text = toml::to_string(&table).map_err(|error| CompareError::Settings {
            arm: arm.name.clone(),
            reason: error.to_string(),
        })?;
        TrainConfig::from_toml(&text)
            .and_then(|config| config.check().map(|()| config))
            .map_err(|source| CompareError::Arm { arm: arm.name.clone(), source })
    }
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

/// Every data set with every seed.
fn runs(arm: &str, configs: &[TrainConfig], seeds: &[u64]) -> Vec<Run> {
    let each = seeds.iter().flat_map(|seed| configs.iter().map(move |config| (config, *seed)));
    each.map(|(config, seed)| {
        let config = TrainConfig { seed, ..config.clone() };
        Run { id: id(arm, &config), arm: arm.to_owned(), config }
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
