//! A data set on disk: a folder of images with captions, and what the folder has for evaluation.

use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use soda_models::noise::generator;

use crate::data::masks;
use crate::data::metadata::{SubjectFile, read_caption_file, read_metadata};
use crate::data::rng;
use crate::error::{ConfigError, DataError, TrainError};

const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];
/// Image formats that are not supported.
const UNSUPPORTED: &[&str] = &["gif", "heic", "heif", "avif", "jxl", "jp2", "psd", "svg", "dng"];

/// The most samples of an epoch.
const MAX_EPOCH: usize = 10_000_000;

/// The placeholder of the trigger in captions and prompts (ai-toolkit's format).
const PLACEHOLDER: &str = "[trigger]";

/// Replaces `[trigger]` in `text` by `trigger`.
///
/// ```
/// assert_eq!(soda_train::expand_trigger("a photo of a [trigger]", "sks mug"), "a photo of a sks mug");
/// ```
pub fn expand_trigger(text: &str, trigger: &str) -> String {
    text.replace(PLACEHOLDER, trigger)
}

/// A training image and its caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The image file.
    pub image: PathBuf,
    /// The caption, with the identifier.
    pub caption: String,
    /// The number of times that an epoch has the example.
    pub repeats: usize,
}

impl Example {
    /// The name of the image file.
    pub fn name(&self) -> String {
        self.image.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The examples of a data folder and its settings for evaluation. No image is opened yet.
///
/// The caption of an image is the first of these that exists:
///
/// 1. its line in `metadata.jsonl`, `{"file_name": "00.png", "text": "a photo of a sks mug"}` (the format
///    imagefolder of Hugging Face datasets),
/// 2. the text file beside it, `00.txt` (kohya's format),
/// 3. the name of its folder after the number, if it is in a folder such as `10_sks mug` (kohya's format,
///    where the number is the number of repeats),
/// 4. one prompt for all images.
///
/// Other files of the folder are:
///
/// | file | content |
/// |---|---|
/// | `NAME.mask.png`, `NAME-masklabel.png`, `masks/NAME.png` | the loss mask of the image `NAME` |
/// | `subject.json` or `style.json` | `identifier`, `class`, `phrase` and `eval_prompts`, all optional |
/// | `truth/` | a folder of the same format with the ground truth of the evaluation prompts |
///
/// A line of `metadata.jsonl` may have `"repeats": 3`, so that an epoch has the image three times.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The training examples by file name. There is at least one.
    pub examples: Vec<Example>,
    /// The rare word that names the subject, such as `sks`.
    pub identifier: Option<String>,
    /// The words that name the subject in a prompt, such as `sks mug`.
    pub trigger: Vec<String>,
    /// The prompts to sample before and after training.
    pub eval_prompts: Vec<String>,
    /// The ground truth of the evaluation prompts, if the folder has it.
    pub truth: Vec<Example>,
    /// Image files of unsupported formats, which are skipped.
    pub unsupported: Vec<PathBuf>,
}

impl Dataset {
    /// Reads the data folder `folder`. `prompt` is the caption of images without another one.
    ///
    /// # Errors
    /// Returns an error in these cases:
    ///
    /// - The folder is missing or has no images.
    /// - An image has no caption.
    /// - A metadata file does not parse, or names a missing file.
    pub fn read(folder: &Path, prompt: Option<&str>) -> Result<Self, TrainError> {
        let mut unsupported = Vec::new();
        let examples = read_examples(folder, prompt, &mut unsupported)?;
        let truth_folder = folder.join("truth");
        let truth = if truth_folder.is_dir() {
            read_examples(&truth_folder, None, &mut unsupported)?
        } else {
            Vec::new()
        };
        let subject = SubjectFile::read(folder)?;
        let trigger = match (&subject.identifier, &subject.class, &subject.phrase) {
            (_, _, Some(phrase)) => vec![phrase.clone()],
            (Some(identifier), Some(class), None) => vec![format!("{identifier} {class}")],
            (Some(identifier), None, None) => vec![identifier.clone()],
            (None, _, None) => Vec::new(),
        };
        Ok(Self {
            examples,
            identifier: subject.identifier,
            trigger,
            eval_prompts: subject.eval_prompts,
            truth,
            unsupported,
        })
    }

