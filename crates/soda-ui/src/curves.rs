//! The curves of a run's log, with a bounded number of points.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};

use serde::{Deserialize, Serialize};
use soda_train::{RunScores, TrainConfig, running_mean};
use toml::Value;

use crate::runs::{Run, RunDetails};

/// The most bytes of a log that are read: a million steps.
const MAX_LOG: u64 = 256 << 20;
/// The most points of a curve, more than a chart has columns of pixels.
const MAX_POINTS: usize = 1500;

/// A value after a step.
type Point = (u64, f64);

/// What two runs are compared by.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    #[serde(flatten)]
    run: RunDetails,
    curves: Curves,
    /// All settings by their dotted names, as TOML.
    values: BTreeMap<String, String>,
    /// The scores before and after, if the run was scored.
    scores: Option<RunScores>,
}

/// The curves of a run.
#[derive(Debug, Default, Serialize)]
struct Curves {
    /// The running mean of the loss, as in the report.
    loss: Vec<Point>,
    /// The loss of the held-out pictures.
    validation: Vec<Point>,
}

/// The fields of a line of the log that curves need.
#[derive(Deserialize)]
struct Line {
    event: String,
    step: Option<u64>,
    #[serde(default)]
    values: BTreeMap<String, Option<f64>>,
}

impl Run {
    /// What the run is compared with others by.
    pub(crate) fn comparison(&self) -> Comparison {
        let values = self.config().as_ref().map(values).unwrap_or_default();
        let scores = RunScores::read(&self.path).ok();
        Comparison { run: self.details(), curves: self.curves(), values, scores }
    }

    fn curves(&self) -> Curves {
        let Some(log) = self.open_log() else { return Curves::default() };
        let mut curves = Curves::default();
        for line in BufReader::new(log.take(MAX_LOG)).split(b'\n').map_while(Result::ok) {
            let Ok(line) = serde_json::from_slice::<Line>(&line) else { continue };
            let Some(step) = line.step else { continue };
            let value = |name: &str| line.values.get(name).copied().flatten();
            match &*line.event {
                // A resumed run repeats the steps after its checkpoint.
                "started" => {
                    for curve in [&mut curves.loss, &mut curves.validation] {
                        curve.retain(|(old, _)| *old <= step);
                    }
                }
                "step" => curves.loss.extend(value("loss").map(|loss| (step, loss))),
                "validation" => {
                    curves.validation.extend(value("validation_loss").map(|loss| (step, loss)));
                }
                _ => {}
            }
        }
        curves.loss = thinned(&smoothed(&curves.loss));
        curves.validation = thinned(&curves.validation);
        curves
    }
}

/// The points with their running mean.
fn smoothed(points: &[Point]) -> Vec<Point> {
    let values: Vec<f32> = points.iter().map(|(_, value)| *value as f32).collect();
    let means = running_mean(&values).into_iter().map(f64::from);
    points.iter().map(|(step, _)| *step).zip(means).collect()
}

/// Each n-th point, the last one included.
fn thinned(points: &[Point]) -> Vec<Point> {
    let every = points.len().div_ceil(MAX_POINTS).max(1);
    let mut kept: Vec<Point> = points.iter().rev().step_by(every).copied().collect();
    kept.reverse();
    kept
}

/// All settings by their dotted names.
fn values(config: &TrainConfig) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let table = config.to_toml().ok().and_then(|text| text.parse().ok());
    flatten("", Value::Table(table.unwrap_or_default()), &mut values);
    values
}

fn flatten(name: &str, value: Value, values: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{dot}{key}"), value, values);
            }
        }
        value => {
            values.insert(name.to_owned(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::fmt::Write as _;

    use super::*;
    use crate::runs::list;

    fn comparison(log: &str) -> Comparison {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a");
        std::fs::create_dir(&folder).unwrap();
        let config = "base='b'\ndata='d'\nsteps=9\nbatch_size=1\nmethod='lora'";
        std::fs::write(folder.join("config.toml"), config).unwrap();
        std::fs::write(folder.join("events.jsonl"), log).unwrap();
        list(root.path())[0].comparison()
    }

    #[test]
    fn the_steps_before_a_resumption_count_once() {
        let step = |step: u64, loss: f64| {
            format!("{{\"event\":\"step\",\"step\":{step},\"values\":{{\"loss\":{loss}}}}}\n")
        };
        let start = "{\"event\":\"started\",\"step\":1,\"steps\":9}\nnonsense\n{\"event\":\"st\n";
        let validation =
            "{\"event\":\"validation\",\"step\":2,\"values\":{\"validation_loss\":0.25}}\n";
        let none = "{\"event\":\"step\",\"step\":3,\"values\":{\"loss\":null}}\n";
        let log = [&*step(1, 1.0), &step(2, 9.0), start, &step(2, 0.5), validation, none].concat();
        let found = comparison(&log);
        assert_eq!(found.curves.loss, [(1, 1.0), (2, 0.75)]);
        assert_eq!(found.curves.validation, [(2, 0.25)]);
        assert_eq!(found.values["method.name"], "\"lora\"");
        assert_eq!((&*found.values["steps"], found.scores.is_none()), ("9", true));
    }

    #[test]
    fn a_long_curve_has_few_points_and_its_last_one() {
        let mut log = String::new();
        for step in 1..=20_000 {
            let values = format!("{{\"loss\":{step}}}");
            writeln!(log, "{{\"event\":\"step\",\"step\":{step},\"values\":{values}}}").unwrap();
        }
        let loss = comparison(&log).curves.loss;
        assert!(loss.len() <= MAX_POINTS && loss.len() > MAX_POINTS / 2);
        // The mean of the last 20 numbers up to 20,000.
        assert_eq!(loss.last(), Some(&(20_000, 19_990.5)));
    }
}
