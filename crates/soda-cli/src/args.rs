//! Options that several commands share.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use soda_adapters::SvdCache;

use crate::device::DeviceKind;

#[derive(Debug, ClapArgs)]
pub(crate) struct AdapterArg {
    /// An adapter trained on this base
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: Option<PathBuf>,
    /// How much of it: 0 is the base, 1 is what was trained; rotations turn along the geodesic
    #[arg(long, default_value_t = 1.0, requires = "adapter")]
    pub(crate) strength: f64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeviceArg {
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: DeviceKind,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CacheArg {
    /// Keep here what the next command need not compute again: singular value decompositions of the base (twice the
    /// adapted weights in f32, 0.7 GB for the attention of SD 1.5), and of `train` latents and text states
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

impl CacheArg {
    pub(crate) fn open(&self) -> Option<SvdCache> {
        self.cache.as_ref().map(SvdCache::new)
    }
}
