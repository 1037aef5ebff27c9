//! The check of a data folder before a run: what a training would refuse, and what would harm its result.

mod caption_length;
mod checked_files;
mod finding;
mod perceptual_hash;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use self::caption_length::CaptionTokenizers;
pub use self::checked_files::CheckedFiles;
use self::checked_files::ImageContent;
pub use self::finding::{Finding, FindingKind, Unchecked};
use self::perceptual_hash::{MAX_COMPARED, near_duplicates};
use crate::data::dataset::{Dataset, expand_trigger, has_placeholder};
use crate::data::folder::{Example, FolderContents};
use crate::data::masks::{MaskFiles, is_mask, mask_file};
use crate::error::TrainError;

/// The number of images that are read between two reports of the progress.
const CHUNK: usize = 64;

/// What a data folder is checked against. Parts without a value are not checked.
#[derive(Default)]
pub struct DataCheckConfig<'a> {
    /// The caption of images that have none, as `prompt` of a run.
    pub prompt: Option<&'a str>,
    /// The words that every caption must have. By default those of `subject.json` or `style.json`.
    pub trigger: Option<&'a str>,
    /// The side of the training images in pixels.
    pub resolution: Option<u32>,
    /// The tokenizers of the base model.
    pub tokenizers: Option<&'a CaptionTokenizers>,
    /// What files held at earlier checks. Without it every file is read.
    pub checked: Option<&'a CheckedFiles>,
}

/// An image of a data folder, as the check found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedImage {
    /// The image and its caption, as the files have it.
    pub example: Example,
    /// Width and height in pixels. `None` for an image that cannot be read.
    pub size: Option<(u32, u32)>,
    /// The mask of the image, if there is a file of one.
    pub mask: Option<PathBuf>,
}

/// The result of the check.
#[derive(Clone, Debug)]
pub struct DataCheck {
    /// All images of the folder, in the order of a run.
    pub images: Vec<CheckedImage>,
    /// What was found, in the order of the images. What belongs to no image comes last.
    pub findings: Vec<Finding>,
    /// The parts that were not checked.
    pub unchecked: Vec<Unchecked>,
}

impl DataCheck {
    /// Reads every image, caption and mask of `folder`. `on_progress` gets the numbers of images that were
    /// read and of all images.
    ///
    /// # Errors
    /// Returns an error if the folder is missing, has no images, or has a text file that cannot be read.
    /// Single images that a run would refuse are findings, see [`DataCheck::prevents_training`].
    pub fn new(
        folder: &Path,
        config: &DataCheckConfig<'_>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, TrainError> {
        let contents = FolderContents::read_for_check(folder, config.prompt)?;
        let triggers = match config.trigger {
            Some(trigger) => vec![trigger.to_owned()],
            None => Dataset::trigger_of(folder)?,
        };
        let mut found: Vec<ImageContent> = Vec::with_capacity(contents.examples.len());
        let mut masks = MaskFiles::default();
        for chunk in contents.examples.chunks(CHUNK) {
            let files: Vec<(&Path, Option<PathBuf>)> =
                chunk.iter().map(|one| (&*one.image, masks.find(&one.image))).collect();
            let read = |(image, mask): (&Path, Option<PathBuf>)| match config.checked {
                Some(checked) => checked.content(image, mask),
                None => ImageContent::read(image, mask),
            };
            found.par_extend(files.into_par_iter().map(read));
            on_progress(found.len(), contents.examples.len());
        }
        let hashes: Vec<Option<u64>> = found.iter().map(|content| content.hash).collect();
        let duplicates = near_duplicates(&hashes);
        let mut findings = Vec::new();
        for (index, (example, content)) in contents.examples.iter().zip(&found).enumerate() {
            let mut add = |kind| findings.push(Finding { path: example.image.clone(), kind });
            content.kinds(config.resolution).into_iter().for_each(&mut add);
            if let Some((other, distance)) = duplicates[index] {
                let of = contents.examples[other].image.clone();
                add(FindingKind::NearDuplicate { of, distance });
            }
            if contents.uncaptioned.contains(&example.image) {
                add(FindingKind::NoCaption);
            } else {
                check_caption(&example.caption, &triggers, config.tokenizers, &mut add);
            }
        }
        findings.extend(orphaned_masks(folder, &contents.examples));
        let skipped = contents.skipped.into_iter().map(Finding::skipped);
        findings.extend(skipped);
        let images = contents.examples.into_iter().zip(found);
        let images = images
            .map(|(example, content)| CheckedImage {
                example,
                size: content.image.ok(),
                mask: content.mask.map(|(path, _)| path),
            })
            .collect::<Vec<_>>();
        let unchecked = [
            (config.resolution.is_none(), Unchecked::Resolution),
            (triggers.is_empty(), Unchecked::Trigger),
            (config.tokenizers.is_none(), Unchecked::CaptionLength),
            (images.len() > MAX_COMPARED, Unchecked::NearDuplicates),
        ];
        let unchecked = unchecked.into_iter().filter(|(is_true, _)| *is_true);
        Ok(Self { images, findings, unchecked: unchecked.map(|(_, part)| part).collect() })
    }

    /// Whether a run would refuse the folder.
    pub fn prevents_training(&self) -> bool {
        self.findings.iter().any(|finding| finding.kind.prevents_training())
    }
}

/// Adds the findings of a caption.
fn check_caption(
    caption: &str,
    triggers: &[String],
    tokenizers: Option<&CaptionTokenizers>,
    add: &mut dyn FnMut(FindingKind),
) {
    // A run takes the caption with its trigger in place.
    let caption = match triggers.first() {
        Some(trigger) => expand_trigger(caption, trigger),
        None => caption.to_owned(),
    };
    if caption.trim().is_empty() {
        return add(FindingKind::EmptyCaption);
    }
    if has_placeholder(&caption) {
        add(FindingKind::Placeholder);
    }
    let lower = caption.to_lowercase();
    for trigger in triggers.iter().filter(|trigger| !lower.contains(&trigger.to_lowercase())) {
        add(FindingKind::NoTrigger { trigger: trigger.clone() });
    }
    if let Some((tokens, limit)) = tokenizers.and_then(|all| all.excess(&caption)) {
        add(FindingKind::CaptionTooLong { tokens, limit });
    }
}

/// The masks in the folders of the examples that belong to no image.
fn orphaned_masks(folder: &Path, examples: &[Example]) -> Vec<Finding> {
    let used: HashSet<PathBuf> =
        examples.iter().filter_map(|example| mask_file(&example.image)).collect();
    let parents = examples.iter().filter_map(|example| example.image.parent());
    let mut folders: Vec<&Path> = parents.chain([folder]).collect();
    folders.sort_unstable();
    folders.dedup();
    let mut found = Vec::new();
    for folder in folders {
        for (path, is_folder_of_masks) in
            [(folder.to_owned(), false), (folder.join(crate::data::masks::FOLDER), true)]
        {
            // A folder that cannot be read has no mask to miss.
            let files = crate::data::folder::list(&path).unwrap_or_default().into_iter();
            let masks = files.filter(|file| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let is_png = file.extension().is_some_and(|extension| extension == "png");
                file.is_file() && (is_mask(&name) || (is_folder_of_masks && is_png))
            });
            let orphaned = masks.filter(|mask| !used.contains(mask));
            found
                .extend(orphaned.map(|path| Finding { path, kind: FindingKind::MaskWithoutImage }));
        }
    }
    found
}
