//! Noise schedules, the forward process and samplers, one paper a file.
//!
//! [`SchedulerConfig::sampler`] makes a [`Sampler`] of a `scheduler_config.json`.

mod class;
mod config;
mod ddim;
mod ddpm;
mod dpm2;
mod euler;
mod flow;
mod forward_process;
mod heun;
mod lcm;
mod level_plan;
mod lms;
mod multistep;
mod noise_schedule;
mod overrides;
mod pndm;
mod registry;
mod sampler;
mod sampler_kind;
mod spacing;

pub use config::{
    AlgorithmType, BetaSchedule, FinalSigmasType, PredictionType, SchedulerConfig, SolverType,
    TimeShiftType, TimestepSpacing,
};
pub use flow::empirical_mu;
pub use forward_process::ForwardProcess;
pub use noise_schedule::NoiseSchedule;
pub use overrides::SchedulerOverrides;
pub use sampler::Sampler;
pub use sampler_kind::SamplerKind;
