//! Where a base model lies that was given by its path or by its name on a hub.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// The directory or file of `base`: itself if it exists, or else the model of this name, downloaded if
/// the cache lacks it.
///
/// # Errors
/// A name that no model has, or that cannot be downloaded.
#[cfg(feature = "hub")]
pub(crate) fn find(base: &Path, variant: Option<&str>) -> Result<PathBuf> {
    let name = base.to_str().filter(|name| !base.exists() && soda_hub::is_name(name));
    let Some(name) = name else { return Ok(base.to_owned()) };
    let mut progress = crate::progress::Progress::default();
    let found = soda_hub::Hub::from_env()?
        .fetch(name, variant, &mut |file, done, total| progress.transfer(file, done, total));
    progress.finish();
    Ok(found?)
}

/// Whether [`find`] has where to look: a path that exists, or a name of a hub.
pub(crate) fn is_known(base: &Path) -> bool {
    #[cfg(feature = "hub")]
    let named = base.to_str().is_some_and(soda_hub::is_name);
    #[cfg(not(feature = "hub"))]
    let named = false;
    named || base.exists()
}

/// The path itself: this build knows no hub.
#[cfg(not(feature = "hub"))]
pub(crate) fn find(base: &Path, _variant: Option<&str>) -> Result<PathBuf> {
    Ok(base.to_owned())
}
