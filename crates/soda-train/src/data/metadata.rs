//! The text files of a data folder: captions, repeats, and settings for evaluation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use soda_models::input_file::SizeLimit;
use unicode_normalization_alignments::UnicodeNormalization as _;

use crate::data::text_file::read_text;
use crate::error::{DataError, TrainError};

/// The lines of `metadata.jsonl` by the path of the picture, relative to the file's folder (the format
/// imagefolder of Hugging Face datasets). Empty if the folder has no such file.
#[derive(Default)]
pub(super) struct Metadata {
    path: PathBuf,
    entries: BTreeMap<String, MetadataEntry>,
    /// The keys of `entries` by their composed form (NFC). macOS decomposes the names of files.
    composed: BTreeMap<String, String>,
}

/// A line of `metadata.jsonl`.
pub(super) struct MetadataEntry {
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) repeats: Option<usize>,
}

impl Metadata {
    /// The path of the file of `folder`.
    pub(super) fn path_in(folder: &Path) -> PathBuf {
        folder.join("metadata.jsonl")
    }

    /// Reads the file of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, TrainError> {
        #[derive(Deserialize)]
        struct Line {
            file_name: String,
            text: String,
            repeats: Option<usize>,
            /// Columns for other programs, which Hugging Face's ImageFolder allows.
            #[serde(flatten)]
            columns: BTreeMap<String, IgnoredAny>,
        }
        let path = Self::path_in(folder);
        let mut metadata = Self { path, ..Self::default() };
        if !metadata.path.exists() {
            return Ok(metadata);
        }
        let text = read_text(&metadata.path, SizeLimit::LIST)?;
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let number = index + 1;
            let invalid = |reason: String| metadata.invalid(number, reason);
            let Line { file_name, text, repeats, columns } =
                serde_json::from_str(line).map_err(|error| {
                    invalid(format!("expected {{\"file_name\": ..., \"text\": ...}}: {error}"))
                })?;
            let meant = |key: &&String| strsim::damerau_levenshtein(key.as_str(), "repeats") <= 2;
            if let Some(key) = columns.keys().find(meant) {
                return Err(invalid(format!("did you mean `repeats` by `{key}`?")).into());
            }
            if repeats == Some(0) {
                return Err(invalid("`repeats` is 0; remove the picture instead".to_owned()).into());
            }
            let name = relative(&file_name).map_err(invalid)?;
            if let Some(first) = metadata.entries.get(&name) {
                return Err(metadata
                    .invalid(number, format!("line {} names {name} already", first.line))
                    .into());
            }
            metadata.composed.insert(composed(&name), name.clone());
            metadata.entries.insert(name, MetadataEntry { line: number, text, repeats });
        }
        Ok(metadata)
    }

    /// Removes and returns the line of the picture `name`. A name in another Unicode normal form counts if no
    /// file has exactly that name.
    pub(super) fn take(&mut self, name: &str) -> Option<MetadataEntry> {
        if let Some(entry) = self.entries.remove(name) {
            return Some(entry);
        }
        let key = self.composed.get(&composed(name))?;
        let folder = self.path.parent()?;
        if folder.join(key).exists() {
            return None;
        }
        self.entries.remove(key)
    }

    /// Removes and returns the lines of pictures in subfolders.
    pub(super) fn take_nested(&mut self) -> Vec<(String, MetadataEntry)> {
        let all = std::mem::take(&mut self.entries).into_iter();
        let (nested, own): (Vec<_>, Vec<_>) = all.partition(|(name, _)| name.contains('/'));
        self.entries = own.into_iter().collect();
        nested
    }

    /// The error of a line.
    pub(super) fn invalid(&self, line: usize, reason: String) -> DataError {
        DataError::Metadata { path: self.path.clone(), line, reason }
    }

    /// The error of a line that names no picture of the folder.
    pub(super) fn no_picture(&self, name: &str, line: usize) -> DataError {
        self.invalid(line, format!("there is no picture {name} in the folder"))
    }

    /// # Errors
    /// Returns an error if a line is left whose picture was not found.
    pub(super) fn check_used(&self) -> Result<(), DataError> {
        match self.entries.first_key_value() {
            Some((name, entry)) => Err(self.no_picture(name, entry.line)),
            None => Ok(()),
        }
    }
}

/// The path of `file_name` below the folder, with `/` between its parts, or why it is refused.
fn relative(file_name: &str) -> Result<String, String> {
    let drive = file_name.chars().next().is_some_and(|first| first.is_ascii_alphabetic())
        && [":/", ":\\"].iter().any(|sign| file_name[1..].starts_with(sign));
    if file_name.starts_with(['/', '\\']) || drive {
        return Err(format!(
            "{file_name} is an absolute path; write it relative to the folder of metadata.jsonl"
        ));
    }
    let mut parts = Vec::new();
    for part in file_name.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => {
                return Err(format!(
                    "{file_name} leads out of the folder by `..`; move the picture into the folder"
                ));
            }
            part if part.starts_with('.') => {
                return Err(format!(
                    "{file_name} is a hidden file, which is no picture; remove the line or rename it"
                ));
            }
            part => parts.push(part),
        }
    }
    match parts.is_empty() {
        true => Err("`file_name` is empty".to_owned()),
        false => Ok(parts.join("/")),
    }
}

