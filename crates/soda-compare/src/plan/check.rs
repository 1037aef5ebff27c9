//! From the TOML form of a plan to a checked plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use soda_train::TrainConfig;
use toml::Table;

use super::comparison_plan::{Arm, Candidate, ComparisonPlan};
use super::config::{ArmConfig, ComparisonConfig, RunGrid, SearchConfig};
use super::data_set::DataSetConfig;
use crate::error::{CompareError, PlanError};

/// The longest name of an arm, which is a part of the names of folders.
const MOST_NAME: usize = 100;

impl ComparisonConfig {
    /// Checks everything that needs no file, and resolves the settings of every arm for every data set.
    ///
    /// # Errors
    /// The first reason why the plan cannot be run, or would not be fair.
    pub fn check(self) -> Result<ComparisonPlan, CompareError> {
        Ok(self.resolve()?)
    }

    fn resolve(self) -> Result<ComparisonPlan, PlanError> {
        check_grid(&self.score, "score.data", "score.seeds")?;
        let choose = self.search.as_ref().map(|search| search.choose).unwrap_or_default();
        for (name, bound) in [
            ("search.choose.clip_t_at_least", choose.clip_t_at_least),
            ("search.choose.drift_at_most", choose.drift_at_most),
        ] {
            if bound.is_some_and(|bound| !bound.is_finite()) {
                return Err(PlanError::NotFinite(name));
            }
        }
        if let Some(search) = &self.search {
            check_grid(&search.grid(), "search.data", "search.seeds")?;
            self.check_disjoint(search)?;
        }
        self.check_arms()?;
        let names = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        self.strength.iter().try_for_each(|strength| strength.check(&names))?;
        self.merge.iter().try_for_each(|merge| merge.check(&names))?;
        let Self { train, kinds, score, search, arms, strength, merge } = self;
        let searched = search.as_ref().map(|search| &search.data[..]).unwrap_or_default();
        let shared = SharedSettings { train: &train, kinds: &kinds, scored: &score.data, searched };
        let arms: Vec<_> =
            arms.into_iter().map(|arm| shared.resolve(arm)).collect::<Result<_, _>>()?;
        if search.as_ref().is_some_and(|search| search.choose.drift_at_most.is_some()) {
            let searched = arms.iter().flat_map(|arm| &arm.candidates);
            let mut searched = searched.flat_map(|candidate| &candidate.search);
            if searched.any(|config| config.samples.unrelated.is_empty()) {
                return Err(PlanError::NoUnrelatedPrompts);
            }
        }
        Ok(ComparisonPlan { arms, score, search, strength, merge })
    }

    /// Settings must not be chosen on a data set that is scored.
    fn check_disjoint(&self, search: &SearchConfig) -> Result<(), PlanError> {
        let mut scored = self.score.data.iter().chain(self.arms.iter().flat_map(|arm| &arm.data));
        let searched = |data: &&DataSetConfig| {
            search.data.iter().any(|searched| searched.folder == data.folder)
        };
        match scored.find(searched) {
            Some(both) => Err(PlanError::SearchOnScoredData(both.folder.clone())),
            None => Ok(()),
        }
    }

    fn check_arms(&self) -> Result<(), PlanError> {
        if self.arms.is_empty() {
            return Err(PlanError::EmptyList("arm"));
        }
        let mut names = BTreeSet::new();
        for arm in &self.arms {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if !(1..=MOST_NAME).contains(&arm.name.len()) || !arm.name.chars().all(allowed) {
                return Err(PlanError::InvalidArmName(arm.name.clone()));
            }
            if !names.insert(&arm.name) {
                return Err(PlanError::DuplicateArm(arm.name.clone()));
            }
            check_distinct("arm.data", arm.data.iter().map(|data| data.folder.display()))?;
            if arm.search.len() > 1 && self.search.is_none() {
                return Err(PlanError::NoSearchData(arm.name.clone()));
            }
        }
        Ok(())
    }
}

