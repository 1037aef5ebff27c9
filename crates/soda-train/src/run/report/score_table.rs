//! The scores of a run before and after training, with the ground truth as the ceiling.

use maud::{Markup, html};

use crate::eval::scores::Scores;
use crate::run::summary::RunSummary;

/// A score of the table.
struct Row {
    name: &'static str,
    meaning: String,
    value: fn(&Scores) -> Option<f32>,
    /// Whether a lower score is better.
    lower_is_better: bool,
}

/// The table of scores. Empty if the run has none.
pub(super) fn scores(summary: &RunSummary) -> Markup {
    let (Some(before), Some(after)) = (&summary.before, &summary.after) else { return html! {} };
    let truth = summary.truth.as_ref();
    let rows = rows(summary);
    html! {
        h2 { "Scores" }
        table class="scores" {
            thead {
                tr {
                    th scope="col" { "score" }
                    th scope="col" { "before → after" }
                    @if truth.is_some() { th scope="col" { "truth" } }
                }
            }
            tbody {
                @for row in &rows {
                    @if let (Some(before), Some(after)) = ((row.value)(before), (row.value)(after)) {
                        (table_row(row, before, after, truth.map(|truth| (row.value)(truth))))
                    }
                }
            }
        }
        p {
            small {
                "Scores are mean cosines; higher is better, except for drift."
                @if truth.is_some() {
                    " The truth has the scores of the true images, about what a perfect fine-tune reaches: the ceiling, and the mark \
                     on the bar."
                }
            }
        }
    }
}

/// A row of the table. `truth` is `None` without a column of the truth.
fn table_row(row: &Row, before: f32, after: f32, truth: Option<Option<f32>>) -> Markup {
    html! {
        tr {
            th scope="row" { (row.name) br; small { (row.meaning) } }
            td {
                b { (format!("{before:.3} → {after:.3}")) }
                (bar(before, after, truth.flatten(), row.lower_is_better))
            }
            @if let Some(truth) = truth {
                td { (truth.map_or("-".to_owned(), |truth| format!("{truth:.3}"))) }
            }
        }
    }
}

/// A bar from 0 to the highest score, on which the part between before and after is coloured.
fn bar(before: f32, after: f32, truth: Option<f32>, lower_is_better: bool) -> Markup {
    let highest = before.max(after).max(truth.unwrap_or(0.0)).max(0.05);
    let percent = |value: f32| 100.0 * (value / highest).clamp(0.0, 1.0);
    let (low, high) = (percent(before.min(after)), percent(before.max(after)));
    let better = (after > before) != lower_is_better;
    let class = if better { "better" } else { "worse" };
    html! {
        div class="bar" aria-hidden="true" {
            div class="base" style=(format!("width:{low:.1}%")) {}
            div class=(class) style=(format!("left:{low:.1}%;width:{:.1}%", high - low)) {}
            @if let Some(truth) = truth {
                div class="mark" style=(format!("left:{:.1}%", percent(truth))) {}
            }
        }
    }
}

fn rows(summary: &RunSummary) -> [Row; 6] {
    let subject = match summary.held_out.as_slice() {
        [] => "the training images",
        _ => "the held-out images",
    };
    let row = |name, meaning: String, value| Row { name, meaning, value, lower_is_better: false };
    [
        row("CLIP-T", "similarity to the prompt without the identifier".to_owned(), |scores| {
            Some(scores.clip_t)
        }),
        row("CLIP-I", format!("similarity to {subject}"), |scores| Some(scores.clip_i)),
        row("DINO", format!("similarity to {subject}, by the object's identity"), |scores| {
            Some(scores.dino)
        }),
        row(
            "CLIP-I to the truth",
            "similarity to the true image of the prompt".to_owned(),
            |scores| scores.truth_clip_i,
        ),
        row(
            "DINO to the truth",
            "similarity to the true image of the prompt, by the object's identity".to_owned(),
            |scores| scores.truth_dino,
        ),
        Row {
            lower_is_better: true,
            ..row(
                "Drift",
                "change of the samples of unrelated prompts; lower is better".to_owned(),
                |scores| scores.drift,
            )
        },
    ]
}
