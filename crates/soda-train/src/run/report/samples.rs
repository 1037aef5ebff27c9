//! The images of a report with their labels.

use image::imageops::FilterType;
use image::{ImageError, RgbImage, imageops};
use maud::{Markup, PreEscaped, html};
use rayon::prelude::*;

use crate::eval::snapshots::Snapshot;
use crate::output::page::{jpeg_data_uri, png_data_uri, png_file_data_uri};
use crate::run::report::charts::scores_chart;

/// Images up to this side stay PNG and are magnified with hard pixels. Larger ones are photographs, and
/// become JPEG.
const PIXEL_ART: u32 = 256;
/// The longest side of an image in the report. The image grids in the run's folder have all pixels.
const LONGEST: u32 = 512;

/// One section for each prompt: the prompt as a heading, below it the labelled images side by side. `truth`
/// is empty or has one image for each prompt.
pub(super) fn by_prompt(
    prompts: &[String],
    before: &[RgbImage],
    after: &[RgbImage],
    truth: &[RgbImage],
) -> Result<Markup, ImageError> {
    // Pictures of a thousand pixels take a tenth of a second each to be scaled and encoded.
    let sections = prompts.par_iter().enumerate().map(|(index, prompt)| {
        let mut figures = Vec::new();
        for (label, images) in [("before", before), ("after", after), ("truth", truth)] {
            if let Some(image) = images.get(index) {
                figures.push((label, img(image, &format!("{prompt}: {label}"))?));
            }
        }
        Ok(html! {
            section class="sample" style=(format!("--columns:{}", figures.len())) {
                h3 { (prompt) }
                div class="row" {
                    @for (label, image) in &figures { figure { (image) figcaption { (label) } } }
                }
            }
        })
    });
    let sections = sections.collect::<Result<Vec<_>, ImageError>>()?;
    Ok(html! { div class="samples" { @for section in &sections { (section) } } })
}

/// The training images that are shown.
pub(super) fn training_images(images: &[RgbImage]) -> Result<Markup, ImageError> {
    let shown = images.par_iter().enumerate();
    let shown = shown
        .map(|(index, image)| img(image, &format!("training image {}", index + 1)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        div class="thumbnails" { @for image in &shown { (image) } }
        @if images.len() > shown.len() {
            p { small { "The first " (shown.len()) " of " (images.len()) "." } }
        }
    })
}

/// The image grid of each snapshot in a strip that scrolls, with its scores, and a chart of all scores.
pub(super) fn snapshots(snapshots: &[Snapshot], prompts: &[String]) -> Markup {
    let order = prompts.join("; ");
    html! {
        (PreEscaped(scores_chart(snapshots)))
        p { small { "From left to right: " (order) "." } }
        @for snapshot in snapshots {
            h3 {
                "After step " (snapshot.step)
                @if let Some(scores) = &snapshot.scores {
                    small {
                        (format!(
                            " CLIP-T {:.3}, CLIP-I {:.3}, DINO {:.3}",
                            scores.clip_t, scores.clip_i, scores.dino
                        ))
                    }
                }
            }
            div class="strip" {
                img src=(png_file_data_uri(&snapshot.png))
                    alt=(format!("samples of all prompts after step {}", snapshot.step));
            }
        }
    }
}

/// An image with a description for screen readers.
fn img(image: &RgbImage, alt: &str) -> Result<Markup, ImageError> {
    let (width, height) = image.dimensions();
    let longest = width.max(height);
    if longest <= PIXEL_ART {
        return Ok(html! { img class="pixels" src=(png_data_uri(image)?) alt=(alt); });
    }
    let uri = if longest <= LONGEST {
        jpeg_data_uri(image)?
    } else {
        let scaled = |side: u32| (u64::from(side) * u64::from(LONGEST) / u64::from(longest)) as u32;
        let (width, height) = (scaled(width).max(1), scaled(height).max(1));
        jpeg_data_uri(&imageops::resize(image, width, height, FilterType::CatmullRom))?
    };
    Ok(html! { img src=(uri) alt=(alt); })
}