fn check_grid(grid: &RunGrid, data: &'static str, seeds: &'static str) -> Result<(), PlanError> {
    match () {
        () if grid.data.is_empty() => Err(PlanError::EmptyList(data)),
        () if grid.seeds.is_empty() => Err(PlanError::EmptyList(seeds)),
        () => {
            check_distinct(data, grid.data.iter().map(|data| data.folder.display()))?;
            check_distinct(seeds, grid.seeds.iter())
        }
    }
}

/// Refuses a list that has an entry twice: one run would count as two.
fn check_distinct(
    list: &'static str,
    entries: impl Iterator<Item = impl Display>,
) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    match entries.map(|entry| entry.to_string()).find(|entry| !seen.insert(entry.clone())) {
        Some(entry) => Err(PlanError::Duplicate { list, entry }),
        None => Ok(()),
    }
}

/// The settings and data sets that the arms share.
struct SharedSettings<'a> {
    train: &'a Table,
    kinds: &'a BTreeMap<String, Table>,
    scored: &'a [DataSetConfig],
    searched: &'a [DataSetConfig],
}

impl SharedSettings<'_> {
    fn resolve(&self, arm: ArmConfig) -> Result<Arm, PlanError> {
        let no_candidates = [Table::new()];
        let overlays = if arm.search.is_empty() { &no_candidates[..] } else { &arm.search[..] };
        let scored = if arm.data.is_empty() { self.scored } else { &arm.data[..] };
        let all = |data: &[DataSetConfig], overlay: &Table| {
            data.iter().map(|data| self.configure(&arm, overlay, data)).collect::<Result<_, _>>()
        };
        let candidate = |overlay: &Table| {
            Ok(Candidate { score: all(scored, overlay)?, search: all(self.searched, overlay)? })
        };
        let candidates = overlays.iter().map(candidate).collect::<Result<_, PlanError>>()?;
        Ok(Arm { name: arm.name, candidates })
    }

    /// The configuration of an arm for a data set. Later tables override earlier ones: all arms', the
    /// kind's, the arm's, the candidate's.
    fn configure(
        &self,
        arm: &ArmConfig,
        overlay: &Table,
        data: &DataSetConfig,
    ) -> Result<TrainConfig, PlanError> {
        let mut table = self.train.clone();
        if let Some(kind) = &data.kind {
            let unknown = || PlanError::UnknownKind(kind.clone(), data.folder.clone());
            overlay_table(&mut table, self.kinds.get(kind).ok_or_else(unknown)?);
        }
        overlay_table(&mut table, &arm.train);
        overlay_table(&mut table, overlay);
        if !data.fill_class(&mut table) {
            return Err(PlanError::NoClass(data.folder.clone()));
        }
        table.insert("data".to_owned(), data.folder.display().to_string().into());
        // The lines of a text made of these tables would be those of no file.
        let config = TrainConfig::from_table(table)
            .and_then(|config| config.check().map(|()| config))
            .map_err(|source| PlanError::Arm { arm: arm.name.clone(), source })?;
        if config.validation.early_stopping_patience > 0 {
            return Err(PlanError::EarlyStopping(arm.name.clone()));
        }
        Ok(config)
    }
}

/// Merges the tables of `above` into those of `below` and replaces everything else.
///
/// A table with a field `name` replaces a table with another name, since the settings of one method mean
/// nothing to another.
fn overlay_table(below: &mut Table, above: &Table) {
    for (key, value) in above {
        match (below.get_mut(key).and_then(|value| value.as_table_mut()), value.as_table()) {
            (Some(lower), Some(upper)) if same_name(lower, upper) => overlay_table(lower, upper),
            _ => drop(below.insert(key.clone(), value.clone())),
        }
    }
}

fn same_name(lower: &Table, upper: &Table) -> bool {
    upper.get("name").is_none_or(|name| lower.get("name") == Some(name))
}
