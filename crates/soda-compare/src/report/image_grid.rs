//! Rows of a run's image grid, small enough that a page can show hundreds of them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{ImageError, RgbImage};
use maud::{Markup, html};
use soda_models::image::read_rgb;
use soda_train::RunFolder;
use soda_train::page::{jpeg_data_uri, png_data_uri};

use crate::error::CompareError;
use crate::results::{ResultsFile, RunResult};
use crate::run::Run;

/// The most images of a row that are shown, since a data set can have many prompts.
const COLUMNS: u32 = 10;
/// The largest pitch from one image to the next that is shown without downsampling, in pixels.
const PITCH: u32 = 132;
/// The white margin between two images, in pixels.
const MARGIN: u32 = 4;

/// Cuts the rows `wanted` from the image grid `path` with `rows` rows. Returns the source of an `img`
/// element.
///
/// # Errors
/// The file is missing or cannot be decoded.
pub(super) fn grid_rows(
    path: &Path,
    rows: u32,
    wanted: Range<u32>,
) -> Result<String, CompareError> {
    let unusable = |error: ImageError| CompareError::Image {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let grid = read_rgb(path).map_err(|error| CompareError::Image {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let (part, downsampled) = cut(&grid, rows, wanted);
    // JPEG takes a tenth of the bytes for photographs. Small images stay as they are.
    if downsampled { jpeg_data_uri(&part) } else { png_data_uri(&part) }.map_err(unusable)
}

/// Cuts the rows, and says whether they were downsampled.
fn cut(grid: &RgbImage, rows: u32, wanted: Range<u32>) -> (RgbImage, bool) {
    let pitch = (grid.height().saturating_sub(MARGIN) / rows).max(1);
    let width = grid.width().min(COLUMNS * pitch + MARGIN);
    let (top, count) = (wanted.start * pitch, wanted.len() as u32);
    let part = imageops::crop_imm(grid, 0, top, width, count * pitch + MARGIN).to_image();
    if pitch <= PITCH {
        return (part, false);
    }
    let scale = |pixels: u32| (u64::from(pixels) * u64::from(PITCH) / u64::from(pitch)) as u32;
    let (width, height) = (scale(part.width()).max(1), scale(part.height()).max(1));
    (imageops::resize(&part, width, height, FilterType::CatmullRom), true)
}

/// Shows the images of all arms on one data set and seed. `folders` have one folder per run.
pub(super) fn data_set_grids(
    data: &Path,
    seed: u64,
    runs: &[Run],
    results: &ResultsFile<RunResult>,
    folders: &[PathBuf],
) -> Result<Markup, CompareError> {
    let shown: Vec<&Run> = runs
        .iter()
        .filter(|run| run.config.data == data && run.config.seed == seed)
        .filter(|run| results.get(&run.id).is_some())
        .collect();
    let mut grids = Vec::new();
    for (index, run) in shown.iter().enumerate() {
        let path = samples_grid(folders, &run.id);
        // The rows of the file are training images, base model and fine-tuned model. The first two are the
        // same for every arm.
        if index == 0 {
            grids.push(("training images, base model", grid_rows(&path, 3, 0..2)?));
        }
        grids.push((&run.arm, grid_rows(&path, 3, 2..3)?));
    }
    Ok(html! {
        h3 { (data.file_name().unwrap_or_default().to_string_lossy()) ", seed " (seed) }
        @for (name, source) in grids {
            div { small { (name) } br; img src=(source) alt=(name); }
        }
    })
}

/// The image grid of a task, in the first folder that has it.
pub(super) fn samples_grid(folders: &[PathBuf], id: &str) -> PathBuf {
    let grid = |folder: &PathBuf| folder.join(id).join(RunFolder::SAMPLES_GRID);
    let found = folders.iter().map(grid).find(|path| path.is_file());
    found.or_else(|| folders.first().map(grid)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// An image grid whose red channel gives the row.
    fn grid(edge: u32, columns: u32) -> RgbImage {
        let pitch = edge + MARGIN;
        RgbImage::from_fn(columns * pitch + MARGIN, 3 * pitch + MARGIN, |x, y| {
            let white = x % pitch < MARGIN || y % pitch < MARGIN;
            Rgb(if white { [255; 3] } else { [(y / pitch) as u8 * 100, 0, 0] })
        })
    }

    #[test]
    fn a_row_is_cut_whole_and_large_images_are_downsampled() {
        for (edge, columns, size, downsampled) in [
            (128, 5, (5 * 132 + 4, 136), false),
            (128, 25, (10 * 132 + 4, 136), false),
            (1024, 25, (1320, 132), true),
        ] {
            let (part, found) = cut(&grid(edge, columns), 3, 2..3);
            assert_eq!((part.dimensions(), found), (size, downsampled));
            for column in 0..columns.min(10) {
                let Rgb([red, ..]) = *part.get_pixel(column * 132 + 66, 66);
                assert!(red.abs_diff(200) < 3, "{edge}, {column}: {red}");
            }
        }
        let (two, _) = cut(&grid(64, 3), 3, 0..2);
        assert_eq!(two.dimensions(), (3 * 68 + 4, 2 * 68 + 4));
    }
}
