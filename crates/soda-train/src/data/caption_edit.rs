//! Writing of the caption of one image, where the folder has it.

use std::path::Path;

use serde_json::Value;
use soda_models::input_file::SizeLimit;

use crate::data::metadata::{Metadata, caption_file};
use crate::data::text_file::read_text;
use crate::error::{DataError, TrainError};

/// Writes the caption of an image of the data folder `folder`, whole or not at all.
///
/// The caption goes where [`Dataset::read`](crate::Dataset::read) takes it from: into the image's line of
/// `metadata.jsonl`, or else into the text file beside the image, which is created if it is missing. Other
/// lines and other fields of a line stay as they are.
///
/// # Errors
/// Returns an error if a file cannot be read or written, or if a line of `metadata.jsonl` does not parse.
pub fn write_caption(folder: &Path, image: &Path, caption: &str) -> Result<(), TrainError> {
    let parent = image.parent().unwrap_or(folder);
    for of in [parent, folder] {
        let Ok(name) = image.strip_prefix(of) else { continue };
        let name = name.to_string_lossy().replace('\\', "/");
        if let Some(entry) = Metadata::read(of)?.take(&name) {
            return write_line(&Metadata::path_in(of), entry.line, caption);
        }
    }
    let path = caption_file(image).unwrap_or_else(|| image.with_extension("txt"));
    write(&path, &format!("{caption}\n"))
}

/// Replaces the `text` of the line with this number, from 1.
fn write_line(path: &Path, number: usize, caption: &str) -> Result<(), TrainError> {
    let text = read_text(path, SizeLimit::LIST)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let invalid =
        |reason: String| DataError::Metadata { path: path.to_owned(), line: number, reason };
    let line = lines.get_mut(number - 1).ok_or_else(|| invalid("the line is gone".to_owned()))?;
    let mut fields: Value =
        serde_json::from_str(line).map_err(|error| invalid(error.to_string()))?;
    fields["text"] = caption.into();
    *line = fields.to_string();
    write(path, &(lines.join("\n") + "\n"))
}

fn write(path: &Path, text: &str) -> Result<(), TrainError> {
    soda_files::write(path, text.as_bytes()).map_err(TrainError::io("write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;
    use crate::data::dataset::Dataset;
    use crate::testing::folder;

    /// Whatever the place of a caption, the next run takes the written one, and no other caption changes.
    #[test]
    fn a_written_caption_is_the_one_that_is_read() {
        let folder = folder(&[
            ("a.png", ""),
            ("b.png", ""),
            ("b.caption", "beside"),
            ("c.png", ""),
            ("sub/d.png", ""),
            ("3_x/e.png", ""),
            ("3_x/metadata.jsonl", "{\"file_name\": \"e.png\", \"text\": \"inner\"}"),
            (
                "metadata.jsonl",
                "{\"file_name\": \"a.png\", \"text\": \"listed\", \"repeats\": 2}\n\n\
                 {\"file_name\": \"sub/d.png\", \"text\": \"nested\"}\n",
            ),
        ]);
        let root = folder.path();
        let read = || Dataset::read(root, Some("for all")).unwrap().examples;
        let count = read().len();
        assert_eq!(count, 5);
        for index in 0..count {
            let before = read();
            let caption = format!("new \"caption\" {index}, grün");
            write_caption(root, &before[index].image, &caption).unwrap();
            let after = read();
            assert_eq!(after[index].caption, caption);
            assert_eq!(after[index].repeats, before[index].repeats);
            let others =
                |all: Vec<_>| all.into_iter().enumerate().filter(move |(i, _)| *i != index);
            assert!(others(before).eq(others(after)), "{index}");
        }
        let list = std::fs::read_to_string(root.join("metadata.jsonl")).unwrap();
        assert_eq!(list.lines().count(), 3);
        assert!(root.join("c.txt").is_file() && !root.join("a.txt").exists());
        assert!(!root.join("b.txt").exists(), "the caption of b is in b.caption");
    }
}
