//! A checked plan, and the runs and evaluations that it asks for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use soda_train::TrainConfig;

use super::config::RunGrid;
use crate::evaluation::{Evaluation, MergeConfig, StrengthConfig};
use crate::results::{ResultsFile, RunResult};
use crate::run::Run;

/// A checked plan. The configuration of every run is valid.
#[derive(Clone, Debug)]
pub struct ComparisonPlan {
    pub(super) arms: Vec<Arm>,
    pub(super) score: RunGrid,
    pub(super) search: Option<RunGrid>,
    pub(super) strength: Vec<StrengthConfig>,
    pub(super) merge: Vec<MergeConfig>,
}

#[derive(Clone, Debug)]
pub(super) struct Arm {
    pub(super) name: String,
    /// The candidate settings; at least one.
    pub(super) candidates: Vec<Candidate>,
}

/// Candidate settings, resolved for each data set.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) score: Vec<TrainConfig>,
    pub(super) search: Vec<TrainConfig>,
}

impl ComparisonPlan {
    /// The names of the arms. The others are tested against the first.
    pub fn arms(&self) -> impl Iterator<Item = &str> {
        self.arms.iter().map(|arm| arm.name.as_str())
    }

    /// The base models of all runs.
    pub fn bases(&self) -> BTreeSet<&Path> {
        self.configs().map(|config| config.base.as_path()).collect()
    }

    /// The folders that the runs read besides their base models: data sets, prior images and judges.
    pub fn folders(&self) -> BTreeSet<PathBuf> {
        let folders_of = |config: &TrainConfig| {
            let prior = config.prior.as_ref().and_then(|prior| prior.data.clone());
            let judges = config.judges.iter();
            let judges = judges.flat_map(|judges| ["clip", "dino"].map(|name| judges.join(name)));
            [config.data.clone()].into_iter().chain(prior).chain(judges).collect::<Vec<_>>()
        };
        self.configs().flat_map(folders_of).collect()
    }

    /// The configurations of every arm, candidate and data set. Their seeds are not those of the runs.
    pub fn configs(&self) -> impl Iterator<Item = &TrainConfig> {
        let candidates = self.arms.iter().flat_map(|arm| &arm.candidates);
        candidates.flat_map(|candidate| candidate.score.iter().chain(&candidate.search))
    }

    /// The number of scored runs.
    pub fn num_scored(&self) -> usize {
        let data_sets = |arm: &Arm| arm.candidates.first().map_or(0, |first| first.score.len());
        self.arms.iter().map(data_sets).sum::<usize>() * self.score.seeds.len()
    }

    /// The data sets and seeds that are scored.
    pub fn score(&self) -> &RunGrid {
        &self.score
    }

    /// The runs that choose settings: every candidate of every arm that has more than one.
    pub fn search_runs(&self) -> Vec<Run> {
        let Some(grid) = &self.search else { return Vec::new() };
        let arms = self.arms.iter().filter(|arm| arm.candidates.len() > 1);
        let runs =
            |arm: &Arm, candidate: &Candidate| grid_runs(&arm.name, &candidate.search, &grid.seeds);
        arms.flat_map(|arm| {
            arm.candidates.iter().flat_map(|candidate| runs(arm, candidate)).collect::<Vec<_>>()
        })
        .collect()
    }

    /// The scored runs, with the settings that the `results` of [`ComparisonPlan::search_runs`] choose.
    ///
    /// An arm has none before all its candidates have run: a choice among fewer could be another. Among equal
    /// candidates the first is chosen. All arms are trained on one data set and seed before the next. An
    /// interrupted comparison is therefore a smaller comparison of all arms.
    pub fn score_runs(&self, results: &ResultsFile<RunResult>) -> Vec<Run> {
        let arm_runs = |arm: &Arm| {
            let chosen = self.chosen(arm, results)?;
            Some(grid_runs(&arm.name, &chosen.score, &self.score.seeds))
        };
        let mut runs: Vec<_> = self
            .arms
            .iter()
            .filter_map(arm_runs)
            .flat_map(|runs| runs.into_iter().enumerate())
            .collect();
        runs.sort_by_key(|(index, _)| *index);
        runs.into_iter().map(|(_, run)| run).collect()
    }

    /// The arms whose candidates have not all run, by the `results` of [`ComparisonPlan::search_runs`].
    /// [`ComparisonPlan::score_runs`] leaves them out.
    pub fn waiting_arms(&self, results: &ResultsFile<RunResult>) -> Vec<&str> {
        let waiting = self
            .arms
            .iter()
            .filter(|arm| arm.candidates.len() > 1 && self.search_scores(arm, results).is_none());
        waiting.map(|arm| arm.name.as_str()).collect()
    }

    /// The evaluations of those `runs` that `results` has.
    pub fn evaluations(&self, runs: &[Run], results: &ResultsFile<RunResult>) -> Vec<Evaluation> {
        let strength = self.strength.iter().flat_map(|config| config.evaluations(runs, results));
        let merge = self.merge.iter().flat_map(|config| config.evaluations(runs, results));
        strength.chain(merge).collect()
    }

    fn chosen<'a>(&self, arm: &'a Arm, results: &ResultsFile<RunResult>) -> Option<&'a Candidate> {
        if arm.candidates.len() < 2 {
            return arm.candidates.first();
        }
        let mut best: Option<(f64, &Candidate)> = None;
        for (mean, candidate) in self.search_scores(arm, results)?.into_iter().zip(&arm.candidates)
        {
            // A mean that is not finite is never chosen.
            if mean.is_finite() && best.is_none_or(|(most, _)| mean > most) {
                best = Some((mean, candidate));
            }
        }
        best.map(|(_, candidate)| candidate)
    }

    /// The mean selection score of each candidate, NaN if one of its runs has no finite score. `None` if a
    /// run of any candidate is missing.
    fn search_scores(&self, arm: &Arm, results: &ResultsFile<RunResult>) -> Option<Vec<f64>> {
        let grid = self.search.as_ref()?;
        let mean = |candidate: &Candidate| {
            let runs = grid_runs(&arm.name, &candidate.search, &grid.seeds);
            let scores: Option<Vec<f64>> = runs
                .iter()
                .map(|run| Some(results.get(&run.id)?.selection_score().unwrap_or(f64::NAN)))
                .collect();
            let scores = scores?;
            Some(scores.iter().sum::<f64>() / scores.len() as f64)
        };
        arm.candidates.iter().map(mean).collect()
    }
}

/// The runs of an arm: every data set with every seed.
fn grid_runs(arm: &str, configs: &[TrainConfig], seeds: &[u64]) -> Vec<Run> {
    let each = seeds.iter().flat_map(|seed| configs.iter().map(move |config| (config, *seed)));
    each.map(|(config, seed)| Run::new(arm, TrainConfig { seed, ..config.clone() })).collect()
}
