//! The option `--cache`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use soda_linalg::SvdCache;

use super::argv::{ToArgv, repeated};

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct CacheArg {
    /// Folder for results that later commands reuse: singular value decompositions of the base (twice the
    /// adapted weights in f32, 0.7 GB for the attention of SD 1.5), and for `train` latents and text
    /// encodings
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

impl CacheArg {
    /// The cache of decompositions.
    ///
    /// # Errors
    /// As [`CacheArg::folder`].
    pub(crate) fn open(&self) -> Result<Option<SvdCache>> {
        Ok(self.folder()?.map(SvdCache::new))
    }

    /// The folder, which is created with the first file.
    ///
    /// # Errors
    /// Something else than a folder has its name.
    pub(crate) fn folder(&self) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.cache else { return Ok(None) };
        ensure!(
            folder.is_dir() || folder.symlink_metadata().is_err(),
            "{} is no folder: give another --cache, or leave it out",
            folder.display()
        );
        Ok(Some(folder.clone()))
    }
}

impl ToArgv for CacheArg {
    fn append_to(&self, argv: &mut Vec<OsString>) {
        argv.extend(repeated("cache", &self.cache));
    }
}