    /// Replaces `[trigger]` in all captions and evaluation prompts by `trigger`. If the folder names no
    /// identifier and `trigger` has several words, the first word becomes the identifier.
    #[must_use]
    pub fn with_trigger(mut self, trigger: &str) -> Self {
        for example in self.examples.iter_mut().chain(&mut self.truth) {
            example.caption = expand_trigger(&example.caption, trigger);
        }
        for prompt in &mut self.eval_prompts {
            *prompt = expand_trigger(prompt, trigger);
        }
        if let (None, Some((first, _))) = (&self.identifier, trigger.split_once(' ')) {
            self.identifier = Some(first.to_owned());
        }
        self.trigger = vec![trigger.to_owned()];
        self
    }

    /// Removes and returns a random share of the examples. A share above 0 removes at least one example and
    /// leaves at least one.
    ///
    /// # Errors
    /// Returns an error if the share is above 0 and there is only one example.
    pub fn hold_out(&mut self, share: f64, seed: u64) -> Result<Vec<Example>, TrainError> {
        if share == 0.0 {
            return Ok(Vec::new());
        }
        let count = self.examples.len();
        if count < 2 {
            return Err(ConfigError::Conflict(
                "`validation.held_out` needs at least two pictures; set it to 0 or add a picture",
            )
            .into());
        }
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut generator(seed, rng::HELD_OUT));
        order.truncate(((share * count as f64).round() as usize).clamp(1, count - 1));
        let all = std::mem::take(&mut self.examples);
        let (held, kept): (Vec<_>, Vec<_>) =
            all.into_iter().enumerate().partition(|(index, _)| order.contains(index));
        self.examples = kept.into_iter().map(|(_, example)| example).collect();
        Ok(held.into_iter().map(|(_, example)| example).collect())
    }

    /// `prompt` without the identifier, which the evaluation models do not know.
    pub fn without_identifier(&self, prompt: &str) -> String {
        let Some(identifier) = &self.identifier else { return prompt.to_owned() };
        // Only whole words are removed, since the identifier may be part of another word.
        prompt.split_whitespace().filter(|word| word != identifier).collect::<Vec<_>>().join(" ")
    }
}

/// The examples of a folder and of its subfolders with a number of repeats, by name.
fn read_examples(
    folder: &Path,
    prompt: Option<&str>,
    unsupported: &mut Vec<PathBuf>,
) -> Result<Vec<Example>, TrainError> {
    if !folder.is_dir() {
        return Err(DataError::NoFolder(folder.to_owned()).into());
    }
    let mut examples = read_folder(folder, prompt, 1, unsupported)?;
    for path in list(folder)?.into_iter().filter(|path| path.is_dir()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((repeats, words)) = name.split_once('_') else { continue };
        let Ok(repeats) = repeats.parse::<usize>() else { continue };
        examples.extend(read_folder(&path, Some(words), repeats.max(1), unsupported)?);
    }
    if examples.is_empty() {
        return Err(DataError::Empty(folder.to_owned()).into());
    }
    check_epoch(folder, &examples)?;
    Ok(examples)
}

/// Refuses repeats that make an epoch absurdly long. The order of an epoch is a list in memory.
fn check_epoch(folder: &Path, examples: &[Example]) -> Result<(), TrainError> {
    let samples = examples.iter().try_fold(0, |sum: usize, example| {
        sum.checked_add(example.repeats).filter(|samples| *samples <= MAX_EPOCH)
    });
    let largest = || examples.iter().max_by_key(|example| example.repeats);
    match (samples, largest()) {
        (None, Some(Example { image, .. })) => {
            let (folder, image) = (folder.to_owned(), image.clone());
            Err(DataError::Repeats { folder, image, most: MAX_EPOCH }.into())
        }
        _ => Ok(()),
    }
}

