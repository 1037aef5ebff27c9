//! Rows of the runs' sheets of pictures, small enough that a page with hundreds of them opens.

use std::ops::Range;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{ImageError, RgbImage};
use maud::{Markup, html};
use soda_train::page::{inline, inline_jpeg};

use crate::error::CompareError;
use crate::plan::Run;
use crate::results::{Record, Results};

/// Pictures of a row that are shown: the prompts of a data set can be many.
const COLUMNS: u32 = 10;
/// From one picture to the next, and the white between the two.
const STEP: u32 = 132;
const MARGIN: u32 = 4;

/// The rows `wanted` of the sheet `path`, which has `rows` of them, as the source of an `img`.
///
/// # Errors
/// A picture that is missing or broken.
pub(crate) fn part(path: &Path, rows: u32, wanted: Range<u32>) -> Result<String, CompareError> {
    let picture = |error: ImageError| CompareError::Picture {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let sheet = image::open(path).map_err(picture)?.to_rgb8();
    let (part, shrunk) = cut(&sheet, rows, wanted);
    // Photographs need a tenth as JPEG; small pictures are shown as they are.
    if shrunk { inline_jpeg(&part) } else { inline(&part) }.map_err(picture)
}

/// The part, and whether it was made smaller.
fn cut(sheet: &RgbImage, rows: u32, wanted: Range<u32>) -> (RgbImage, bool) {
    let step = (sheet.height().saturating_sub(MARGIN) / rows).max(1);
    let width = sheet.width().min(COLUMNS * step + MARGIN);
    let (top, count) = (wanted.start * step, wanted.len() as u32);
    let part = imageops::crop_imm(sheet, 0, top, width, count * step + MARGIN).to_image();
    if step <= STEP {
        return (part, false);
    }
    let scale = |pixels: u32| (u64::from(pixels) * u64::from(STEP) / u64::from(step)) as u32;
    let (width, height) = (scale(part.width()).max(1), scale(part.height()).max(1));
    (imageops::resize(&part, width, height, FilterType::CatmullRom), true)
}

/// The pictures of all arms on one data set and seed, whose folders are in `folder`.
pub(crate) fn side_by_side(
    data: &Path,
    seed: u64,
    runs: &[Run],
    results: &Results<Record>,
    folder: &Path,
) -> Result<Markup, CompareError> {
    let shown: Vec<&Run> = runs
        .iter()
        .filter(|run| run.config.data == data && run.config.seed == seed)
        .filter(|run| results.get(&run.id).is_some())
        .collect();
    let mut figures = Vec::new();
    for (index, run) in shown.iter().enumerate() {
        let path = folder.join(&run.id).join("samples.png");
        // Rows: training pictures, before, after. The first two are the same for every arm.
        if index == 0 {
            figures.push(("before", part(&path, 3, 0..2)?));
        }
        figures.push((&run.arm, part(&path, 3, 2..3)?));
    }
    Ok(html! {
        h3 { (data.file_name().unwrap_or_default().to_string_lossy()) ", seed " (seed) }
        @for (name, source) in figures {
            div { small { (name) } br; img src=(source) alt=(name); }
        }
    })
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// A sheet whose pictures say in red which row they are in.
    fn sheet(edge: u32, columns: u32) -> RgbImage {
        let step = edge + MARGIN;
        RgbImage::from_fn(columns * step + MARGIN, 3 * step + MARGIN, |x, y| {
            let white = x % step < MARGIN || y % step < MARGIN;
            Rgb(if white { [255; 3] } else { [(y / step) as u8 * 100, 0, 0] })
        })
    }

    #[test]
    fn a_row_is_cut_whole_and_large_pictures_are_made_small() {
        for (edge, columns, size, shrunk) in [
            (128, 5, (5 * 132 + 4, 136), false),
            (128, 25, (10 * 132 + 4, 136), false),
            (1024, 25, (1320, 132), true),
        ] {
            let (part, smaller) = cut(&sheet(edge, columns), 3, 2..3);
            assert_eq!((part.dimensions(), smaller), (size, shrunk));
            for column in 0..columns.min(10) {
                let Rgb([red, ..]) = *part.get_pixel(column * 132 + 66, 66);
                assert!(red.abs_diff(200) < 3, "{edge}, {column}: {red}");
            }
        }
        let (two, _) = cut(&sheet(64, 3), 3, 0..2);
        assert_eq!(two.dimensions(), (3 * 68 + 4, 2 * 68 + 4));
    }
}
