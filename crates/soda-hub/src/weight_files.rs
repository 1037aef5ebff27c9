//! The weight files of one component: their variants and their shards.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::HubError;

/// The file name extensions of Python pickles.
const PICKLE_EXTENSIONS: &[&str] = &[".bin", ".ckpt", ".pt", ".pth"];

/// The plain names of the files in the subfolder of a component.
pub(crate) struct Component<'a> {
    pub(crate) repo_id: &'a str,
    pub(crate) subfolder: &'a str,
    /// The name of weight files without variant and extension.
    pub(crate) stem: &'a str,
    pub(crate) files: &'a [String],
}

impl Component<'_> {
    /// The variants of the weights; `None` is that of the plain files.
    pub(crate) fn variants(&self) -> BTreeSet<Option<&str>> {
        self.files.iter().filter_map(|file| entry_variant(file, self.stem)).collect()
    }

    /// Selects the weights of one variant: one file, or else a shard index and its shards.
    ///
    /// A variant that this component lacks gives way to the plain files. Without a variant, the plain files
    /// are selected, or else the only variant there is.
    ///
    /// # Errors
    ///
    /// - [`HubError::PickleOnly`] if all weights are pickles.
    /// - [`HubError::NoWeights`] if no variant can be selected.
    /// - [`HubError::MissingShards`] if an index has too few shards.
    pub(crate) fn weights(&self, variant: Option<&str>) -> Result<Vec<String>, HubError> {
        let present = self.variants();
        let only = present.first().copied().filter(|_| variant.is_none() && present.len() == 1);
        let selected = [variant, None].into_iter().find(|choice| present.contains(choice)).or(only);
        let Some(selected) = selected else { return Err(self.no_weights(variant)) };

        let entries =
            || self.files.iter().filter(|file| entry_variant(file, self.stem) == Some(selected));
        if let Some(whole) = entries().find(|file| file.ends_with(".safetensors")) {
            return Ok(vec![whole.clone()]);
        }
        let mut files: Vec<String> = entries().cloned().collect();
        files.extend(self.shards(selected)?);
        Ok(files)
    }

    fn no_weights(&self, variant: Option<&str>) -> HubError {
        let (repo_id, subfolder) = (self.repo_id.to_owned(), self.subfolder.to_owned());
        let is_pickle = |file: &String| PICKLE_EXTENSIONS.iter().any(|end| file.ends_with(end));
        let is_entry = |file: &&String| entry_variant(file, self.stem).is_some();
        let found: Vec<String> = self.files.iter().filter(is_entry).cloned().collect();
        if found.is_empty() && self.files.iter().any(is_pickle) {
            return HubError::PickleOnly { repo_id, subfolder };
        }
        HubError::NoWeights { repo_id, subfolder, variant: variant.map(str::to_owned), found }
    }

    /// The shards of a variant. The two ways to name them are two sets, one of which has to be complete.
    fn shards(&self, variant: Option<&str>) -> Result<Vec<String>, HubError> {
        let mut sets: BTreeMap<(bool, usize), BTreeSet<usize>> = BTreeMap::new();
        let mut files = Vec::new();
        for file in self.files {
            if let Some(shard) = Shard::parse(file, self.stem).filter(|s| s.variant == variant) {
                sets.entry((shard.is_before, shard.count)).or_default().insert(shard.number);
                files.push(file.clone());
            }
        }
        let is_complete = |(set, numbers): (&(bool, usize), &BTreeSet<usize>)| {
            numbers.len() == set.1 && numbers.first() == Some(&1) && numbers.last() == Some(&set.1)
        };
        if sets.iter().any(is_complete) {
            return Ok(files);
        }
        let fullest = sets.iter().max_by_key(|(_, numbers)| numbers.len());
        let (expected, found) =
            fullest.map_or((1, 0), |((_, count), numbers)| (*count, numbers.len()));
        Err(HubError::MissingShards {
            repo_id: self.repo_id.to_owned(),
            subfolder: self.subfolder.to_owned(),
            found,
            expected,
        })
    }
}

