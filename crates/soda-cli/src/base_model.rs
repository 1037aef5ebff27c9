//! Finds a base model by its path or by its name on a hub.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// Returns the directory or file of `base`: the path if it exists, otherwise the model of this name on the
/// hub.
///
/// Downloads the model if the cache lacks it.
///
/// # Errors
/// No model has this name, or the download fails.
#[cfg(feature = "hub")]
pub(crate) fn find_base(base: &Path, variant: Option<&str>) -> Result<PathBuf> {
    let name = base.to_str().filter(|name| !base.exists() && soda_hub::is_repo_id(name));
    let Some(name) = name else { return Ok(base.to_owned()) };
    let mut progress = crate::progress::Progress::default();
    let found =
        soda_hub::Hub::from_env()?.snapshot_download(name, variant, &mut |file, done, total| {
            progress.transfer(file, done, total)
        });
    progress.finish();
    Ok(found?)
}

/// Returns the path itself, since this build has no hub.
#[cfg(not(feature = "hub"))]
pub(crate) fn find_base(base: &Path, _variant: Option<&str>) -> Result<PathBuf> {
    Ok(base.to_owned())
}

/// Whether `base` is a path that exists or the name of a model on a hub.
pub(crate) fn is_path_or_name(base: &Path) -> bool {
    #[cfg(feature = "hub")]
    let named = base.to_str().is_some_and(soda_hub::is_repo_id);
    #[cfg(not(feature = "hub"))]
    let named = false;
    named || base.exists()
}
