//! The sum of the gradients of several steps at one point, for calibrations.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, TensorData};

use crate::divided::{Division, Recipients, Sent, Work};
use crate::error::TrainError;
use crate::output::tensor_file::Tensors;
use crate::step::trainer::{StepData, Trainer};

/// The gradient of a step by path of the parameter, on its way to the other ranks.
struct StepGradient(BTreeMap<String, TensorData>);

impl Sent for StepGradient {
    fn to_tensors(&self) -> Tensors {
        self.0.clone()
    }

    fn from_tensors(tensors: &Tensors, _: &Device) -> Option<Self> {
        let is_f32 = |data: &TensorData| data.dtype() == DType::F32;
        tensors.values().all(is_f32).then(|| Self(tensors.clone()))
    }
}

/// The sum of the gradients of `steps` steps of `trainer`, by path of the parameter. Nothing moves.
///
/// The ranks divide the steps and add them in order, so that the sum has the same bits with any number of
/// ranks.
///
/// # Errors
/// A rank that has gone.
pub(super) fn gradient_sum(
    trainer: &mut Trainer<'_>,
    data: &StepData<'_>,
    steps: usize,
    division: Division<'_>,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<String, TensorData>, TrainError> {
    let params = trainer.params().clone();
    let mut sum = params.scaled(0.0);
    if division.world() == 1 {
        // Without a copy on the host.
        for step in 0..steps {
            let batches = trainer.samples(data, step);
            sum = sum + trainer.accumulate(&batches).grads;
            on_progress(step + 1, steps);
        }
        return Ok(sum.to_data());
    }
    let device = data.data.device();
    let fits = |_: usize, StepGradient(found): &StepGradient, _: &[StepGradient]| {
        params.from_data(found.clone()).is_ok()
    };
    // A step on each rank at a time, since the gradients of all steps would take too much memory.
    for first in (0..steps).step_by(division.world()) {
        let work = Work {
            what: "gradients of the calibration",
            count: division.world().min(steps - first),
            recipients: Recipients::All,
            device: &device,
            fits: &fits,
        };
        let done = division.each(&work, |item| {
            let batches = trainer.samples(data, first + item);
            Ok(StepGradient(trainer.accumulate(&batches).grads.to_data()))
        })?;
        for (item, StepGradient(found)) in done.into_iter().enumerate() {
            sum = sum + params.from_data(found)?;
            on_progress(first + item + 1, steps);
        }
    }
    Ok(sum.to_data())
}
