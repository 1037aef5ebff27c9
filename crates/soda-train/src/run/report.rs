//! `report.html`: what a run did and whether it worked, for a person; one file that needs no network.

use maud::{Markup, PreEscaped, html};

use crate::eval::sampling::Snapshot;
use crate::eval::scores::Scores;
use crate::output::page::{page, png_file_data_uri};
use crate::output::plot::{Line, line_chart};
use crate::run::history::{History, Measured, WINDOW, running_mean};
use crate::run::summary::Outcome;
use crate::step::metrics::Step;

/// The report of a run; `sheet` is its `samples.png`, `drawn` what was drawn on the way.
pub(crate) fn report(outcome: &Outcome, sheet: &[u8], drawn: &[Snapshot]) -> String {
    let Outcome { config, history, .. } = outcome;
    let body = html! {
        p {
            (outcome.examples) " pictures, " (config.steps) " steps of "
            (config.batch_size * config.accumulation) ", " (outcome.num_params) " trained numbers on "
            (outcome.num_layers) " layers; " (format!("{:.0}", outcome.seconds)) " s of training."
            @if let Some(buckets) = &outcome.buckets { " Images: " (buckets) "." }
        }
        img src=(png_file_data_uri(sheet)) alt="samples";
        p {
            small {
                "Rows: training pictures; drawn before; drawn after, with the same prompts and noise."
            }
        }
        (scores(outcome))
        h2 { "Loss" }
        (PreEscaped(losses(history)))
        @if !history.validation.is_empty() {
            (PreEscaped(line_chart("step", "validation loss", &[measured(history, |at| at.loss)])))
            p { small { (validated(outcome)) } }
            @if outcome.orthogonality > 0.0 {
                (PreEscaped(line_chart("step", "largest |QᵀQ - I|", &[measured(history, |at| at.orthogonality)])))
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
        @if !drawn.is_empty() {
            h2 { "On the way" }
            (PreEscaped(scores_over_steps(drawn)))
            @for drawn in drawn {
                p { small { "after step " (drawn.step) } br; img src=(png_file_data_uri(&drawn.png)) alt=(drawn.step); }
            }
        }
        h2 { "Prompts" }
        ol { @for prompt in &outcome.prompts { li { (prompt) } } }
        h2 { "Settings" }
        pre { (outcome.settings) }
        p {
            small {
                "Largest deviation of a rotation factor from orthogonal: "
                (format!("{:.1e}", outcome.orthogonality))
            }
        }
    };
    page(&outcome.name, &body)
}

fn scores(outcome: &Outcome) -> Markup {
    let (Some(before), Some(after)) = (outcome.before, outcome.after) else { return html! {} };
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
            @if let Some(truth) = outcome.truth { (row("truth", truth)) }
        }
        p {
            small {
                "Cosines, higher is nearer. CLIP-T compares with the prompt (without the identifier), CLIP-I and DINO with the "
                @if outcome.held_out.is_empty() { "training pictures" } @else { "pictures held out" }
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
    let line = |name, rate: fn(&Step) -> f32| line(name, history.steps.iter().map(rate));
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

/// Every step, faint, and a running mean over it.
pub(crate) fn losses(history: &History) -> String {
    let losses = history.losses();
    let each = Line { faint: true, ..line("each step", losses.iter().copied()) };
    let mean = line(&format!("mean of {WINDOW} steps"), running_mean(&losses).into_iter());
    line_chart("step", "loss", &[each, mean])
}

fn measured(history: &History, what: fn(&Measured) -> f32) -> Line {
    let measured = history.validation.iter();
    let points = measured.map(|measured| (measured.step as f64, f64::from(what(measured))));
    Line { name: "validation".to_owned(), points: points.collect(), faint: false }
}

fn validated(outcome: &Outcome) -> String {
    let on = match outcome.held_out.as_slice() {
        [] => "the training pictures".to_owned(),
        names => format!("pictures that were held out ({})", names.join(", ")),
    };
    let timesteps = outcome.config.validation.timesteps;
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

fn scores_over_steps(drawn: &[Snapshot]) -> String {
    let line = |name: &str, score: fn(&Scores) -> Option<f32>| {
        let point =
            |drawn: &Snapshot| Some((drawn.step as f64, f64::from(score(drawn.scores.as_ref()?)?)));
        Line {
            name: name.to_owned(),
            points: drawn.iter().filter_map(point).collect(),
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
