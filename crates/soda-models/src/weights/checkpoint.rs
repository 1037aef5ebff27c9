//! The tensors of a network in one weight file or several, under the network's keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use crate::error::{ConfigError, ModelError, WeightsError};
use crate::input_file::{SizeLimit, read_text};
use crate::weights::keys::KEY_RENAMES;
use crate::weights::safetensors::{Entry, SafetensorsReader};

/// Open weight files. The headers are read; the tensors are read when a module is loaded.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file that was opened: a weight file, or the index of several.
    pub path: PathBuf,
    /// The tensors by the network's keys.
    pub(crate) entries: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a safetensors file, or an index `*.safetensors.index*.json` with the files that it names.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if a file is missing, broken or a pickle, or if an index names files outside its
    /// directory or tensors that are not there.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let entries = match path.extension() {
            Some(extension) if extension == "json" => open_shards(path)?,
            _ => SafetensorsReader::open(path)?.into_entries(),
        };
        Ok(Self { path: path.to_path_buf(), entries })
    }

    /// Renames the keys by (regular expression, replacement), applied in order.
    ///
    /// # Panics
    ///
    /// If a regular expression does not parse.
    pub fn with_renamed_keys(mut self, table: &[(&str, &str)]) -> Self {
        for (from, to) in table {
            let from = Regex::new(from).expect("a regular expression of a table");
            let renamed = self.entries.into_iter().map(|(key, entry)| {
                let key = from.replace(&key, *to).into_owned();
                (key, entry)
            });
            self.entries = renamed.collect();
        }
        self
    }
}

/// Whether a file has the extension of a PyTorch pickle.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|name| ["bin", "ckpt", "pt", "pth"].contains(&name))
}

/// Opens the files of an index.
fn open_shards(path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let io = |e| ModelError::io(path, "an index of weight files", e);
    let broken = |reason: String| {
        ModelError::from(WeightsError::Safetensors { path: path.to_path_buf(), reason })
    };
    let text = read_text(path, SizeLimit::INDEX).map_err(io)?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|source| ConfigError::Json { path: path.to_path_buf(), source })?;
    let dir = path.parent().unwrap_or(Path::new("."));

    let mut shards: BTreeMap<&String, BTreeMap<String, Entry>> = BTreeMap::new();
    for name in index.weight_map.values() {
        if shards.contains_key(name) {
            continue;
        }
        // Only file names are accepted: an index may come from a stranger and must not reach other folders.
        let plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        if !plain || name.contains(['/', '\\']) {
            return Err(broken(format!("it points to {name:?}, which is no file beside it")));
        }
        shards.insert(name, SafetensorsReader::open(&dir.join(name))?.into_entries());
    }
    let mut entries = BTreeMap::new();
    for (key, name) in &index.weight_map {
        match shards.get_mut(name).and_then(|shard| shard.remove(key)) {
            Some(entry) => entries.insert(key.clone(), entry),
            None => {
                return Err(broken(format!("it says that `{key}` is in {name}, but it is not")));
            }
        };
    }
    Ok(entries)
}

/// Opens a file with its keys renamed by `renames` and then by [`KEY_RENAMES`].
pub(crate) fn open_renamed(
    path: &Path,
    renames: &[(&str, &str)],
) -> Result<Checkpoint, ModelError> {
    Ok(Checkpoint::open(path)?.with_renamed_keys(renames).with_renamed_keys(KEY_RENAMES))
}
