//! The report of a run, `report.html`: one file without external resources.

use maud::{Markup, PreEscaped, html};

use crate::eval::sampling::Snapshot;
use crate::eval::scores::Scores;
use crate::output::page::{page, png_file_data_uri};
use crate::output::plot::{Line, line_chart};
use crate::run::history::{History, ValidationMetrics, WINDOW, running_mean};
use crate::run::summary::RunSummary;
use crate::step::metrics::StepMetrics;

/// The report of a run. `grid` is its `samples.png`; `snapshots` are the samples during training.
pub(crate) fn report(summary: &RunSummary, grid: &[u8], snapshots: &[Snapshot]) -> String {
    let RunSummary { config, history, .. } = summary;
    let body = html! {
        p {
            (summary.examples) " pictures, " (config.steps) " steps of "
            (config.batch_size * config.accumulation) ", " (summary.num_params) " trained numbers on "
            (summary.num_layers) " layers; " (format!("{:.0}", summary.seconds)) " s of training."
            @if let Some(buckets) = &summary.buckets { " Images: " (buckets) "." }
        }
        img src=(png_file_data_uri(grid)) alt="samples";
        p {
            small {
                "Rows: training pictures; drawn before; drawn after, with the same prompts and noise."
            }
        }
        (scores(summary))
        h2 { "Loss" }
        (PreEscaped(losses(history)))
        @if !history.validation.is_empty() {
            (PreEscaped(line_chart("step", "validation loss", &[validation_line(history, |at| at.loss)])))
            p { small { (validation_caption(summary)) } }
            @if summary.orthogonality > 0.0 {
                (PreEscaped(line_chart("step", "largest |QᵀQ - I|", &[validation_line(history, |at| at.orthogonality)])))
            }
        }
        p {
            small {
                "Mean of the first and of the last " (WINDOW) " steps: "
                (first_and_last(&history.losses())) ". A diffusion loss depends mostly on the timestep drawn, so that \
                 it falls little even where the pictures change much."
            }
        }
        h2 { "Gradient and rates" }
        (PreEscaped(line_chart("step", "norm of the gradient", &[
            line("norm", history.steps.iter().map(|step| step.grad_norm)),
        ])))
        (PreEscaped(line_chart("step", "learning rate", &rates(history))))
        @if !snapshots.is_empty() {
            h2 { "On the way" }
            (PreEscaped(scores_over_steps(snapshots)))
            @for snapshot in snapshots {
                p { small { "after step " (snapshot.step) } br; img src=(png_file_data_uri(&snapshot.png)) alt=(snapshot.step); }
            }
        }
        h2 { "Prompts" }
        ol { @for prompt in &summary.prompts { li { (prompt) } } }
        h2 { "Settings" }
        pre { (summary.settings) }
        p {
            small {
                "Largest deviation of a rotation factor from orthogonal: "
                (format!("{:.1e}", summary.orthogonality))
            }
        }
    };
    page(&summary.name, &body)
}

fn scores(summary: &RunSummary) -> Markup {
    let (Some(before), Some(after)) = (summary.before, summary.after) else { return html! {} };
    let number = |value: Option<f32>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    let row = |name: &str, scores: Scores| {
        html! {
            tr {
                td { (name) }
                @for value in [Some(scores.clip_t), Some(scores.clip_i), Some(scores.dino)] {
                    td { (number(value)) }
                }
                td { (number(scores.truth_clip_i)) } td { (number(scores.truth_dino)) }
                td { (number(scores.drift)) }
            }
        }
    };
    html! {
        h2 { "Scores" }
        table {
            tr {
                th { "pictures" } th { "CLIP-T" } th { "CLIP-I" } th { "DINO" }
                th { "CLIP-I to truth" } th { "DINO to truth" } th { "drift" }
            }
            (row("before", before))
            (row("after", after))
            @if let Some(truth) = summary.truth { (row("truth", truth)) }
        }
        p {
            small {
                "Cosines, higher is nearer. CLIP-T compares with the prompt (without the identifier), CLIP-I and DINO with the "
                @if summary.held_out.is_empty() { "training pictures" } @else { "pictures held out" }
                ", the next two with the truth of the same prompt. Drift is how far the pictures of "
                code { "samples.unrelated" } " have moved: lower is better."
            }
        }
    }
}

fn line(name: &str, values: impl Iterator<Item = f32>) -> Line {
    let points = values.enumerate().map(|(step, value)| ((step + 1) as f64, f64::from(value)));
    Line { name: name.to_owned(), points: points.collect(), faint: false }
}

fn rates(history: &History) -> Vec<Line> {
    let line = |name, rate: fn(&StepMetrics) -> f32| line(name, history.steps.iter().map(rate));
    let mut lines =
        vec![line("rotations", |step| step.rotation_lr), line("flat", |step| step.flat_lr)];
    if history.steps.iter().any(|step| step.text_lr > 0.0) {
        lines.push(line("text encoders", |step| step.text_lr));
    }
    if history.steps.iter().any(|step| step.token_lr > 0.0) {
        lines.push(line("new words", |step| step.token_lr));
    }
    lines
}

/// A chart of the loss of every step and of its running mean.
pub(crate) fn losses(history: &History) -> String {
    let losses = history.losses();
    let each = Line { faint: true, ..line("each step", losses.iter().copied()) };
    let mean = line(&format!("mean of {WINDOW} steps"), running_mean(&losses).into_iter());
    line_chart("step", "loss", &[each, mean])
}

fn validation_line(history: &History, value: fn(&ValidationMetrics) -> f32) -> Line {
    let metrics = history.validation.iter();
    let points = metrics.map(|metrics| (metrics.step as f64, f64::from(value(metrics))));
    Line { name: "validation".to_owned(), points: points.collect(), faint: false }
}

fn validation_caption(summary: &RunSummary) -> String {
    let on = match summary.held_out.as_slice() {
        [] => "the training pictures".to_owned(),
        names => format!("pictures that were held out ({})", names.join(", ")),
    };
    let timesteps = summary.config.validation.timesteps;
    format!(
        "The squared error on {on}, each with the same noise at the same {timesteps} timesteps."
    )
}

fn first_and_last(losses: &[f32]) -> String {
    let mean = running_mean(losses);
    match (mean.get(WINDOW - 1).or(mean.last()), mean.last()) {
        (Some(first), Some(last)) => format!("{first:.4}, {last:.4}"),
        _ => "-".to_owned(),
    }
}

fn scores_over_steps(snapshots: &[Snapshot]) -> String {
    let line = |name: &str, score: fn(&Scores) -> Option<f32>| {
        let point =
            |snapshot: &Snapshot| Some((snapshot.step as f64, f64::from(score(snapshot.scores.as_ref()?)?)));
        Line {
            name: name.to_owned(),
            points: snapshots.iter().filter_map(point).collect(),
            faint: false,
        }
    };
    let all = [
        line("CLIP-T", |scores| Some(scores.clip_t)),
        line("CLIP-I", |scores| Some(scores.clip_i)),
        line("DINO", |scores| Some(scores.dino)),
        line("drift", |scores| scores.drift),
    ];
    line_chart("step", "score", &all)
}