/// Returns the variant of a file that leads to all weights: the whole weights, or an index of shards.
///
/// The outer `None` means that `file` is neither, the inner that it has no variant.
fn entry_variant<'a>(file: &'a str, stem: &str) -> Option<Option<&'a str>> {
    let rest = file.strip_prefix(stem)?;
    let middle = match rest.strip_prefix(".safetensors.index") {
        Some(rest) => rest.strip_suffix(".json")?,
        None => rest.strip_suffix(".safetensors")?,
    };
    match middle {
        "" => Some(None),
        middle => {
            let variant = middle.strip_prefix('.')?;
            (!variant.is_empty() && !variant.contains("-of-")).then_some(Some(variant))
        }
    }
}

/// A shard, as `model.fp16-00001-of-00002` or `model-00001-of-00002.fp16`.
struct Shard<'a> {
    /// Whether the variant is before the numbers.
    is_before: bool,
    variant: Option<&'a str>,
    number: usize,
    count: usize,
}

impl<'a> Shard<'a> {
    fn parse(file: &'a str, stem: &str) -> Option<Self> {
        let middle = file.strip_prefix(stem)?.strip_suffix(".safetensors")?;
        let (before, count) = middle.split_once("-of-")?;
        let (before, number) = before.rsplit_once('-')?;
        let (count, after) = match count.split_once('.') {
            Some((count, after)) => (count, Some(after)),
            None => (count, None),
        };
        let (is_before, variant) = match (before, after) {
            ("", after) => (false, after),
            (before, None) => (true, Some(before.strip_prefix('.')?)),
            _ => return None,
        };
        Some(Self { is_before, variant, number: number.parse().ok()?, count: count.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Component, HubError};

    fn weights(files: &[&str], variant: Option<&str>) -> Result<Vec<String>, HubError> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        let (repo_id, subfolder, stem) = ("owner/name", "unet", "model");
        Component { repo_id, subfolder, stem, files: &files }.weights(variant)
    }

    #[test]
    fn shards_follow_their_index() {
        let files = [
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.fp16.json",
            "model.fp16-00001-of-00001.safetensors",
            "model-00001-of-00001.fp16.safetensors",
        ];
        assert_eq!(weights(&files, None).unwrap(), files[..3]);
        assert_eq!(weights(&files, Some("fp16")).unwrap(), files[3..]);
        // The only variant there is, in shards.
        assert_eq!(weights(&files[3..], None).unwrap(), files[3..]);
        assert_eq!(weights(&files[3..5], None).unwrap(), files[3..5]);
    }

    #[test]
    fn a_whole_file_is_preferred_to_shards() {
        let files = [
            "model.fp16-00001-of-00001.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.index.fp16.json",
        ];
        for variant in [None, Some("fp16")] {
            assert_eq!(weights(&files, variant).unwrap(), files[1..2]);
        }
    }

    #[test]
    fn missing_shards_are_counted() {
        let index = "model.safetensors.index.json";
        for (files, expected) in [
            (&[index][..], "0 of the 1"),
            (&[index, "model-00002-of-00003.safetensors"], "1 of the 3"),
            (&[index, "model-00001-of-00002.fp16.safetensors"], "0 of the 1"),
            (&[index, "model-00003-of-00001.safetensors"], "1 of the 1"),
        ] {
            let error = weights(files, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_variant_gives_way_to_the_plain_file_only() {
        let both = ["model.safetensors", "model.fp16.safetensors"];
        assert_eq!(weights(&both, Some("fp16")).unwrap(), both[1..]);
        assert_eq!(weights(&both[..1], Some("fp16")).unwrap(), both[..1]);
        assert!(weights(&both[1..], Some("bf16")).unwrap_err().to_string().contains("bf16"));
        let several = ["model.ema.safetensors", both[1]];
        assert!(weights(&several, None).unwrap_err().to_string().contains("--variant"));
    }
}
