//! Embeddings (Textual Inversion) in the files of other tools.
//!
//! | layout | tensor names | written by | token |
//! |---|---|---|---|
//! | diffusers | the token | `save_textual_inversion` | the tensor name |
//! | kohya, SD 1.x and 2.x | `emb_params` | `train_textual_inversion.py` | the file name |
//! | kohya, OneTrainer, SDXL | `clip_l`, `clip_g` | `sdxl_train_textual_inversion.py` | the file name |
//! | in a LoRA file | `bundle_emb.<token>.` and a name | LyCORIS, OneTrainer | in the tensor name |
//!
//! The names after `bundle_emb.<token>.` are `string_to_param.*`, `clip_l` and `clip_g`.
//!
//! The vectors are `[k, width]`, or `[width]` for a single vector.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};

use super::key_names::is_of_adapter;
use super::staging::write_folder;
use crate::component::Component;
use crate::error::PipelineError;
use crate::file::EmbeddingVectors;
use crate::safetensors_file::SafetensorsFile;

/// Prefix of embeddings in a LoRA's file.
const BUNDLE: &str = "bundle_emb.";

/// Tensor names in files that are named after the token.
const NAMES: &[(&str, Component)] = &[
    ("emb_params", Component::TextEncoder),
    ("string_to_param.*", Component::TextEncoder),
    ("clip_l", Component::TextEncoder),
    ("clip_g", Component::TextEncoder2),
];

/// Returns token and text encoder of a tensor with the name `key` in the file `path`; `None` for another
/// tensor.
///
/// `alone` means that the file has no other tensor, as diffusers' files.
pub(super) fn parse(key: &str, path: &Path, alone: bool) -> Option<(String, Component)> {
    let encoder = |name: &str| {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, component)| *component)
    };
    if let Some((token, name)) = key.strip_prefix(BUNDLE).and_then(|rest| rest.split_once('.')) {
        return Some((token.to_owned(), encoder(name)?));
    }
    match encoder(key) {
        Some(component) => {
            let stem = path.file_stem().and_then(|stem| stem.to_str())?;
            Some((stem.to_owned(), component))
        }
        None if alone && !is_of_adapter(key) => Some((key.to_owned(), Component::TextEncoder)),
        None => None,
    }
}

/// Converts the vectors of an embedding to `[k, width]`; `None` for another rank.
pub(super) fn vectors(data: TensorData) -> Option<TensorData> {
    match *data.shape().as_slice() {
        [width] => Some(TensorData::new(data.iter::<f32>().collect(), [1, width])),
        [_, _] => Some(data),
        _ => None,
    }
}

/// Writes each embedding as `<token>.safetensors` into a new `folder`, and returns the paths.
///
/// Embeddings for one text encoder are in diffusers' layout, which A1111 and ComfyUI read too. Embeddings for
/// two text encoders are in the layout of kohya's scripts. The folder appears whole or not at all.
///
/// # Errors
/// [`PipelineError::Format`] for a `folder` that exists, or with the reason from the operating system.
pub fn write_embeddings(
    embeddings: &BTreeMap<String, EmbeddingVectors>,
    folder: &Path,
) -> Result<Vec<PathBuf>, PipelineError> {
    write_folder(folder, |staging| {
        let mut stems: Vec<String> = Vec::new();
        for (token, vectors) in embeddings {
            let one_encoder = vectors.len() == 1;
            let name = |component: &Component| match NAMES[2..]
                .iter()
                .find(|(_, encoder)| encoder == component)
            {
                Some((name, _)) if !one_encoder => (*name).to_owned(),
                _ => token.clone(),
            };
            let tensors =
                vectors.iter().map(|(component, data)| (name(component), data.clone())).collect();
            let stem = new_stem(token, &stems);
            let path = staging.join(format!("{stem}.safetensors"));
            SafetensorsFile { tensors, metadata: HashMap::new() }.write_as(&path, DType::F32)?;
            stems.push(stem);
        }
        Ok(stems.iter().map(|stem| folder.join(format!("{stem}.safetensors"))).collect())
    })
}

/// The name of a token's file, with a number if an earlier token has the name already. Some file systems
/// ignore case.
fn new_stem(token: &str, taken: &[String]) -> String {
    let stem = file_stem(token);
    let is_free =
        |name: &String| taken.iter().all(|other| other.to_lowercase() != name.to_lowercase());
    let numbered = (2..).map(|number| format!("{stem}-{number}"));
    std::iter::once(stem.clone()).chain(numbered).find(is_free).unwrap_or(stem)
}

/// Removes the characters that some file systems refuse: `<mug>` becomes `mug`, the name in A1111 and
/// ComfyUI.
fn file_stem(token: &str) -> String {
    let allowed = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let stem: String = token.chars().filter(|c| allowed(*c)).collect();
    if stem.is_empty() { "word".to_owned() } else { stem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_are_found_in_every_layout() {
        let path = Path::new("folder/mug.safetensors");
        let [first, second] = [Component::TextEncoder, Component::TextEncoder2];
        for (key, alone, expected) in [
            ("<mug>", true, Some(("<mug>", first))),
            ("<mug>", false, None),
            ("lora_unet_conv_in.diff", true, None),
            ("unet.conv_in.weight", true, None),
            ("emb_params", true, Some(("mug", first))),
            ("clip_l", false, Some(("mug", first))),
            ("clip_g", false, Some(("mug", second))),
            ("bundle_emb.<cup>.string_to_param.*", false, Some(("<cup>", first))),
            ("bundle_emb.cup.clip_g", false, Some(("cup", second))),
            ("bundle_emb.cup.step", false, None),
        ] {
            let expected =
                expected.map(|(token, component): (&str, _)| (token.to_owned(), component));
            assert_eq!(parse(key, path, alone), expected, "{key}");
        }
    }

    #[test]
    fn words_with_the_same_letters_have_files_of_their_own() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let vectors = |value: f32| -> EmbeddingVectors {
            [(Component::TextEncoder, TensorData::from([[value]]))].into()
        };
        let words = [("<mug>", 1.0), ("Mug", 2.0), ("mug", 3.0)];
        let embeddings =
            words.map(|(word, value)| (word.to_owned(), vectors(value))).into_iter().collect();
        let paths = write_embeddings(&embeddings, &root.path().join("words")).expect("new files");
        assert_eq!(paths.len(), 3);
        for (path, (word, value)) in paths.iter().zip(words) {
            let file = SafetensorsFile::read(path).expect("a file of a word");
            assert_eq!(file.tensors[word], TensorData::from([[value]]), "{}", path.display());
        }
    }
}
