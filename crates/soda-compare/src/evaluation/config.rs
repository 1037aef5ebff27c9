//! The `[[strength]]` and `[[merge]]` tables of a plan.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::job::{Evaluation, EvaluationKind, MergeMode, StrengthPath};
use crate::error::PlanError;
use crate::results::{ResultsFile, RunResult};
use crate::run::Run;

/// A `[[strength]]` table: evaluates the adapters of an arm at other strengths.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrengthConfig {
    /// The name of the arm.
    pub arm: String,
    /// The strengths; 0 is the base model, 1 the trained adapter.
    pub at: Vec<f64>,
    /// The path from the base model to the adapter.
    #[serde(default)]
    pub path: StrengthPath,
    /// Prompts unrelated to the training data, for the score `drift`.
    #[serde(default)]
    pub unrelated: Vec<String>,
}

/// A `[[merge]]` table: merges each adapter of one arm with those of another arm that have the same seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeConfig {
    /// The arm trained on subjects. Its prompts are drawn.
    pub subject: String,
    /// The arm trained on styles.
    pub style: String,
    /// The phrase that asks for the style. It is appended to each prompt.
    pub phrase: String,
    /// The ways to merge two adapters.
    #[serde(default = "all_modes")]
    pub modes: Vec<MergeMode>,
    /// The weights of the subject and of the style.
    #[serde(default = "unit_weights")]
    pub weights: Vec<[f64; 2]>,
}

fn all_modes() -> Vec<MergeMode> {
    vec![MergeMode::Residual, MergeMode::Geodesic, MergeMode::Compose]
}

fn unit_weights() -> Vec<[f64; 2]> {
    vec![[1.0, 1.0]]
}

impl StrengthConfig {
    pub(crate) fn check(&self, arms: &BTreeSet<&str>) -> Result<(), PlanError> {
        check_arm(&self.arm, arms)?;
        check_numbers("strength.at", &self.at)
    }

    /// One evaluation per finished run of the arm and strength.
    pub(crate) fn evaluations(
        &self,
        runs: &[Run],
        results: &ResultsFile<RunResult>,
    ) -> Vec<Evaluation> {
        let path = self.path.name();
        let finished = finished(runs, results, &self.arm);
        let each = finished.flat_map(|run| self.at.iter().map(move |t| (run, *t)));
        each.map(|(run, t)| Evaluation {
            id: format!("{}.{path}-{t}", run.id),
            series: format!("{}, {path}", self.arm),
            at: vec![t],
            run: run.clone(),
            kind: EvaluationKind::Strength { path: self.path, unrelated: self.unrelated.clone() },
        })
        .collect()
    }
}

impl MergeConfig {
    pub(crate) fn check(&self, arms: &BTreeSet<&str>) -> Result<(), PlanError> {
        check_arm(&self.subject, arms)?;
        check_arm(&self.style, arms)?;
        if self.modes.is_empty() {
            return Err(PlanError::EmptyList("merge.modes"));
        }
        check_numbers("merge.weights", self.weights.as_flattened())
    }

    /// One evaluation per pair of finished runs with the same seed, mode and weights.
    pub(crate) fn evaluations(
        &self,
        runs: &[Run],
        results: &ResultsFile<RunResult>,
    ) -> Vec<Evaluation> {
        let mut evaluations = Vec::new();
        for subject in finished(runs, results, &self.subject) {
            let styles = finished(runs, results, &self.style);
            for style in styles.filter(|style| style.config.seed == subject.config.seed) {
                for mode in &self.modes {
                    let merged = |weights| self.evaluation(subject, style, *mode, weights);
                    evaluations.extend(self.weights.iter().map(merged));
                }
            }
        }
        evaluations
    }

    fn evaluation(
        &self,
        subject: &Run,
        style: &Run,
        mode: MergeMode,
        &[a, b]: &[f64; 2],
    ) -> Evaluation {
        let name = mode.name();
        Evaluation {
            id: format!("{}.{}.{name}-{a}-{b}", subject.id, style.id),
            series: format!("{} in {}, {name}", self.subject, self.style),
            at: vec![a, b],
            run: subject.clone(),
            kind: EvaluationKind::Merge {
                style: Box::new(style.clone()),
                mode,
                phrase: self.phrase.clone(),
            },
        }
    }
}

fn finished<'a>(
    runs: &'a [Run],
    results: &'a ResultsFile<RunResult>,
    arm: &'a str,
) -> impl Iterator<Item = &'a Run> {
    runs.iter().filter(move |run| run.arm == arm && results.get(&run.id).is_some())
}

fn check_arm(arm: &str, arms: &BTreeSet<&str>) -> Result<(), PlanError> {
    if arms.contains(arm) { Ok(()) } else { Err(PlanError::UnknownArm(arm.to_owned())) }
}

fn check_numbers(name: &'static str, values: &[f64]) -> Result<(), PlanError> {
    match values {
        [] => Err(PlanError::EmptyList(name)),
        values if values.iter().all(|value| value.is_finite()) => Ok(()),
        _ => Err(PlanError::NotFinite(name)),
    }
}
