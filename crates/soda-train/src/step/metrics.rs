//! The numbers that a training step reports.

/// The loss, the gradient norm and the learning rates of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// The loss of the step's samples, before the parameters moved.
    pub loss: f32,
    /// The norm of the gradient over all parameters, before clipping.
    pub grad_norm: f32,
    /// The learning rate of the denoiser's rotations.
    pub rotation_lr: f32,
    /// The learning rate of the denoiser's flat parameters.
    pub flat_lr: f32,
    /// The learning rate of the text encoders' flat parameters; 0 where they are not trained.
    pub text_lr: f32,
    /// The learning rate of new words' embeddings; 0 where they are not trained.
    pub token_lr: f32,
}

impl StepMetrics {
    /// The number of values.
    pub(crate) const COUNT: usize = 6;

    /// The values with their names in `loss.csv` and TensorBoard.
    pub(crate) fn named(&self) -> [(&'static str, f32); Self::COUNT] {
        let Self { loss, grad_norm, rotation_lr, flat_lr, text_lr, token_lr } = *self;
        [
            ("loss", loss),
            ("grad_norm", grad_norm),
            ("rotation_lr", rotation_lr),
            ("flat_lr", flat_lr),
            ("text_lr", text_lr),
            ("token_lr", token_lr),
        ]
    }

    /// Metrics from values in the order of [`StepMetrics::named`].
    pub(crate) fn from_values(values: [f32; Self::COUNT]) -> Self {
        let [loss, grad_norm, rotation_lr, flat_lr, text_lr, token_lr] = values;
        Self { loss, grad_norm, rotation_lr, flat_lr, text_lr, token_lr }
    }
}
