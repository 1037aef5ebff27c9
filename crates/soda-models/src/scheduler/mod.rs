//! Noise schedules, training noise and samplers, one paper a file.

pub mod beta;
pub mod change;
pub mod config;
pub mod ddim;
pub mod ddpm;
pub mod dpm;
pub mod euler;
pub mod pndm;
pub mod sampler;
pub(crate) mod spacing;

pub use beta::NoiseSchedule;
pub use change::ScheduleChange;
pub use config::{PredictionType, SchedulerConfig};
pub use ddpm::Ddpm;
pub use sampler::{Sampler, SamplerKind};