/// `name` in the composed normal form of Unicode (NFC).
pub(super) fn composed(name: &str) -> String {
    name.nfc().map(|(char, _)| char).collect()
}

/// `name` as it is and, where they differ, in the composed and the decomposed form of Unicode.
pub(super) fn normal_forms(name: &str) -> Vec<String> {
    let mut forms = vec![name.to_owned()];
    if name.is_ascii() {
        return forms;
    }
    for form in [composed(name), name.nfd().map(|(char, _)| char).collect()] {
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// The caption in the text file beside an image.
pub(super) fn read_caption_file(image: &Path) -> Result<Option<String>, TrainError> {
    let Some(path) = caption_file(image) else { return Ok(None) };
    Ok(Some(read_text(&path, SizeLimit::CAPTION)?.trim().to_owned()))
}

/// The text file beside an image, if there is one.
pub(super) fn caption_file(image: &Path) -> Option<PathBuf> {
    let stem = image.file_stem().and_then(|stem| stem.to_str());
    let forms = stem.map_or_else(Vec::new, normal_forms);
    // kohya's scripts write `.caption` by default. Where both are, the one of most tools counts.
    let ends = ["txt", "TXT", "caption"];
    let beside = ends.iter().flat_map(|end| {
        forms.iter().map(move |stem| image.with_file_name(format!("{stem}.{end}")))
    });
    // A name that is no UTF-8 has one form only.
    let mut all = beside.chain(["txt", "caption"].map(|end| image.with_extension(end)));
    all.find(|path| path.exists())
}

/// The content of `subject.json` or `style.json`. A key of another name is an error.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubjectFile {
    pub(super) identifier: Option<String>,
    pub(super) class: Option<String>,
    pub(super) phrase: Option<String>,
    #[serde(default)]
    pub(super) eval_prompts: Vec<String>,
    // Words for people and other programs, which training does not read.
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "description")]
    _description: Option<IgnoredAny>,
    #[serde(rename = "instance_prompt")]
    _instance_prompt: Option<IgnoredAny>,
    #[serde(rename = "class_prompt")]
    _class_prompt: Option<IgnoredAny>,
}

impl SubjectFile {
    pub(super) fn read(folder: &Path) -> Result<Self, TrainError> {
        for name in ["subject.json", "style.json"] {
            let path = folder.join(name);
            if path.exists() {
                let text = read_text(&path, SizeLimit::SETTINGS)?;
                return serde_json::from_str(&text).map_err(|error| {
                    let (line, reason) = (error.line(), error.to_string());
                    DataError::Metadata { path, line, reason }.into()
                });
            }
        }
        Ok(Self::default())
    }

    /// The words that name the subject in a prompt.
    pub(super) fn trigger(&self) -> Vec<String> {
        match (&self.identifier, &self.class, &self.phrase) {
            (_, _, Some(phrase)) => vec![phrase.clone()],
            (Some(identifier), Some(class), None) => vec![format!("{identifier} {class}")],
            (Some(identifier), None, None) => vec![identifier.clone()],
            (None, _, None) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn misspelt_keys_are_named_and_other_columns_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let lines = |text: &str| {
            std::fs::write(Metadata::path_in(folder.path()), text).unwrap();
            Metadata::read(folder.path()).map(|read| read.entries.len())
        };
        let other = r#"{"file_name": "0.png", "text": "a", "repeats": 2, "artist": ["b"]}"#;
        assert_eq!(lines(other).unwrap(), 1);
        let misspelt = r#"{"file_name": "0.png", "text": "a", "repeat": 2}"#;
        let message = lines(misspelt).unwrap_err().to_string();
        assert!(message.contains("did you mean `repeats` by `repeat`"), "{message}");

        let subject = |text: &str| {
            std::fs::write(folder.path().join("subject.json"), text).unwrap();
            SubjectFile::read(folder.path()).map(|read| read.trigger())
        };
        let known = r#"{"name": "m", "class": "mug", "identifier": "sks", "description": "red"}"#;
        assert_eq!(subject(known).unwrap(), ["sks mug"]);
        let message = subject(r#"{"identifer": "sks"}"#).unwrap_err().to_string();
        assert!(message.contains("identifer"), "{message}");
    }

    #[test]
    fn file_names_are_paths_below_the_folder() {
        for (name, expected) in [
            ("0.png", "0.png"),
            ("./0.png", "0.png"),
            ("Cat//./0.jpg", "Cat/0.jpg"),
            ("Cat\\0.jpg", "Cat/0.jpg"),
            ("é:/0.png", "é:/0.png"),
        ] {
            assert_eq!(relative(name).unwrap(), expected);
        }
        for (name, reason) in [
            ("/home/0.png", "absolute"),
            ("\\\\server\\0.png", "absolute"),
            ("C:\\0.png", "absolute"),
            ("c:/0.png", "absolute"),
            ("../0.png", "leads out"),
            ("a/../../0.png", "leads out"),
            ("a/._0.png", "hidden"),
            (".", "empty"),
            ("", "empty"),
        ] {
            let refused = relative(name).unwrap_err();
            assert!(refused.contains(reason), "{name}: {refused}");
        }
    }
}
