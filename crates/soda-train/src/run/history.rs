//! What a run measured while it went on: `loss.csv`, and the lines of the report.

use std::fmt::Write as _;

use crate::step::metrics::Step;

/// What was measured after some steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Steps done.
    pub step: usize,
    /// The validation loss.
    pub loss: f32,
    /// `max |QᵀQ - I|` over all rotation factors.
    pub orthogonality: f32,
}

impl Measured {
    /// Its numbers, likewise.
    pub(crate) fn named(&self) -> [(&'static str, f32); 2] {
        [("validation_loss", self.loss), ("orthogonality", self.orthogonality)]
    }
}

/// Everything measured so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Every step.
    pub steps: Vec<Step>,
    /// The validation, in the order of the steps.
    pub validation: Vec<Measured>,
}

impl History {
    /// A line a step. What was measured stands on the line of the step after which it was; that of the
    /// untouched network on a line of step 0.
    pub(crate) fn csv(&self) -> String {
        let names = Step::default().named().map(|(name, _)| name).join(",");
        let mut text = format!("step,{names},validation_loss,orthogonality\n");
        let validation = |step: usize| {
            let measured = self.validation.iter().find(|measured| measured.step == step);
            measured.map_or_else(
                || ",".to_owned(),
                |measured| format!("{},{}", measured.loss, measured.orthogonality),
            )
        };
        // Writing to a String cannot fail.
        if self.validation.first().is_some_and(|first| first.step == 0) {
            let _ = writeln!(text, "0{}{}", ",".repeat(Step::NUMBERS + 1), validation(0));
        }
        for (index, numbers) in self.steps.iter().map(Step::named).enumerate() {
            let (step, validation) = (index + 1, validation(index + 1));
            let numbers = numbers.map(|(_, number)| number.to_string()).join(",");
            let _ = writeln!(text, "{step},{numbers},{validation}");
        }
        text
    }

    /// The loss of every step.
    pub fn losses(&self) -> Vec<f32> {
        self.steps.iter().map(|step| step.loss).collect()
    }
}

/// Steps averaged for a smooth line; diffusion losses jump with the timestep drawn.
pub(crate) const WINDOW: usize = 20;

/// Mean of each value and up to `WINDOW - 1` before it.
pub(crate) fn running_mean(values: &[f32]) -> Vec<f32> {
    (0..values.len())
        .map(|end| {
            let window = &values[(end + 1).saturating_sub(WINDOW)..=end];
            window.iter().sum::<f32>() / window.len() as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_a_constant_is_that_constant_and_it_lags_a_step() {
        assert_eq!(running_mean(&[2.0; 50]), vec![2.0; 50]);
        let mut step = vec![0.0; 30];
        step.extend([1.0; 30]);
        let mean = running_mean(&step);
        assert_eq!((mean[29], mean[30], mean[49]), (0.0, 0.05, 1.0));
    }

    #[test]
    fn a_table_has_the_validation_where_it_was_measured() {
        let step = |loss| Step::from_numbers([loss, 2.0, 0.5, 0.25, 0.125, 0.0625]);
        let measured = |(step, loss)| Measured { step, loss, orthogonality: 0.125 };
        let validation = [(0, 0.75), (2, 0.5)].map(measured).to_vec();
        let history = History { steps: vec![step(1.0), step(0.5)], validation };
        let expected = "step,loss,grad_norm,rotation_lr,flat_lr,text_lr,token_lr,validation_loss,orthogonality\n\
                        0,,,,,,,0.75,0.125\n1,1,2,0.5,0.25,0.125,0.0625,,\n2,0.5,2,0.5,0.25,0.125,0.0625,0.5,0.125\n";
        assert_eq!(history.csv(), expected);
    }
}
