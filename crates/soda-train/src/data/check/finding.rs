//! What the check of a data folder finds, and what it does not look at.

use std::fmt;
use std::path::PathBuf;

use crate::data::folder::Skipped;

/// One finding of the check. Displays as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The image, the mask, or the file or folder that is not read.
    pub path: PathBuf,
    /// What is unusual about it.
    pub kind: FindingKind,
}

/// What is unusual about an image, its caption or its mask.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FindingKind {
    /// The image cannot be read.
    Unreadable {
        /// The reason and the remedy, with the name of the file.
        reason: String,
    },
    /// The shorter side of the image is below the resolution, so that the image is upscaled.
    TooSmall {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The side of the training images in pixels.
        resolution: u32,
    },
    /// The image resembles an earlier one by dHash.
    NearDuplicate {
        /// The earlier image.
        of: PathBuf,
        /// The number of the 64 bits that differ.
        distance: u32,
    },
    /// The image has no caption.
    NoCaption,
    /// The caption has no words.
    EmptyCaption,
    /// The caption lacks the trigger, in upper or lower case.
    NoTrigger {
        /// The words.
        trigger: String,
    },
    /// The caption has `[trigger]`, and there is no trigger.
    Placeholder,
    /// The caption has more tokens than a text encoder takes.
    CaptionTooLong {
        /// The tokens of the caption.
        tokens: usize,
        /// The most tokens that are encoded.
        limit: usize,
    },
    /// The mask cannot be read.
    UnreadableMask {
        /// The mask.
        mask: PathBuf,
        /// The reason and the remedy, with the name of the file.
        reason: String,
    },
    /// The mask has another size than its image.
    MaskSize {
        /// The mask.
        mask: PathBuf,
        /// Width and height of the mask.
        mask_size: (u32, u32),
        /// Width and height of the image.
        size: (u32, u32),
    },
    /// The mask belongs to no image.
    MaskWithoutImage,
    /// A file or a folder that is not read.
    Skipped(Skipped),
}

impl FindingKind {
    /// Whether a run refuses the folder because of it. A run without masks reads no mask.
    pub fn prevents_training(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::NoCaption | Self::Placeholder)
    }

    /// A name of the kind for programs, in lower case with underscores.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::TooSmall { .. } => "too_small",
            Self::NearDuplicate { .. } => "near_duplicate",
            Self::NoCaption => "no_caption",
            Self::EmptyCaption => "empty_caption",
            Self::NoTrigger { .. } => "no_trigger",
            Self::Placeholder => "placeholder",
            Self::CaptionTooLong { .. } => "caption_too_long",
            Self::UnreadableMask { .. } => "unreadable_mask",
            Self::MaskSize { .. } => "mask_size",
            Self::MaskWithoutImage => "mask_without_image",
            Self::Skipped(_) => "skipped",
        }
    }
}

impl Finding {
    pub(super) fn skipped(skipped: Skipped) -> Self {
        let (Skipped::Format(path)
        | Skipped::Captions(path)
        | Skipped::NoRepeats(path, _)
        | Skipped::Unnamed(path, _)) = &skipped;
        Self { path: path.clone(), kind: FindingKind::Skipped(skipped) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            FindingKind::Unreadable { reason } | FindingKind::UnreadableMask { reason, .. } => {
                formatter.write_str(reason)
            }
            FindingKind::TooSmall { width, height, resolution } => write!(
                formatter,
                "{path} has {width} x {height} pixels and is enlarged to {resolution}: use a larger picture"
            ),
            FindingKind::NearDuplicate { of, distance } => write!(
                formatter,
                "{path} resembles {of}, of whose dHash {distance} of 64 bits differ: keep one of them, \
                 since both count",
                of = of.display()
            ),
            FindingKind::NoCaption => write!(
                formatter,
                "{path} has no caption: put a line for it in metadata.jsonl, a .txt file beside it, or give \
                 `--prompt`"
            ),
            FindingKind::EmptyCaption => write!(
                formatter,
                "the caption of {path} is empty: write what the picture shows, or remove its text file"
            ),
            FindingKind::NoTrigger { trigger } => write!(
                formatter,
                "the caption of {path} lacks the trigger `{trigger}`: add it where the picture shows the \
                 subject"
            ),
            FindingKind::Placeholder => write!(
                formatter,
                "the caption of {path} has `[trigger]`, and nothing says what it stands for: give `--trigger`"
            ),
            FindingKind::CaptionTooLong { tokens, limit } => write!(
                formatter,
                "the caption of {path} has {tokens} tokens, and the text encoder takes {limit}: shorten it, \
                 since its end is cut off"
            ),
            FindingKind::MaskSize { mask, mask_size, size } => write!(
                formatter,
                "mask {mask} has {} x {} pixels and its picture {} x {}: make them alike",
                mask_size.0,
                mask_size.1,
                size.0,
                size.1,
                mask = mask.display()
            ),
            FindingKind::MaskWithoutImage => {
                write!(formatter, "mask {path} belongs to no picture: rename or remove it")
            }
            FindingKind::Skipped(skipped) => write!(formatter, "{skipped}"),
        }
    }
}

/// A part of the check that was left out. Displays as one sentence with the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unchecked {
    /// The sizes of the images.
    Resolution,
    /// The trigger in the captions.
    Trigger,
    /// The number of tokens of the captions.
    CaptionLength,
    /// The similarity of the images.
    NearDuplicates,
}

impl Unchecked {
    /// A name of the part for programs, in lower case with underscores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolution => "resolution",
            Self::Trigger => "trigger",
            Self::CaptionLength => "caption_length",
            Self::NearDuplicates => "near_duplicates",
        }
    }
}

impl fmt::Display for Unchecked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Resolution => "the sizes of the pictures are not checked: give --resolution",
            Self::Trigger => "the trigger is not checked: give --trigger",
            Self::CaptionLength => "the length of the captions is not checked: give --base",
            Self::NearDuplicates => {
                "near-duplicates are not looked for, since the folder has more than 50,000 pictures"
            }
        })
    }
}
