//! The calibration of a method: what the training data say of each weight before its adapter is made.
//!
//! A method may place its parameters where the gradient of the loss lies, or where the activations do, as
//! LoRA-GA (arXiv 2407.05000) and CorDA (arXiv 2406.05223) do for LoRA. Then its plan needs a pass over the
//! data, through the frozen network:
//!
//! 1. [`Method::plan_probes`](crate::Method::plan_probes) makes a [`Probe`] for each weight: an adapter that
//!    changes nothing, with parameters of zero.
//! 2. The caller attaches the probes and adds up the gradients of
//!    [`CalibrationRequest::draws`](crate::CalibrationRequest::draws) samples.
//! 3. [`Probe::measure`] reads the directions from these gradients.
//! 4. [`PlanOptions::calibration`](crate::PlanOptions::calibration) passes them to the plan.

mod measure;
mod sketch;

pub use sketch::Probe;
pub(crate) use sketch::{ProbeSettings, Signal};
