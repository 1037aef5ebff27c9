//! What a step measured.

/// A step as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// The loss of its samples, before it.
    pub loss: f32,
    /// Norm of the gradient over all parameters, before clipping.
    pub grad_norm: f32,
    /// Learning rate of the rotations.
    pub rotation_lr: f32,
    /// Learning rate of everything flat.
    pub flat_lr: f32,
    /// The same of the text encoders; 0 where they do not learn.
    pub text_lr: f32,
    /// Of the vectors of new words; 0 where they do not learn.
    pub token_lr: f32,
}

impl Step {
    /// How many numbers it has.
    pub(crate) const NUMBERS: usize = 6;

    /// Its numbers by the names that `loss.csv` and TensorBoard give them.
    pub(crate) fn named(&self) -> [(&'static str, f32); Self::NUMBERS] {
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

    /// A step of these numbers, in the order of their names.
    pub(crate) fn from_numbers(numbers: [f32; Self::NUMBERS]) -> Self {
        let [loss, grad_norm, rotation_lr, flat_lr, text_lr, token_lr] = numbers;
        Self { loss, grad_norm, rotation_lr, flat_lr, text_lr, token_lr }
    }
}
