//! The option `--cache`.

use std::ffi::OsString;
use std::path::PathBuf;

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
    pub(crate) fn open(&self) -> Option<SvdCache> {
        self.cache.as_ref().map(SvdCache::new)
    }
}

impl ToArgv for CacheArg {
    fn append_to(&self, argv: &mut Vec<OsString>) {
        argv.extend(repeated("cache", &self.cache));
    }
}
