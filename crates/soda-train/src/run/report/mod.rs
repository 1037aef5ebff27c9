//! The report of a run, `report.html`: one file that needs no network.

mod charts;
mod samples;
mod score_table;

use image::{ImageError, RgbImage};
use maud::{Markup, html};
use soda_pipeline::counted;

use crate::error::TrainError;
use crate::eval::sampling::SampledImages;
use crate::eval::snapshots::Snapshot;
use crate::output::page::page;
use crate::output::run_folder::RunFolder;
use crate::run::history::{History, LOSS_WINDOW, running_mean};
use crate::run::summary::RunSummary;

pub(crate) use charts::loss_chart;

/// The images of a report, apart from those of snapshots.
pub(crate) struct ReportImages<'a> {
    /// The training images.
    pub(crate) training: &'a [RgbImage],
    /// The base model's samples.
    pub(crate) before: &'a SampledImages,
    /// The fine-tuned model's samples.
    pub(crate) after: &'a SampledImages,
    /// The ground truth of each prompt, or empty.
    pub(crate) truth: &'a [RgbImage],
}

/// The report as HTML. `snapshots` are the samples during training.
pub(crate) fn report(
    summary: &RunSummary,
    images: &ReportImages<'_>,
    snapshots: &[Snapshot],
) -> Result<String, TrainError> {
    let body = body(summary, images, snapshots)
        .map_err(TrainError::image(&summary.folder.join(RunFolder::REPORT)))?;
    Ok(page(&summary.name, &body))
}

fn body(
    summary: &RunSummary,
    images: &ReportImages<'_>,
    snapshots: &[Snapshot],
) -> Result<Markup, ImageError> {
    let RunSummary { config, history, prompts, .. } = summary;
    let (before, after) = (images.before, images.after);
    let samples = samples::by_prompt(prompts, &before.images, &after.images, images.truth)?;
    let unrelated =
        samples::by_prompt(&config.samples.unrelated, &before.unrelated, &after.unrelated, &[])?;
    Ok(html! {
        (overview(summary))
        (score_table::scores(summary))
        h2 { "Training images" }
        (samples::training_images(images.training)?)
        h2 { "Samples" }
        p {
            "One image of each prompt before and after training, from the same noise."
            @if !images.truth.is_empty() { " The truth is what a perfect fine-tune would show." }
        }
        (samples)
        @if !before.unrelated.is_empty() {
            h2 { "Samples of unrelated prompts" }
            p { "These prompts do not mention the subject. The less their images change, the lower is the drift." }
            (unrelated)
        }
        @if !snapshots.is_empty() {
            h2 { "Samples during training" }
            (samples::snapshots(snapshots, prompts))
        }
        h2 { "Measurements" }
        (charts::charts(summary))
        p { small { (losses_in_words(history)) } }
        @if summary.has_rotations() {
            p {
                small {
                    "After training, the largest deviation of a rotation factor Q from orthogonality is |QᵀQ − I| = "
                    (format!("{:.1e}", summary.orthogonality)) "."
                }
            }
        }
        h2 { "Settings" }
        details { summary { "config.toml" } pre { (summary.settings) } }
    })
}

/// The numbers of a run in one paragraph.
fn overview(summary: &RunSummary) -> Markup {
    let config = &summary.config;
    html! {
        p {
            (counted(summary.examples, "training image")) ", "
            (counted(summary.history.steps.len(), "step")) " of " (config.images_per_step()) ", "
            (summary.num_params) " trained parameters on " (counted(summary.num_layers, "layer")) ", "
            (format!("{:.0}", summary.seconds)) " s of training."
            @if let Some(folders) = &summary.folders { " Images by folder: " (folders) "." }
            @if let Some(buckets) = &summary.buckets { " Images by size: " (buckets) "." }
        }
    }
}

