//! A second look at what the scored runs trained: an arm's adapters at other strengths, and two arms' adapters
//! merged, a subject in a style.
//!
//! Nothing is trained for it, and nothing chosen by it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use soda_train::Scores;

use crate::error::CompareError;
use crate::execute::Task;
use crate::plan::Run;
use crate::results::{Line, Record, Results};

/// `[[strength]]`: the adapters of an arm, weaker and stronger than they were trained.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrengthConfig {
    /// Which.
    pub arm: String,
    /// Strengths; 0 is the base, 1 what was trained.
    pub at: Vec<f64>,
    /// The way from the base to the adapter.
    #[serde(default)]
    pub path: Path,
    /// Prompts that have nothing to do with what was learnt, for the score `drift`.
    #[serde(default)]
    pub unrelated: Vec<String>,
}

/// The way from the base to an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Rotations turn along their geodesics.
    #[default]
    Geodesic,
    /// The change of the weight is scaled.
    Linear,
}

/// `[[merge]]`: every adapter of one arm with every one of another that has the same seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeConfig {
    /// The arm that learnt subjects, whose prompts are drawn.
    pub subject: String,
    /// The arm that learnt styles.
    pub style: String,
    /// What asks for the style, put behind each prompt.
    pub phrase: String,
    /// How the two become one.
    #[serde(default = "all_modes")]
    pub modes: Vec<Mode>,
    /// How much of the subject and of the style.
    #[serde(default = "as_trained")]
    pub weights: Vec<[f64; 2]>,
}

/// How two adapters become one; see `soda_adapters::merge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The sum of what they change.
    Residual,
    /// The mean of their rotations.
    Geodesic,
    /// One rotation after the other.
    Compose,
}

impl Path {
    /// As the plan writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Geodesic => "geodesic",
            Self::Linear => "linear",
        }
    }
}

impl Mode {
    /// As the plan writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Residual => "residual",
            Self::Geodesic => "geodesic",
            Self::Compose => "compose",
        }
    }
}

fn all_modes() -> Vec<Mode> {
    vec![Mode::Residual, Mode::Geodesic, Mode::Compose]
}

fn as_trained() -> Vec<[f64; 2]> {
    vec![[1.0, 1.0]]
}

/// One look at one adapter, or at two.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Unique, and a file name.
    pub id: String,
    /// What the looks at the same place of other runs are averaged with: the arm and the way.
    pub series: String,
    /// The place: a strength, or two weights.
    pub at: Vec<f64>,
    /// The run whose adapter and whose prompts it is.
    pub run: Run,
    /// What is done with the adapter.
    pub look: Look,
}

/// What is done with an adapter before it is looked at.
#[derive(Clone, Debug, PartialEq)]
pub enum Look {
    /// Given a strength.
    Strength {
        /// The way to it.
        path: Path,
        /// Prompts whose pictures should not change.
        unrelated: Vec<String>,
    },
    /// Merged with that of another run.
    Merge {
        /// The run that learnt the style.
        style: Box<Run>,
        /// How.
        mode: Mode,
        /// What asks for the style.
        phrase: String,
    },
}

/// What a look found, a line of its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// [`Probe::id`].
    pub id: String,
    /// [`Probe::series`].
    pub series: String,
    /// [`Probe::at`].
    pub at: Vec<f64>,
    /// Scores of the pictures drawn.
    pub scores: Scores,
    /// Likeness to the pictures of the style.
    pub style_clip_i: Option<f32>,
}

impl Line for Seen {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Task for Probe {
    type Measured = (Scores, Option<f32>);
    type Line = Seen;

    fn id(&self) -> &str {
        &self.id
    }

    fn line(&self, (scores, style_clip_i): Self::Measured) -> Seen {
        let Self { id, series, at, .. } = self.clone();
        Seen { id, series, at, scores, style_clip_i }
    }
}

impl StrengthConfig {
    pub(crate) fn check(&self, arms: &BTreeSet<&str>) -> Result<(), CompareError> {
        known(&self.arm, arms)?;
        finite("strength.at", &self.at)
    }

    /// On every finished run of the arm.
    pub(crate) fn probes(&self, runs: &[Run], results: &Results<Record>) -> Vec<Probe> {
        let way = self.path.name();
        let finished = finished(runs, results, &self.arm);
        let each = finished.flat_map(|run| self.at.iter().map(move |t| (run, *t)));
        each.map(|(run, t)| Probe {
            id: format!("{}.{way}-{t}", run.id),
            series: format!("{}, {way}", self.arm),
            at: vec![t],
            run: run.clone(),
            look: Look::Strength { path: self.path, unrelated: self.unrelated.clone() },
        })
        .collect()
    }
}

impl MergeConfig {
    pub(crate) fn check(&self, arms: &BTreeSet<&str>) -> Result<(), CompareError> {
        known(&self.subject, arms)?;
        known(&self.style, arms)?;
        if self.modes.is_empty() {
            return Err(CompareError::Empty("merge.modes"));
        }
        finite("merge.weights", self.weights.as_flattened())
    }

    /// On every pair of finished runs of one seed.
    pub(crate) fn probes(&self, runs: &[Run], results: &Results<Record>) -> Vec<Probe> {
        let mut probes = Vec::new();
        for subject in finished(runs, results, &self.subject) {
            let styles = finished(runs, results, &self.style);
            for style in styles.filter(|style| style.config.seed == subject.config.seed) {
                for (mode, [a, b]) in
                    self.modes.iter().flat_map(|mode| self.weights.iter().map(move |w| (*mode, *w)))
                {
                    let way = mode.name();
                    probes.push(Probe {
                        id: format!("{}.{}.{way}-{a}-{b}", subject.id, style.id),
                        series: format!("{} in {}, {way}", self.subject, self.style),
                        at: vec![a, b],
                        run: subject.clone(),
                        look: Look::Merge {
                            style: Box::new(style.clone()),
                            mode,
                            phrase: self.phrase.clone(),
                        },
                    });
                }
            }
        }
        probes
    }
}

fn finished<'a>(
    runs: &'a [Run],
    results: &'a Results<Record>,
    arm: &'a str,
) -> impl Iterator<Item = &'a Run> {
    runs.iter().filter(move |run| run.arm == arm && results.get(&run.id).is_some())
}

fn known(arm: &str, arms: &BTreeSet<&str>) -> Result<(), CompareError> {
    if arms.contains(arm) { Ok(()) } else { Err(CompareError::UnknownArm(arm.to_owned())) }
}

fn finite(name: &'static str, values: &[f64]) -> Result<(), CompareError> {
    match values {
        [] => Err(CompareError::Empty(name)),
        values if values.iter().all(|value| value.is_finite()) => Ok(()),
        _ => Err(CompareError::NotFinite(name)),
    }
}
