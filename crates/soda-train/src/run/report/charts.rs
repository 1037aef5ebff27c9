//! The charts of a report.

use maud::{Markup, PreEscaped, html};

use crate::eval::scores::Scores;
use crate::eval::snapshots::Snapshot;
use crate::output::plot::{Line, line_chart};
use crate::run::history::{History, LOSS_WINDOW, ValidationMetrics, running_mean};
use crate::run::summary::RunSummary;
use crate::step::metrics::StepMetrics;

/// All charts that have data: losses, orthogonality, gradient norm and learning rates.
pub(super) fn charts(summary: &RunSummary) -> Markup {
    let history = &summary.history;
    let mut charts = vec![("Training loss", loss_chart(history), String::new())];
    if !history.validation.is_empty() {
        let line = validation_line("validation loss", history, |metrics| metrics.loss);
        let chart = line_chart("step", "validation loss", &[line]);
        charts.push(("Validation loss", chart, validation_caption(summary)));
    }
    if summary.has_rotations() && !history.validation.is_empty() {
        let line =
            validation_line("largest |QᵀQ − I|", history, |metrics| metrics.orthogonality);
        let chart = line_chart("step", "|QᵀQ − I|", &[line]);
        let caption = "The largest deviation of a rotation factor Q from orthogonality.".to_owned();
        charts.push(("Orthogonality of the rotations", chart, caption));
    }
    let norm = step_line("gradient norm", history.steps.iter().map(|step| step.grad_norm));
    let norm = line_chart("step", "gradient norm", &[norm]);
    charts.push(("Gradient norm", norm, "Before clipping.".to_owned()));
    let rates = line_chart("step", "learning rate", &learning_rates(history));
    charts.push(("Learning rates", rates, String::new()));
    html! {
        div class="charts" {
            @for (title, chart, caption) in &charts {
                @if !chart.is_empty() {
                    figure {
                        h3 { (title) }
                        (PreEscaped(chart))
                        @if !caption.is_empty() { figcaption { (caption) } }
                    }
                }
            }
        }
    }
}

/// The loss of every step, and its running mean, as SVG.
pub(crate) fn loss_chart(history: &History) -> String {
    let losses = history.losses();
    let each = Line { faint: true, ..step_line("each step", losses.iter().copied()) };
    let mean =
        step_line(&format!("mean of {LOSS_WINDOW} steps"), running_mean(&losses).into_iter());
    line_chart("step", "loss", &[each, mean])
}

/// The scores of all snapshots, as SVG. Empty without scores.
pub(super) fn scores_chart(snapshots: &[Snapshot]) -> String {
    let line = |name: &str, score: fn(&Scores) -> Option<f32>| {
        let point = |snapshot: &Snapshot| {
            Some((snapshot.step as f64, f64::from(score(snapshot.scores.as_ref()?)?)))
        };
        let points = snapshots.iter().filter_map(point).collect();
        Line { name: name.to_owned(), points, faint: false }
    };
    let lines = [
        line("CLIP-T", |scores| Some(scores.clip_t)),
        line("CLIP-I", |scores| Some(scores.clip_i)),
        line("DINO", |scores| Some(scores.dino)),
        line("drift", |scores| scores.drift),
    ];
    line_chart("step", "score", &lines)
}

/// A line with one value for each step, from step 1.
fn step_line(name: &str, values: impl Iterator<Item = f32>) -> Line {
    let points = values.enumerate().map(|(index, value)| ((index + 1) as f64, f64::from(value)));
    Line { name: name.to_owned(), points: points.collect(), faint: false }
}

/// A line with one value for each validation.
fn validation_line(name: &str, history: &History, value: fn(&ValidationMetrics) -> f32) -> Line {
    let point = |metrics: &ValidationMetrics| (metrics.step as f64, f64::from(value(metrics)));
    let points = history.validation.iter().map(point).collect();
    Line { name: name.to_owned(), points, faint: false }
}

fn validation_caption(summary: &RunSummary) -> String {
    let images = match summary.held_out.as_slice() {
        [] => "the training images".to_owned(),
        names => format!("held-out images ({})", names.join(", ")),
    };
    let timesteps = summary.config.validation.timesteps;
    format!("The squared error on {images}, always with the same noise and {timesteps} timesteps.")
}

/// The learning rates of the parameter groups that are trained.
fn learning_rates(history: &History) -> Vec<Line> {
    type LearningRate = fn(&StepMetrics) -> f32;
    let rates: [(&str, LearningRate); 4] = [
        ("rotations", |step| step.rotation_lr),
        ("flat parameters", |step| step.flat_lr),
        ("text encoders", |step| step.text_lr),
        ("new words", |step| step.token_lr),
    ];
    let used = |rate: LearningRate| history.steps.iter().any(|step| rate(step) > 0.0);
    let mut lines: Vec<Line> = Vec::new();
    for (name, rate) in rates.into_iter().filter(|(_, rate)| used(*rate)) {
        let line = step_line(name, history.steps.iter().map(rate));
        // Of two equal lines one would hide the other.
        match lines.iter_mut().find(|other| other.points == line.points) {
            Some(other) => other.name = format!("{}, {name}", other.name),
            None => lines.push(line),
        }
    }
    lines
}
