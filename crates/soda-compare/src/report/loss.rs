//! The training losses as a figure.

use soda_train::plot::{Line, line_chart};

use crate::results::RunResult;
use crate::run::Run;

/// Draws one curve per arm: the mean loss of its runs as a moving average, over the fraction of the run.
pub(super) fn loss_curves(arms: &[(&str, Vec<(&Run, &RunResult)>)]) -> String {
    let curves: Vec<Line> = arms
        .iter()
        .map(|(arm, runs)| {
            let results: Vec<&RunResult> = runs.iter().map(|(_, result)| *result).collect();
            let curve = mean_curve(&results);
            let last = curve.len().max(2) - 1;
            let points = curve.into_iter().enumerate();
            Line {
                name: (*arm).to_owned(),
                points: points.map(|(i, loss)| (i as f64 / last as f64, loss)).collect(),
                faint: false,
            }
        })
        .collect();
    line_chart("fraction of the run", "loss", &curves)
}

/// The window of the moving average, in points of the downsampled losses. The loss varies with the timestep
/// drawn.
const WINDOW: usize = 10;

fn mean_curve(results: &[&RunResult]) -> Vec<f64> {
    let shortest = results.iter().map(|result| result.metrics.losses.len()).min().unwrap_or(0);
    let mean = |values: &mut dyn Iterator<Item = f32>| {
        let (sum, count) = values.fold((0.0, 0), |(sum, n), value| (sum + f64::from(value), n + 1));
        sum / f64::from(count.max(1))
    };
    (WINDOW.min(shortest)..=shortest)
        .filter(|end| *end > 0)
        .map(|end| {
            let start = end.saturating_sub(WINDOW);
            mean(&mut results.iter().flat_map(|result| result.metrics.losses[start..end].to_vec()))
        })
        .collect()
}