/// The paths in a folder, sorted: the order of a directory listing differs between machines, and that of the
/// examples must not.
fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = std::fs::read_dir(folder).map_err(TrainError::io("read", folder))?;
    let paths = entries.map(|entry| Ok(entry.map_err(TrainError::io("read", folder))?.path()));
    let mut paths = paths.collect::<Result<Vec<_>, TrainError>>()?;
    paths.sort();
    Ok(paths)
}

/// The examples of one folder, without its subfolders.
fn read_folder(
    folder: &Path,
    prompt: Option<&str>,
    repeats: usize,
    unsupported: &mut Vec<PathBuf>,
) -> Result<Vec<Example>, TrainError> {
    let mut metadata = read_metadata(folder)?;
    let mut examples = Vec::new();
    for image in list(folder)? {
        let extension = image.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
        let Some(extension) = extension else { continue };
        let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if masks::is_mask(name) {
            continue;
        }
        if UNSUPPORTED.contains(&extension.as_str()) {
            metadata.remove(name);
            unsupported.push(image);
        } else if EXTENSIONS.contains(&extension.as_str()) {
            let entry = metadata.remove(name);
            let own = entry.as_ref().and_then(|entry| entry.repeats).unwrap_or(1);
            let caption = match entry {
                Some(entry) => entry.text,
                None => read_caption_file(&image)?
                    .or_else(|| prompt.map(str::to_owned))
                    .ok_or_else(|| DataError::NoCaption(image.clone()))?,
            };
            examples.push(Example { image, caption, repeats: repeats.saturating_mul(own) });
        }
    }
    if let Some((name, entry)) = metadata.into_iter().next() {
        return Err(DataError::Metadata {
            path: folder.join("metadata.jsonl"),
            line: entry.line,
            reason: format!("there is no picture {name} in the folder"),
        }
        .into());
    }
    Ok(examples)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn captions_come_from_metadata_then_text_then_prompt() {
        let folder = folder(&[
            ("b.png", ""),
            ("a.png", ""),
            ("c.jpg", ""),
            ("b.txt", " beside\n"),
            ("b.mask.png", ""),
            ("a-masklabel.png", ""),
            ("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"in a list\"}\n\n"),
        ]);
        let data = Dataset::read(folder.path(), Some("for all")).unwrap();
        let captions: Vec<_> = data.examples.iter().map(|e| e.caption.as_str()).collect();
        assert_eq!(captions, ["in a list", "beside", "for all"]);
    }

    #[test]
    fn held_out_examples_are_removed_and_none_is_lost() {
        let names = ["a.png", "b.png", "c.png", "d.png", "e.png"];
        let folder = folder(&names.map(|name| (name, "")));
        let read = || Dataset::read(folder.path(), Some("x")).unwrap();
        for (part, count) in [(0.0, 0), (0.01, 1), (0.4, 2), (0.99, 4)] {
            let (mut data, mut again) = (read(), read());
            let held = data.hold_out(part, 3).unwrap();
            assert_eq!((held.len(), data.examples.len()), (count, 5 - count));
            assert_eq!(held, again.hold_out(part, 3).unwrap());
            let mut all = [held, data.examples].concat();
            all.sort_by(|a, b| a.image.cmp(&b.image));
            assert_eq!(all, read().examples);
        }
        let mut one = read();
        one.examples.truncate(1);
        assert!(one.hold_out(0.5, 0).unwrap_err().to_string().contains("two pictures"));
    }

    #[test]
    fn folder_names_and_metadata_have_repeats() {
        let folder = folder(&[
            ("a.png", ""),
            ("b.heic", ""),
            ("metadata.jsonl", r#"{"file_name": "a.png", "text": "listed", "repeats": 3}"#),
        ]);
        for (name, file) in [("10_sks mug", "c.png"), ("2_sks mug", "d.jpg"), ("notes", "e.png")] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join(file), "").unwrap();
        }
        std::fs::write(folder.path().join("2_sks mug/d.txt"), "beside").unwrap();
        let data = Dataset::read(folder.path(), None).unwrap();
        let found: Vec<_> = data.examples.iter().map(|e| (e.caption.as_str(), e.repeats)).collect();
        assert_eq!(found, [("listed", 3), ("sks mug", 10), ("beside", 2)]);
        assert_eq!(data.unsupported, [folder.path().join("b.heic")]);
    }

    #[test]
    fn repeats_of_absurd_epochs_are_refused_by_the_folder() {
        for (folder_repeats, own) in
            [(1, 1 << 40), (1, usize::MAX), (usize::MAX / 2, 4), (4_000, 2_501), (10_000_001, 1)]
        {
            let line = format!(r#"{{"file_name": "a.png", "text": "x", "repeats": {own}}}"#);
            let folder = folder(&[]);
            let inside = folder.path().join(format!("{folder_repeats}_x"));
            std::fs::create_dir(&inside).unwrap();
            std::fs::write(inside.join("a.png"), "").unwrap();
            std::fs::write(inside.join("metadata.jsonl"), line).unwrap();
            let error = Dataset::read(folder.path(), None).unwrap_err().to_string();
            assert!(error.contains("repeats") && error.contains("a.png"), "{error}");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_fault() {
        let check = |files: &[(&str, &str)], needle: &str| {
            let folder = folder(files);
            let message = Dataset::read(folder.path(), None).unwrap_err().to_string();
            assert!(message.contains(needle), "{message}");
        };
        check(&[], "holds no picture");
        check(&[("a.png", "")], "a.png has no caption");
        check(&[("a.png", ""), ("metadata.jsonl", "{")], "metadata.jsonl, line 1");
        let never = "{\"file_name\":\"a.png\",\"text\":\"\",\"repeats\":0}";
        check(&[("a.png", ""), ("metadata.jsonl", never)], "`repeats` is 0");
        check(
            &[
                ("a.png", ""),
                ("a.txt", "x"),
                ("metadata.jsonl", "{\"file_name\":\"b.png\",\"text\":\"\"}"),
            ],
            "no picture b.png",
        );
        assert!(
            Dataset::read(Path::new("/nowhere"), None).unwrap_err().to_string().contains("--data")
        );
    }

    #[test]
    fn a_trigger_replaces_its_placeholder_in_captions_and_prompts() {
        let folder = folder(&[
            ("a.png", ""),
            ("a.txt", "a photo of a [trigger]"),
            ("b.png", ""),
            ("subject.json", r#"{"eval_prompts": ["a [trigger] in the snow"]}"#),
        ]);
        let data = Dataset::read(folder.path(), Some("[trigger], studio"))
            .unwrap()
            .with_trigger("sks mug");
        let captions: Vec<_> = data.examples.iter().map(|e| e.caption.as_str()).collect();
        assert_eq!(captions, ["a photo of a sks mug", "sks mug, studio"]);
        assert_eq!(data.eval_prompts, ["a sks mug in the snow"]);
        assert_eq!(data.without_identifier("a sks mug"), "a mug");
        assert_eq!(data.with_trigger("<mug>").trigger, ["<mug>"]);
    }

    #[test]
    fn only_the_whole_identifier_is_removed() {
        let folder = folder(&[
            ("a.png", ""),
            ("a.txt", "x"),
            ("subject.json", r#"{"identifier": "sks", "class": "mug"}"#),
        ]);
        let data = Dataset::read(folder.path(), None).unwrap();
        assert_eq!(data.trigger, ["sks mug"]);
        assert_eq!(data.without_identifier("a sks mug with sksy dots"), "a mug with sksy dots");
    }
}
