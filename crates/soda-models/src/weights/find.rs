//! The weight files of a part of a model: plain or of a variant, whole or in several files.

use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, is_pickle};
use crate::error::{ModelError, WeightsError};

impl Checkpoint {
    /// Opens the weights named `stem` in `dir`, in one file or several.
    ///
    /// `variant` selects files such as `fp16`. Without it the plain files are opened, or else the only
    /// variant there is.
    ///
    /// # Errors
    ///
    /// - The errors of [`Checkpoint::open`].
    /// - [`ModelError::InvalidRequest`] if there are several variants and none is selected.
    /// - [`WeightsError::Pickle`] if the directory has pickles only.
    pub fn find(dir: &Path, stem: &str, variant: Option<&str>) -> Result<Self, ModelError> {
        if let Some(found) = existing(dir, stem, variant) {
            return Self::open(&found);
        }
        let names: Vec<String> = std::fs::read_dir(dir)
            .map_err(|e| ModelError::io(dir, "a directory of weights", e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(stem))
            .collect();
        let mut variants = names.iter().filter(|name| is_variant(name, stem));
        match (variant, variants.next(), variants.next()) {
            (None, Some(only), None) => return Self::open(&dir.join(only)),
            (None, Some(one), Some(other)) => {
                return Err(ModelError::InvalidRequest {
                    field: "variant",
                    value: "not given".to_string(),
                    expected: format!("{} has several: {one}, {other}", dir.display()),
                });
            }
            _ => {}
        }
        if let Some(pickle) = names.iter().find(|name| is_pickle(Path::new(name))) {
            return Err(WeightsError::Pickle { path: dir.join(pickle) }.into());
        }
        let [path, _] = candidates(dir, stem, variant);
        Err(ModelError::Missing { path, what: "a weight file" })
    }

    /// Whether `dir` has the weights named `stem` in `variant`, or the plain ones for `None`.
    pub(crate) fn exists(dir: &Path, stem: &str, variant: Option<&str>) -> bool {
        existing(dir, stem, variant).is_some()
    }
}

/// The files that the weights named `stem` can be in: one for all, or the index of several.
fn candidates(dir: &Path, stem: &str, variant: Option<&str>) -> [PathBuf; 2] {
    let variant = variant.map_or_else(String::new, |name| format!(".{name}"));
    [
        dir.join(format!("{stem}{variant}.safetensors")),
        dir.join(format!("{stem}.safetensors.index{variant}.json")),
    ]
}

fn existing(dir: &Path, stem: &str, variant: Option<&str>) -> Option<PathBuf> {
    candidates(dir, stem, variant).into_iter().find(|path| path.is_file())
}

/// Whether `name` is a whole file or an index of a variant, and not one of several files.
fn is_variant(name: &str, stem: &str) -> bool {
    let index = format!("{stem}.safetensors.index.");
    if name.starts_with(&index) {
        return name.ends_with(".json");
    }
    let variant = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'));
    variant.and_then(|rest| rest.strip_suffix(".safetensors")).is_some_and(|variant| {
        // `fp16-00001-of-00002`
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let shard = variant.rsplit_once("-of-").is_some_and(|(first, count)| {
            number(count) && first.rsplit_once('-').is_some_and(|(_, first)| number(first))
        });
        !shard
    })
}
