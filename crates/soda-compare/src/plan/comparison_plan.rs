//! A checked plan, and the runs and evaluations that it asks for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use soda_train::TrainConfig;

use super::config::{RunGrid, SearchConfig};
use crate::evaluation::{Evaluation, MergeConfig, StrengthConfig};
use crate::results::{ResultsFile, RunResult};
use crate::run::Run;

/// A checked plan. The configuration of every run is valid.
#[derive(Clone, Debug)]
pub struct ComparisonPlan {
    pub(super) arms: Vec<Arm>,
    pub(super) score: RunGrid,
    pub(super) search: Option<SearchConfig>,
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
        self.configs_by_arm().map(|(_, config)| config)
    }

    /// As [`configs`](Self::configs), each with the name of its arm.
    pub fn configs_by_arm(&self) -> impl Iterator<Item = (&str, &TrainConfig)> {
        self.arms.iter().flat_map(|arm| {
            let candidates = arm.candidates.iter();
            let configs =
                candidates.flat_map(|candidate| candidate.score.iter().chain(&candidate.search));
            configs.map(|config| (arm.name.as_str(), config))
        })
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

    /// The runs that choose settings and that `results` lacks or has: those of every candidate that is still
    /// in the choice, for every arm with several. More may follow when these have run, see
    /// [`ComparisonPlan::search_is_finished`].
    pub fn search_runs(&self, results: &ResultsFile<RunResult>) -> Vec<Run> {
        self.searched_arms().flat_map(|arm| self.search_state(arm, results).runs).collect()
    }

    /// Whether every arm has its settings, by the `results` of [`ComparisonPlan::search_runs`].
    pub fn search_is_finished(&self, results: &ResultsFile<RunResult>) -> bool {
        self.searched_arms().all(|arm| self.search_state(arm, results).chosen.is_some())
    }

    /// The number of runs that choose settings.
    pub fn num_searched(&self) -> usize {
        let Some(search) = &self.search else { return 0 };
        let runs = search.data.len() * search.seeds.len();
        let arm = |arm: &Arm| {
            let rungs = Rungs::new(arm.candidates.len(), runs, search.halving);
            let mut before = 0;
            rungs
                .map(|Rung { candidates, runs }| {
                    candidates * (runs - std::mem::replace(&mut before, runs))
                })
                .sum::<usize>()
        };
        self.searched_arms().map(arm).sum()
    }

    fn searched_arms(&self) -> impl Iterator<Item = &Arm> {
        self.arms.iter().filter(|arm| self.search.is_some() && arm.candidates.len() > 1)
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
        let arms = self.searched_arms();
        let waiting = arms.filter(|arm| self.search_state(arm, results).chosen.is_none());
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
        // A choice among no candidate with finite scores chooses nothing.
        arm.candidates.get(self.search_state(arm, results).chosen??)
    }

    /// Goes through the rungs of an arm's search as far as there are results.
    fn search_state(&self, arm: &Arm, results: &ResultsFile<RunResult>) -> SearchState {
        let mut state = SearchState { runs: Vec::new(), chosen: None };
        let Some(search) = &self.search else { return state };
        let mut left: Vec<usize> = (0..arm.candidates.len()).collect();
        let total = search.data.len() * search.seeds.len();
        for rung in Rungs::new(left.len(), total, search.halving) {
            left.truncate(rung.candidates);
            let runs_of = |candidate: &usize| {
                let configs = &arm.candidates[*candidate].search;
                let mut runs = grid_runs(&arm.name, configs, &search.seeds);
                runs.truncate(rung.runs);
                runs
            };
            let runs: Vec<Vec<Run>> = left.iter().map(runs_of).collect();
            let found: Option<Vec<Vec<&RunResult>>> = runs
                .iter()
                .map(|runs| runs.iter().map(|run| results.get(&run.id)).collect())
                .collect();
            let known: BTreeSet<String> =
                state.runs.iter().map(|run: &Run| run.id.clone()).collect();
            state
                .runs
                .extend(runs.iter().flatten().filter(|run| !known.contains(&run.id)).cloned());
            let Some(found) = found else { return state };
            left = search.choose.order(&found).into_iter().map(|at| left[at]).collect();
        }
        state.chosen = Some(left.first().copied());
        state
    }
}

/// How far the search of an arm has come.
struct SearchState {
    /// The runs so far, and those that come next.
    runs: Vec<Run>,
    /// The chosen candidate, after the last rung; `Some(None)` if no candidate has finite scores.
    chosen: Option<Option<usize>>,
}

/// The steps of a search.
struct Rungs {
    candidates: usize,
    runs: usize,
    total: usize,
    done: bool,
}

/// One step of a search: so many candidates, with so many runs each.
struct Rung {
    candidates: usize,
    runs: usize,
}

impl Rungs {
    /// All candidates with all `total` runs, or successive halving.
    fn new(candidates: usize, total: usize, halving: bool) -> Self {
        Self { candidates, runs: if halving { 1 } else { total }, total, done: false }
    }
}

impl Iterator for Rungs {
    type Item = Rung;

    fn next(&mut self) -> Option<Rung> {
        if self.done {
            return None;
        }
        let rung = Rung { candidates: self.candidates, runs: self.runs };
        self.done = self.runs == self.total || self.candidates <= 1;
        self.candidates = self.candidates.div_ceil(3);
        self.runs = (2 * self.runs).min(self.total);
        self.done |= self.candidates <= 1;
        Some(rung)
    }
}

/// The runs of an arm: every data set with every seed.
fn grid_runs(arm: &str, configs: &[TrainConfig], seeds: &[u64]) -> Vec<Run> {
    let each = seeds.iter().flat_map(|seed| configs.iter().map(move |config| (config, *seed)));
    each.map(|(config, seed)| Run::new(arm, TrainConfig { seed, ..config.clone() })).collect()
}
