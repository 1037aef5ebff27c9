//! The name of a model directory.

use std::path::Path;

/// The name of the model in `dir`: `owner/name` for a snapshot in a hub's cache, whose directories are named
/// after commits. Otherwise the directory's name.
///
/// ```
/// use std::path::Path;
///
/// use soda_models::pipeline::model_name;
///
/// assert_eq!(model_name(Path::new("models/mug")), "mug");
/// assert_eq!(model_name(Path::new("hub/models--owner--name/snapshots/0a1b2c")), "owner/name");
/// ```
pub fn model_name(dir: &Path) -> String {
    let mut above = dir.ancestors().filter_map(|dir| dir.file_name()?.to_str());
    let last = above.next().unwrap_or_default();
    let repository = match (above.next(), above.next()) {
        (Some("snapshots"), Some(folder)) => folder.strip_prefix("models--"),
        _ => None,
    };
    repository.map_or_else(|| last.to_owned(), |name| name.replacen("--", "/", 1))
}
