//! Learnt words (Textual Inversion) of other tools, in and out.
//!
//! | layout | names | from | word |
//! |---|---|---|---|
//! | diffusers | the word alone | `save_textual_inversion` | the name |
//! | kohya, SD 1.x and 2.x | `emb_params` | `train_textual_inversion.py` | the file's name |
//! | kohya, OneTrainer, SDXL | `clip_l`, `clip_g` | the same | the file's name |
//! | bundled with a LoRA | `bundle_emb.<word>.string_to_param.*`, `bundle_emb.<word>.clip_l` | LyCORIS, OneTrainer | in the name |
//!
//! Vectors are `[k, width]`, or `[width]` of a word with one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;

use crate::component::Component;
use crate::error::AdapterError;
use crate::file::WordVectors;
use crate::tensors::Tensors;

/// Prefix of words in a LoRA's file.
const BUNDLE: &str = "bundle_emb.";

/// Names of a word's vectors in files that are called after the word.
const NAMES: &[(&str, Component)] = &[
    ("emb_params", Component::TextEncoder),
    ("string_to_param.*", Component::TextEncoder),
    ("clip_l", Component::TextEncoder),
    ("clip_g", Component::TextEncoder2),
];

/// The word that a tensor of the file `path` is of, and the text encoder, by its name; `alone` says that the file has
/// no other tensor.
pub(super) fn parse(key: &str, path: &Path, alone: bool) -> Option<(String, Component)> {
    let of = |name: &str| NAMES.iter().find(|(known, _)| *known == name).map(|(_, of)| *of);
    if let Some((word, name)) = key.strip_prefix(BUNDLE).and_then(|rest| rest.split_once('.')) {
        return Some((word.to_owned(), of(name)?));
    }
    match of(key) {
        Some(component) => {
            let stem = path.file_stem().and_then(|stem| stem.to_str())?;
            Some((stem.to_owned(), component))
        }
        None if alone => Some((key.to_owned(), Component::TextEncoder)),
        None => None,
    }
}

/// A word's vectors as `[k, width]`.
pub(super) fn vectors(data: TensorData) -> Option<TensorData> {
    match *data.shape().as_slice() {
        [width] => Some(TensorData::new(data.iter::<f32>().collect(), [1, width])),
        [_, _] => Some(data),
        _ => None,
    }
}

/// Writes each word as `<word>.safetensors` into `folder`: for one text encoder in diffusers' layout, which A1111 and
/// ComfyUI read as well, for two in that of kohya. The files' paths.
///
/// # Errors
/// What the operating system says.
pub fn write_embeddings(
    words: &BTreeMap<String, WordVectors>,
    folder: &Path,
) -> Result<Vec<PathBuf>, AdapterError> {
    let io = |source| AdapterError::Io { action: "create", path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    let write = |(word, vectors): (&String, &WordVectors)| {
        let one = vectors.len() == 1;
        let name = |component: &Component| match NAMES[2..].iter().find(|(_, of)| of == component) {
            Some((name, _)) if !one => (*name).to_owned(),
            _ => word.clone(),
        };
        let tensors = vectors.iter().map(|(of, data)| (name(of), data.clone())).collect();
        let path = folder.join(format!("{}.safetensors", file_stem(word)));
        Tensors { tensors, metadata: HashMap::new() }.write(&path).map(|()| path)
    };
    words.iter().map(write).collect()
}

/// The word without what no file's name may hold everywhere: `<mug>` is `mug`, by which A1111 and ComfyUI call it up.
fn file_stem(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let stem: String = word.chars().filter(|c| plain(*c)).collect();
    if stem.is_empty() { "word".to_owned() } else { stem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_every_layout() {
        let path = Path::new("folder/mug.safetensors");
        let [first, second] = [Component::TextEncoder, Component::TextEncoder2];
        for (key, alone, expected) in [
            ("<mug>", true, Some(("<mug>", first))),
            ("<mug>", false, None),
            ("emb_params", true, Some(("mug", first))),
            ("clip_l", false, Some(("mug", first))),
            ("clip_g", false, Some(("mug", second))),
            ("bundle_emb.<cup>.string_to_param.*", false, Some(("<cup>", first))),
            ("bundle_emb.cup.clip_g", false, Some(("cup", second))),
            ("bundle_emb.cup.step", false, None),
        ] {
            let expected = expected.map(|(word, of): (&str, _)| (word.to_owned(), of));
            assert_eq!(parse(key, path, alone), expected, "{key}");
        }
    }
}
