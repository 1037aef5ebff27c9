//! A subject on disk: a folder of pictures, their captions, and how to judge what was learnt.
//!
//! Captions come from the first of these that speaks of a picture:
//! 1. `metadata.jsonl`, lines of `{"file_name": "00.png", "text": "a photo of a sks mug"}` (the
//!    imagefolder convention of Hugging Face datasets);
//! 2. a text file beside it, `00.txt` (kohya's convention);
//! 3. the words of a folder's name, where pictures are in folders such as `10_sks mug` (kohya's
//!    convention: ten times as often as those of `1_sks mug on a table`);
//! 4. one prompt for all.
//!
//! A line of `metadata.jsonl` may have `"repeats": 3` as well: seen three times as often as the others.
//!
//! `NAME.mask.png` and `NAME-masklabel.png` are the mask of `NAME` and no picture (see `masks`).
//!
//! Optional: `subject.json` or `style.json` with `identifier` and `eval_prompts`, and `truth/`, a
//! folder of the same form with pictures of what the evaluation prompts should give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use serde::Deserialize;
use soda_models::noise::generator;

use crate::data::masks;
use crate::data::rng;
use crate::error::TrainError;

const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];
/// Pictures too, of formats that are not read.
const UNREAD: &[&str] = &["gif", "heic", "heif", "avif", "jxl", "jp2", "psd", "svg", "dng"];

/// Stands for the trigger in captions and prompts (ai-toolkit's convention).
const TRIGGER: &str = "[trigger]";

/// `text` with `trigger` for `[trigger]`.
pub fn expand_trigger(text: &str, trigger: &str) -> String {
    text.replace(TRIGGER, trigger)
}

/// A picture and its caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The picture's file.
    pub image: PathBuf,
    /// What it shows, with the identifier.
    pub caption: String,
    /// How often an epoch shows it.
    pub repeats: usize,
}

impl Example {
    /// The picture's file name.
    pub fn name(&self) -> String {
        self.image.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Pictures to learn from, sorted by file name, and what the folder says about judging them.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// At least one.
    pub examples: Vec<Example>,
    /// The rare word that stands for the subject, such as `sks`.
    pub identifier: Option<String>,
    /// Words that call the subject up, such as `sks mug`.
    pub trigger: Vec<String>,
    /// Prompts to draw before and after.
    pub eval_prompts: Vec<String>,
    /// What the evaluation prompts should give, where that is known.
    pub truth: Vec<Example>,
    /// Pictures of formats that are not read, and are passed over.
    pub unread: Vec<PathBuf>,
}

impl Dataset {
    /// Reads a folder; `prompt` captions the pictures nothing else does. No picture is opened yet.
    ///
    /// # Errors
    /// A missing or empty folder, a picture without caption, metadata that does not parse or names a
    /// file that is not there.
    pub fn read(folder: &Path, prompt: Option<&str>) -> Result<Self, TrainError> {
        let mut unread = Vec::new();
        let examples = read_examples(folder, prompt, &mut unread)?;
        let truth_folder = folder.join("truth");
        let truth = if truth_folder.is_dir() {
            read_examples(&truth_folder, None, &mut unread)?
        } else {
            Vec::new()
        };
        let about = About::read(folder)?;
        let trigger = match (&about.identifier, &about.class, &about.phrase) {
            (_, _, Some(phrase)) => vec![phrase.clone()],
            (Some(identifier), Some(class), None) => vec![format!("{identifier} {class}")],
            (Some(identifier), None, None) => vec![identifier.clone()],
            (None, _, None) => Vec::new(),
        };
        Ok(Self {
            examples,
            identifier: about.identifier,
            trigger,
            eval_prompts: about.eval_prompts,
            truth,
            unread,
        })
    }

    /// The same where captions and prompts say `trigger` for `[trigger]`. Of several words the first is the identifier, if
    /// nothing else has named one.
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

    /// Takes a part of the examples out, drawn by the seed: at least one where any is asked for, and one
    /// stays.
    ///
    /// # Errors
    /// A part of a single picture.
    pub fn hold_out(&mut self, part: f64, seed: u64) -> Result<Vec<Example>, TrainError> {
        if part == 0.0 {
            return Ok(Vec::new());
        }
        let count = self.examples.len();
        if count < 2 {
            return Err(TrainError::Conflict(
                "`validation.held_out` needs at least two pictures; set it to 0 or add a picture",
            ));
        }
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut generator(seed, rng::HELD_OUT));
        order.truncate(((part * count as f64).round() as usize).clamp(1, count - 1));
        let all = std::mem::take(&mut self.examples);
        let (held, kept): (Vec<_>, Vec<_>) =
            all.into_iter().enumerate().partition(|(index, _)| order.contains(index));
        self.examples = kept.into_iter().map(|(_, example)| example).collect();
        Ok(held.into_iter().map(|(_, example)| example).collect())
    }

