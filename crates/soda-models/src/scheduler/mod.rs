//! Noise schedules, training noise and samplers, one paper a file.

pub mod beta;
pub mod config;
pub mod ddim;
pub mod ddpm;

pub use beta::NoiseSchedule;
pub use config::{PredictionType, SchedulerConfig};
pub use ddim::Ddim;
pub use ddpm::Ddpm;
