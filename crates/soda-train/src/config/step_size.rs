//! The images of a step, over all ranks.

use crate::config::train_config::TrainConfig;

impl TrainConfig {
    /// The images that the batches of all ranks have together: `batch_size * ranks`.
    pub fn global_batch_size(&self) -> usize {
        self.batch_size * self.ranks.unwrap_or(1)
    }

    /// The images of an optimizer step, the effective batch size: `batch_size * accumulation * ranks`.
    pub fn images_per_step(&self) -> usize {
        self.global_batch_size() * self.accumulation
    }

    /// The images of a step of unchecked settings.
    pub(super) fn checked_images_per_step(&self) -> Option<usize> {
        let batch = self.batch_size.checked_mul(self.ranks.unwrap_or(1))?;
        batch.checked_mul(self.accumulation)
    }
}