/// The mean loss of the first and of the last steps.
fn losses_in_words(history: &History) -> String {
    let mean = running_mean(&history.losses());
    let (Some(first), Some(last)) = (mean.get(LOSS_WINDOW - 1).or(mean.last()), mean.last()) else {
        return "There were no steps.".to_owned();
    };
    format!(
        "The mean loss of the first {LOSS_WINDOW} steps is {first:.4}, that of the last {LOSS_WINDOW} steps {last:.4}. The loss of a \
         step depends mostly on its random timesteps, so that it falls little even if the images change much."
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::PathBuf;

    use image::Rgb;

    use super::*;
    use crate::eval::scores::Scores;
    use crate::output::files::png_bytes;
    use crate::run::history::ValidationMetrics;
    use crate::step::metrics::StepMetrics;
    use crate::testing::settings;

    fn scores(clip_t: f32, truth_dino: f32, drift: Option<f32>) -> Scores {
        Scores {
            clip_t,
            clip_i: 0.5,
            dino: 0.25,
            truth_clip_i: Some(0.625),
            truth_dino: Some(truth_dino),
            drift,
            drift_dino: None,
        }
    }

    fn summary(prompts: &[&str]) -> RunSummary {
        let config = settings(&["samples.unrelated=['a green <tree>']"]);
        let step = |step| {
            let loss = 0.3 + 0.05 * (step as f32).sin();
            StepMetrics::from_values([
                loss,
                2.0,
                5e-3,
                5e-3 * (60.0 - step as f32) / 60.0,
                0.0,
                0.0,
            ])
        };
        let validation = (0..=6).map(|index| ValidationMetrics {
            step: 10 * index,
            loss: 0.4 - 0.01 * index as f32,
            orthogonality: 7e-8 * index as f32,
        });
        RunSummary {
            name: "mug-1".to_owned(),
            folder: PathBuf::from("runs/mug-1"),
            examples: 2,
            folders: None,
            buckets: None,
            held_out: Vec::new(),
            prompts: prompts.iter().map(|&prompt| prompt.to_owned()).collect(),
            history: History {
                steps: (0..60).map(step).collect(),
                validation: validation.collect(),
                scores: Vec::new(),
            },
            settings: config.to_toml().unwrap(),
            seconds: 12.0,
            device_memory: None,
            num_layers: 56,
            num_params: 10580,
            orthogonality: 4.2e-7,
            before: Some(scores(0.8125, 0.238, Some(0.0))),
            after: Some(scores(0.7505, 0.452, Some(0.03125))),
            truth: Some(scores(0.9, 1.0, None)),
            config,
        }
    }

    fn square(side: u32, red: u8) -> RgbImage {
        RgbImage::from_pixel(side, side, Rgb([red, 90, 60]))
    }

    fn sampled(side: u32, red: u8) -> SampledImages {
        SampledImages {
            images: vec![square(side, red), square(side, red + 1)],
            unrelated: vec![square(side, red + 2)],
            scores: None,
        }
    }

    fn html(side: u32, truth: bool) -> String {
        let prompts = ["a sks mug on a beach", "a \"sks\" mug & a tree"];
        let (before, after) = (sampled(side, 10), sampled(side, 20));
        let truths = [square(side, 30), square(side, 31)];
        let images = ReportImages {
            training: &[square(side, 40), square(side, 41)],
            before: &before,
            after: &after,
            truth: if truth { &truths } else { &[] },
        };
        let png = png_bytes(&square(side, 50)).unwrap();
        let snapshots = [10, 20].map(|step| Snapshot {
            step,
            png: png.clone(),
            size: (side, side),
            scores: Some(scores(0.7, 0.3 + 0.001 * step as f32, None)),
        });
        report(&summary(&prompts), &images, &snapshots).unwrap()
    }

    #[test]
    fn every_prompt_is_above_its_labelled_images() {
        let html = html(64, true);
        let prompts =
            ["a sks mug on a beach", "a &quot;sks&quot; mug &amp; a tree", "a green &lt;tree&gt;"];
        for (index, prompt) in prompts.into_iter().enumerate() {
            let at = html.find(&format!("<h3>{prompt}</h3>")).unwrap_or_else(|| panic!("{prompt}"));
            let row = &html[at..];
            let row = &row[..row.find("</section>").unwrap()];
            let labels =
                if index < 2 { &["before", "after", "truth"][..] } else { &["before", "after"] };
            assert_eq!(row.matches("<img ").count(), labels.len());
            for label in labels {
                assert!(row.contains(&format!("<figcaption>{label}</figcaption>")), "{label}");
                assert!(row.contains(&format!("alt=\"{prompt}: {label}\"")), "{row}");
            }
        }
        assert!(!self::html(64, false).contains("truth</figcaption>"));
    }

    #[test]
    fn scores_are_before_and_after_with_the_truth_beside_them() {
        let html = html(64, true);
        for (name, values, truth) in [
            ("CLIP-T", "0.812 → 0.751", "0.900"),
            ("DINO to the truth", "0.238 → 0.452", "1.000"),
            ("Drift", "0.000 → 0.031", "-"),
        ] {
            let at =
                html.find(&format!("<th scope=\"row\">{name}")).unwrap_or_else(|| panic!("{name}"));
            let row = &html[at..];
            let row = &row[..row.find("</tr>").unwrap()];
            assert!(row.contains(values) && row.contains(&format!("<td>{truth}</td>")), "{row}");
        }
    }

    /// NaN is the worst orthogonality, so that it is shown.
    #[test]
    fn a_broken_rotation_is_in_the_report() {
        let images = ReportImages {
            training: &[square(8, 40)],
            before: &sampled(8, 10),
            after: &sampled(8, 20),
            truth: &[],
        };
        let html = |orthogonality| {
            let summary = RunSummary { orthogonality, ..summary(&["a mug", "a tree"]) };
            report(&summary, &images, &[]).unwrap()
        };
        let sentence = "the largest deviation of a rotation factor";
        assert!(html(f32::NAN).contains(sentence) && html(f32::NAN).contains("= NaN."));
        assert!(html(1e-7).contains(sentence));
        assert!(!html(0.0).contains(sentence));
    }

    /// The report is one file without links, and every image and chart has a description.
    #[test]
    fn nothing_is_fetched_and_all_images_are_described() {
        let html = html(600, true);
        for link in ["src=\"http", "src=\"/", "href=", "url(", "@import", "<script"] {
            assert!(!html.contains(link), "{link}");
        }
        for tag in html.split("<img ").skip(1) {
            let tag = &tag[..tag.find('>').unwrap()];
            assert!(tag.contains("src=\"data:image/") && tag.contains("alt=\""), "{}", &tag[..60]);
        }
        for tag in html.split("<svg ").skip(1) {
            assert!(tag.starts_with("role=\"img\" aria-label=\""), "{}", &tag[..60]);
        }
        assert!(html.contains("name=\"viewport\""));
        // 600 pixels are reduced to a photograph of 512.
        assert!(html.contains("data:image/jpeg"));
    }

    #[test]
    fn the_chart_of_orthogonality_is_named_and_has_an_axis_that_can_be_read() {
        let html = html(64, true);
        let at = html.find("aria-label=\"Chart of |QᵀQ − I|").unwrap();
        let chart = &html[at..];
        let chart = &chart[..chart.find("</svg>").unwrap()];
        assert!(chart.contains("1e-7") && !chart.contains("validation"), "{chart}");
    }
}
