//! The text files of a data folder: captions, repeats, and settings for evaluation.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use soda_models::input_file::{SizeLimit, read_text};

use crate::error::{DataError, TrainError};

/// A line of `metadata.jsonl`.
pub(super) struct MetadataEntry {
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) repeats: Option<usize>,
}

/// The lines of `metadata.jsonl` by file name. Empty if the folder has no such file.
pub(super) fn read_metadata(folder: &Path) -> Result<BTreeMap<String, MetadataEntry>, TrainError> {
    #[derive(Deserialize)]
    struct Line {
        file_name: String,
        text: String,
        repeats: Option<usize>,
    }
    let path = folder.join("metadata.jsonl");
    let mut entries = BTreeMap::new();
    if !path.exists() {
        return Ok(entries);
    }
    let text = read_text(&path, SizeLimit::LIST).map_err(TrainError::io("read", &path))?;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let invalid =
            |reason: String| DataError::Metadata { path: path.clone(), line: index + 1, reason };
        let Line { file_name, text, repeats } = serde_json::from_str(line).map_err(|error| {
            invalid(format!("expected {{\"file_name\": ..., \"text\": ...}}: {error}"))
        })?;
        if repeats == Some(0) {
            return Err(invalid("`repeats` is 0; remove the picture instead".to_owned()).into());
        }
        entries.insert(file_name, MetadataEntry { line: index + 1, text, repeats });
    }
    Ok(entries)
}

/// The caption in the text file beside an image.
pub(super) fn read_caption_file(image: &Path) -> Result<Option<String>, TrainError> {
    let path = image.with_extension("txt");
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(&path, SizeLimit::CAPTION).map_err(TrainError::io("read", &path))?;
    Ok(Some(text.trim().to_owned()))
}

/// The content of `subject.json` or `style.json`.
#[derive(Default, Deserialize)]
pub(super) struct SubjectFile {
    pub(super) identifier: Option<String>,
    pub(super) class: Option<String>,
    pub(super) phrase: Option<String>,
    #[serde(default)]
    pub(super) eval_prompts: Vec<String>,
}

impl SubjectFile {
    pub(super) fn read(folder: &Path) -> Result<Self, TrainError> {
        for name in ["subject.json", "style.json"] {
            let path = folder.join(name);
            if path.exists() {
                let text =
                    read_text(&path, SizeLimit::SETTINGS).map_err(TrainError::io("read", &path))?;
                return serde_json::from_str(&text).map_err(|error| {
                    let (line, reason) = (error.line(), error.to_string());
                    DataError::Metadata { path, line, reason }.into()
                });
            }
        }
        Ok(Self::default())
    }
}
