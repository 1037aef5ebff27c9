//! `report.md`: what a run did and whether it worked, for a person.

use std::fmt::Write as _;

use crate::chart::running_mean;
use crate::evaluate::Scores;
use crate::personalise::Outcome;

/// The report of a run as Markdown.
pub(crate) fn report(outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "# {name}\n\n{examples} pictures, {steps} steps of {batch}, {params} trained numbers on {layers} layers; \
         {seconds:.0} s of training.\n\n![training pictures, before, after](samples.png)\n\nRows: training pictures; \
         drawn before; drawn after, with the same prompts and noise{truth_row}.\n\n",
        name = outcome.name,
        examples = outcome.examples,
        steps = outcome.config.steps,
        batch = outcome.config.batch_size,
        params = outcome.num_params,
        layers = outcome.num_layers,
        seconds = outcome.seconds,
        truth_row = if outcome.truth.is_some() { "; what should have been drawn" } else { "" },
    );
    scores(&mut text, outcome);
    let _ = write!(
        text,
        "## Loss\n\n![loss](loss.svg)\n\nMean of the first and of the last twenty steps: {:.4}, {:.4}. A \
         diffusion loss depends mostly on the timestep drawn, so it falls little even where the pictures change \
         much.\n\n## Prompts\n\n",
        running_mean(&outcome.losses).get(19).copied().unwrap_or(f32::NAN),
        running_mean(&outcome.losses).last().copied().unwrap_or(f32::NAN),
    );
    for (number, prompt) in outcome.prompts.iter().enumerate() {
        let _ = writeln!(text, "{}. {prompt}", number + 1);
    }
    let _ = write!(
        text,
        "\n## Files\n\n- `adapter.safetensors`: the adapter; largest deviation of a rotation factor from orthogonal \
         {:.1e}\n- `config.toml`: the settings, as resolved; `soda train --config` repeats the run\n- `loss.csv`, \
         `loss.svg`, `samples.png`, `scores.json`\n",
        outcome.orthogonality,
    );
    text
}

fn scores(text: &mut String, outcome: &Outcome) {
    let (Some(before), Some(after)) = (outcome.before, outcome.after) else { return };
    let row = |text: &mut String, name: &str, scores: Scores| {
        let optional = |value: Option<f32>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
        };
        let _ = writeln!(
            text,
            "| {name} | {:.3} | {:.3} | {:.3} | {} | {} |",
            scores.clip_t,
            scores.clip_i,
            scores.dino,
            optional(scores.truth_clip_i),
            optional(scores.truth_dino),
        );
    };
    text.push_str(
        "## Scores\n\nCosines, higher is nearer. CLIP-T compares with the prompt (without the identifier), CLIP-I and \
         DINO with the training pictures, the last two columns with the truth of the same prompt.\n\n| pictures | \
         CLIP-T | CLIP-I | DINO | CLIP-I to truth | DINO to truth |\n|---|---|---|---|---|---|\n",
    );
    row(text, "before", before);
    row(text, "after", after);
    if let Some(truth) = outcome.truth {
        row(text, "truth", truth);
    }
    text.push('\n');
}