    /// `prompt` without the identifier: what a judge that never met the subject should look for.
    pub fn without_identifier(&self, prompt: &str) -> String {
        let Some(identifier) = &self.identifier else { return prompt.to_owned() };
        // Whole words only: the identifier may be part of another word.
        prompt.split_whitespace().filter(|word| word != identifier).collect::<Vec<_>>().join(" ")
    }
}

/// The examples of a folder and of the repeated folders in it, by name.
fn read_examples(
    folder: &Path,
    prompt: Option<&str>,
    unread: &mut Vec<PathBuf>,
) -> Result<Vec<Example>, TrainError> {
    if !folder.is_dir() {
        return Err(TrainError::NoFolder(folder.to_owned()));
    }
    let mut examples = read_folder(folder, prompt, 1, unread)?;
    for path in list(folder)?.into_iter().filter(|path| path.is_dir()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((repeats, words)) = name.split_once('_') else { continue };
        let Ok(repeats) = repeats.parse::<usize>() else { continue };
        examples.extend(read_folder(&path, Some(words), repeats.max(1), unread)?);
    }
    if examples.is_empty() {
        return Err(TrainError::EmptyDataset(folder.to_owned()));
    }
    Ok(examples)
}

/// What is in a folder, by name: the order of a directory listing differs between machines, that of the
/// data must not.
fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = std::fs::read_dir(folder).map_err(TrainError::io("read", folder))?;
    let paths = entries.map(|entry| Ok(entry.map_err(TrainError::io("read", folder))?.path()));
    let mut paths = paths.collect::<Result<Vec<_>, TrainError>>()?;
    paths.sort();
    Ok(paths)
}

fn read_folder(
    folder: &Path,
    prompt: Option<&str>,
    repeats: usize,
    unread: &mut Vec<PathBuf>,
) -> Result<Vec<Example>, TrainError> {
    let mut told = read_metadata(folder)?;
    let mut examples = Vec::new();
    for image in list(folder)? {
        let extension = image.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
        let Some(extension) = extension else { continue };
        let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if masks::is_mask(name) {
            continue;
        }
        if UNREAD.contains(&extension.as_str()) {
            told.remove(name);
            unread.push(image);
        } else if EXTENSIONS.contains(&extension.as_str()) {
            let told = told.remove(name);
            let own = told.as_ref().and_then(|told| told.repeats).unwrap_or(1);
            let caption = match told {
                Some(told) => told.text,
                None => beside(&image)?
                    .or_else(|| prompt.map(str::to_owned))
                    .ok_or_else(|| TrainError::NoCaption(image.clone()))?,
            };
            examples.push(Example { image, caption, repeats: repeats * own });
        }
    }
    if let Some((name, told)) = told.into_iter().next() {
        return Err(TrainError::Metadata {
            path: folder.join("metadata.jsonl"),
            line: told.line,
            reason: format!("there is no picture {name} in the folder"),
        });
    }
    Ok(examples)
}

/// What a line of metadata says of a picture.
struct Told {
    line: usize,
    text: String,
    repeats: Option<usize>,
}

/// Captions by file name.
fn read_metadata(folder: &Path) -> Result<BTreeMap<String, Told>, TrainError> {
    #[derive(Deserialize)]
    struct Line {
        file_name: String,
        text: String,
        repeats: Option<usize>,
    }
    let path = folder.join("metadata.jsonl");
    let mut told = BTreeMap::new();
    if !path.is_file() {
        return Ok(told);
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong =
            |reason: String| TrainError::Metadata { path: path.clone(), line: index + 1, reason };
        let Line { file_name, text, repeats } = serde_json::from_str(line).map_err(|error| {
            wrong(format!("expected {{\"file_name\": ..., \"text\": ...}}: {error}"))
        })?;
        if repeats == Some(0) {
            return Err(wrong("`repeats` is 0; remove the picture instead".to_owned()));
        }
        told.insert(file_name, Told { line: index + 1, text, repeats });
    }
    Ok(told)
}

/// The caption in the text file beside a picture.
fn beside(image: &Path) -> Result<Option<String>, TrainError> {
    let path = image.with_extension("txt");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
    Ok(Some(text.trim().to_owned()))
}

/// `subject.json` or `style.json`.
#[derive(Default, Deserialize)]
struct About {
    identifier: Option<String>,
    class: Option<String>,
    phrase: Option<String>,
    #[serde(default)]
    eval_prompts: Vec<String>,
}

impl About {
    fn read(folder: &Path) -> Result<Self, TrainError> {
        for name in ["subject.json", "style.json"] {
            let path = folder.join(name);
            if path.is_file() {
                let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
                return serde_json::from_str(&text).map_err(|error| TrainError::Metadata {
                    path,
                    line: error.line(),
                    reason: error.to_string(),
                });
            }
        }
        Ok(Self::default())
    }
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
    fn what_is_held_out_is_not_learnt_and_nothing_is_lost() {
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
    fn folders_and_lines_say_how_often() {
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
    fn mistakes_are_named() {
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
    fn a_trigger_is_said_where_captions_and_prompts_ask_for_it() {
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
