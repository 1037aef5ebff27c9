//! A data set on disk: a folder of images with captions, and what the folder has for evaluation.

use std::path::Path;

use rand::seq::SliceRandom;
use soda_models::noise::generator;

use crate::data::folder::{DataFolder, Example, FolderContents, Skipped};
use crate::data::metadata::SubjectFile;
use crate::data::rng;
use crate::error::{ConfigError, TrainError};

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

/// Whether `text` has a `[trigger]` for [`expand_trigger`].
pub fn has_placeholder(text: &str) -> bool {
    text.contains(PLACEHOLDER)
}

/// The examples of a data folder and its settings for evaluation. No image is opened yet.
///
/// The caption of an image is the first of these that exists:
///
/// 1. its line in `metadata.jsonl`, `{"file_name": "00.png", "text": "a photo of a sks mug"}` (the format
///    imagefolder of Hugging Face datasets, in which `file_name` may lead into a folder),
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
/// A line of `metadata.jsonl` may have `"repeats": 3`, so that an epoch has the image three times. Text files
/// are UTF-8, or UTF-16 with a byte order mark. Files and folders whose names begin with a dot are not read.
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
    /// The folders of the examples, with their repeats.
    pub folders: Vec<DataFolder>,
    /// Files and folders that are not read. Each displays as a warning with the remedy.
    pub skipped: Vec<Skipped>,
}

impl Dataset {
    /// Reads the data folder `folder`. `prompt` is the caption of images without another one.
    ///
    /// # Errors
    /// Returns an error in these cases:
    ///
    /// - The folder is missing or has no images.
    /// - An image has no caption.
    /// - A metadata file does not parse, or names a missing file or one outside of the folder.
    /// - A caption is neither UTF-8 nor UTF-16 with a byte order mark.
    /// - An epoch would have more than ten million samples.
    pub fn read(folder: &Path, prompt: Option<&str>) -> Result<Self, TrainError> {
        let FolderContents { examples, folders, mut skipped, .. } =
            FolderContents::read(folder, prompt)?;
        let truth_folder = folder.join("truth");
        let truth = if truth_folder.is_dir() {
            let truth = FolderContents::read(&truth_folder, None)?;
            skipped.extend(truth.skipped);
            truth.examples
        } else {
            Vec::new()
        };
        let subject = SubjectFile::read(folder)?;
        let trigger = subject.trigger();
        Ok(Self {
            examples,
            identifier: subject.identifier,
            trigger,
            eval_prompts: subject.eval_prompts,
            truth,
            folders,
            skipped,
        })
    }

    /// The words that name the subject of `folder`, as [`Dataset::trigger`].
    pub(crate) fn trigger_of(folder: &Path) -> Result<Vec<String>, TrainError> {
        Ok(SubjectFile::read(folder)?.trigger())
    }

    /// Says which folders are read with how many repeats. `None` for a folder of images without repeats.
    pub fn describe_folders(&self) -> Option<String> {
        if self.folders.len() < 2 && self.folders.iter().all(|folder| folder.repeats == 1) {
            return None;
        }
        let describe = |folder: &DataFolder| {
            let name = folder.path.file_name().unwrap_or(folder.path.as_os_str());
            let times = match folder.repeats {
                1 => "once".to_owned(),
                repeats => format!("{repeats} times each"),
            };
            format!("{} of {}, {times}", folder.images, name.to_string_lossy())
        };
        Some(self.folders.iter().map(describe).collect::<Vec<_>>().join("; "))
    }

    /// Replaces `[trigger]` in all captions and evaluation prompts by `trigger`. If the folder names no
    /// identifier and `trigger` has several words, the first word becomes the identifier.
    #[must_use]
    pub fn with_trigger(mut self, trigger: &str) -> Self {
        self.expand(trigger);
        if let (None, Some((first, _))) = (&self.identifier, trigger.split_once(' ')) {
            self.identifier = Some(first.to_owned());
        }
        self.trigger = vec![trigger.to_owned()];
        self
    }

    /// Replaces `[trigger]` in all captions and evaluation prompts by `trigger`.
    pub(crate) fn expand(&mut self, trigger: &str) {
        for example in self.examples.iter_mut().chain(&mut self.truth) {
            example.caption = expand_trigger(&example.caption, trigger);
        }
        for prompt in &mut self.eval_prompts {
            *prompt = expand_trigger(prompt, trigger);
        }
    }

    /// Whether a caption or an evaluation prompt has a `[trigger]` that nothing has replaced.
    pub(crate) fn has_placeholder(&self) -> bool {
        let captions = self.examples.iter().chain(&self.truth).map(|example| &example.caption);
        captions.chain(&self.eval_prompts).any(|text| has_placeholder(text))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;
    use crate::testing::folder;

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
        for (name, file) in [("10_sks mug", "c.png"), ("2_sks mug", "d.jpg"), ("notes", "e.txt")] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join(file), "").unwrap();
        }
        std::fs::write(folder.path().join("2_sks mug/d.txt"), "beside").unwrap();
        let data = Dataset::read(folder.path(), None).unwrap();
        let found: Vec<_> = data.examples.iter().map(|e| (e.caption.as_str(), e.repeats)).collect();
        assert_eq!(found, [("listed", 3), ("sks mug", 10), ("beside", 2)]);
        assert_eq!(data.skipped, [Skipped::Format(folder.path().join("b.heic"))]);
        let folders = data.describe_folders().unwrap();
        assert!(
            folders
                .ends_with(", once; 1 of 10_sks mug, 10 times each; 1 of 2_sks mug, 2 times each")
        );
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
        let error = Dataset::read(Path::new("/nowhere"), None).unwrap_err().to_string();
        assert_eq!(error, "there is no data folder /nowhere; give a folder of images");
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
