//! Stream numbers of the random generator. Each use of randomness has its own stream of the run's seed, so
//! that a new use changes no other. The initial noise of samples uses small stream numbers, below all of
//! these.

pub(crate) const ORDER: u64 = 1 << 40;
pub(crate) const TIMESTEP: u64 = 2 << 40;
pub(crate) const NOISE: u64 = 3 << 40;
pub(crate) const POSTERIOR: u64 = 4 << 40;
pub(crate) const OFFSET: u64 = 5 << 40;
pub(crate) const CLASS_ORDER: u64 = 6 << 40;
pub(crate) const CLASS_POSTERIOR: u64 = 7 << 40;
pub(crate) const VARIANT: u64 = 8 << 40;
pub(crate) const CROP: u64 = 9 << 40;
pub(crate) const TAGS: u64 = 10 << 40;
pub(crate) const VALIDATION: u64 = 11 << 40;
pub(crate) const HELD_OUT: u64 = 12 << 40;
pub(crate) const WORD: u64 = 13 << 40;
pub(crate) const BUCKET: u64 = 32 << 40;
pub(crate) const CLASS_BUCKET: u64 = 33 << 40;
