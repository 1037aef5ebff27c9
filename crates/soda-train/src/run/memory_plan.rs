//! The memory of a run, predicted before it starts.
//!
//! The plan does what a run does until its first step, and then a few steps. What a step keeps grows with the
//! number of pixels, since no kernel keeps the scores of an attention:
//!
//! ```text
//! peak(pixels) = fixed + each · pixels
//! ```
//!
//! So the peak of a small image bounds that of a large one: `peak(n · pixels) <= n · peak(pixels)`. The size
//! of the run is measured where the bound of a smaller one fits into the memory. Otherwise the peaks of a
//! half and of three quarters of its sides give both numbers.

use std::ops::RangeInclusive;

use burn::tensor::{Tensor, TensorData};
use soda_models::pipeline::{Networks, Pipeline};
use soda_models::weights::WeightMemory;

use crate::data::batch::Batch;
use crate::error::TrainError;
use crate::event::Event;
use crate::run::personalisation::Personalisation;
use crate::run::preparation::{Encodings, trainer};
use crate::step::trainer::TrainerState;

/// Sides of latents are multiples of this number: a UNet halves them three times.
const SIDE_MULTIPLE: usize = 8;
/// The steps of a measurement. The first one may capture a graph, and the second one has moments.
const STEPS: RangeInclusive<usize> = 1..=2;

/// Measures the memory of a device, or of the process on a CPU.
pub trait MemoryMeter {
    /// Gives back what is not in use, and begins to measure anew.
    fn restart(&mut self);

    /// The bytes that can be in use at once, those that are in use now included. `None` if that is not known:
    /// the size of the run is measured then.
    fn room(&mut self) -> Option<u64>;

    /// The most bytes since the last restart. `None` if this system does not tell.
    fn peak(&mut self) -> Option<u64>;
}

/// The predicted memory of a run in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights of all networks during the steps.
    pub weights: WeightMemory,
    /// The adapter: its parameters, those before the step, and their gradients.
    pub adapter: u64,
    /// The optimizer's moments, and the moving average of the parameters.
    pub optimizer: u64,
    /// The peak until the first step, as far as it was seen: reading, encoding, making the adapters.
    pub preparation: u64,
    /// The peak of decoding an image.
    pub images: u64,
    /// The peak of a step.
    pub step: u64,
    /// Whether images are decoded between the steps, beside the memory of a step.
    pub draws_between_steps: bool,
}

impl MemoryPlan {
    /// The predicted peak of the run.
    pub fn peak(&self) -> u64 {
        let beside_step = match self.draws_between_steps {
            true => self.images.saturating_sub(self.weights.device as u64),
            false => 0,
        };
        self.preparation.max(self.images).max(self.step + beside_step)
    }

    /// What a step needs beside weights, adapter and optimizer: activations and the space of operations.
    pub fn activations(&self) -> u64 {
        let known = self.weights.device as u64 + self.adapter + self.optimizer;
        self.step.saturating_sub(known)
    }
}

impl Personalisation {
    /// Predicts the memory of the run. Writes nothing but the cache.
    ///
    /// # Errors
    /// As [`Personalisation::run`] until its first step; [`TrainError::NoMemoryMeter`] if `meter` measures
    /// nothing.
    pub fn plan_memory(
        mut self,
        meter: &mut dyn MemoryMeter,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<MemoryPlan, TrainError> {
        // A plan needs no encoded samples of a validation.
        self.config.validation.every = 0;
        // Memory is given back between the stages, so that its peak is looked at while they work.
        let mut preparation = peak(meter)?;
        let on_event: &mut dyn FnMut(Event<'_>) = &mut |event| {
            preparation = preparation.max(meter.peak().unwrap_or_default());
            on_event(event);
        };
        let (_, fingerprint) = self.begin(on_event)?;
        let Self { config, dataset, pipeline, cache, with_graph, ranks, .. } = self;
        let encodings = Encodings::new(&config, &pipeline, &dataset, &[], cache, &ranks, on_event)?;
        let schedule = pipeline.forward_process();
        // Adapted weights are as in the file until their adapters are made.
        let loaded = weights(&pipeline).device as u64;
        let (pipeline, _, plan) =
            encodings.plan(&config, pipeline, &fingerprint, &ranks, with_graph, on_event)?;
        on_event(Event::Stage { name: "measuring" });
        let preparation = preparation.max(loaded);

        let batches = Batch::sample(&encodings.data, None, &schedule, &config, 0);
        let area = |batch: &Batch| size(batch)[0] * size(batch)[1];
        let batch = batches.into_iter().max_by_key(area).expect("a step has a batch");
        let full = size(&batch);
        let mut state = TrainerState::default();
        let step = peak_at(full, meter, |side, meter| {
            let batch = batch.cropped(side);
            let mut trainer = trainer(&config, &pipeline, plan.clone(), &ranks, with_graph)?;
            meter.restart();
            for _ in STEPS {
                trainer.step_on(&batch)?;
            }
            let peak = peak(meter)?;
            state = trainer.state();
            Ok(peak)
        })?;
        // Tiles have one size, whatever that of the image is.
        let tiling = config.samples.tiling(&pipeline.vae_config);
        let decode = |[height, width]: [usize; 2], meter: &mut dyn MemoryMeter| {
            let shape = [1, pipeline.vae_config.patch_channels(), height, width];
            meter.restart();
            let latents = Tensor::zeros(shape, &pipeline.device);
            let _ = pipeline.decode_in(latents, tiling).into_data();
            peak(meter)
        };
        let images = match tiling {
            Some(_) => decode(full, meter)?,
            None => peak_at(full, meter, decode)?,
        };
        let adapter = bytes(state.adapter.values());
        let average = bytes(state.average.values());
        Ok(MemoryPlan {
            weights: weights(&pipeline),
            adapter: 3 * adapter,
            optimizer: bytes(state.optimizer.tensors.values()) + average,
            preparation,
            images,
            step,
            draws_between_steps: config.samples.every > 0,
        })
    }
}

/// The height and width of the latents.
fn size(batch: &Batch) -> [usize; 2] {
    let [_, _, height, width] = batch.noisy.dims();
    [height, width]
}

fn peak(meter: &mut dyn MemoryMeter) -> Result<u64, TrainError> {
    meter.peak().ok_or(TrainError::NoMemoryMeter)
}

/// Parts of the sides that are measured, smallest first, if the memory may have no room for the whole.
const PARTS: [(usize, usize); 3] = [(1, 4), (1, 2), (3, 4)];

/// The peak for latents of size `full`, measured, or from those of smaller ones.
fn peak_at(
    full: [usize; 2],
    meter: &mut dyn MemoryMeter,
    mut measure: impl FnMut([usize; 2], &mut dyn MemoryMeter) -> Result<u64, TrainError>,
) -> Result<u64, TrainError> {
    let area = |[height, width]: [usize; 2]| (height * width) as f64;
    let mut measured: Vec<(f64, f64)> = Vec::new();
    for (part, of) in PARTS {
        let Some(room) = meter.room() else { break };
        let side = full.map(|side| (side * part / of).next_multiple_of(SIDE_MULTIPLE));
        let is_between = measured.last().is_none_or(|(last, _): &(f64, f64)| *last < area(side));
        if !is_between || area(side) >= area(full) {
            continue;
        }
        let peak = measure(side, meter)? as f64;
        measured.push((area(side), peak));
        if peak * area(full) / area(side) <= room as f64 {
            return measure(full, meter);
        }
    }
    match measured[..] {
        // The bounds of all parts were too large.
        [.., (low_area, low), (high_area, high)] => {
            let each = (high - low).max(0.0) / (high_area - low_area);
            Ok((high + each * (area(full) - high_area)) as u64)
        }
        _ => measure(full, meter),
    }
}

/// The weights of all networks that are in memory.
fn weights(pipeline: &Pipeline) -> WeightMemory {
    let Networks { denoiser, text_encoder, text_encoder_2 } = pipeline.networks();
    let encoders = [text_encoder, text_encoder_2].into_iter().flatten();
    let encoders = encoders.map(|encoder| WeightMemory::of(&encoder));
    encoders.fold(WeightMemory::of(&denoiser) + WeightMemory::of(&pipeline.vae), |sum, memory| {
        sum + memory
    })
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a TensorData>) -> u64 {
    tensors.map(|data| data.as_bytes().len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device of this memory.
    struct Room(Option<u64>);

    impl MemoryMeter for Room {
        fn restart(&mut self) {}

        fn room(&mut self) -> Option<u64> {
            self.0
        }

        fn peak(&mut self) -> Option<u64> {
            None
        }
    }

    #[test]
    fn a_peak_is_measured_where_it_fits_and_extrapolated_elsewhere() {
        let law = |side: [usize; 2]| 1000 + 3 * (side[0] * side[1]) as u64;
        let peak = |full, room| {
            let mut seen = Vec::new();
            let peak = peak_at(full, &mut Room(room), |side, _| {
                seen.push(side);
                Ok(law(side))
            });
            (peak.unwrap_or_default(), seen)
        };
        let (full, whole) = ([128, 96], law([128, 96]));
        assert_eq!(peak(full, None), (whole, vec![full]));
        // Sixteen times the peak of a quarter of the sides fits; that of three quarters; nothing.
        assert_eq!(peak(full, Some(16 * law([32, 24]))), (whole, vec![[32, 24], full]));
        let parts = [[32, 24], [64, 48], [96, 72]];
        let room = law([96, 72]) * 16 / 9 + 1;
        assert_eq!(peak(full, Some(room)), (whole, [&parts[..], &[full]].concat()));
        assert_eq!(peak(full, Some(whole)), (whole, parts.to_vec()));
        // Sides that are no multiples of four times eight, and an image without parts.
        let parts = vec![[32, 24], [64, 40], [96, 56]];
        assert_eq!(peak([120, 72], Some(0)), (law([120, 72]), parts));
        assert_eq!(peak([8, 8], Some(0)), (law([8, 8]), vec![[8, 8]]));
        // A step that takes less with more pixels is noise.
        let shrinking =
            peak_at([64, 64], &mut Room(Some(0)), |side, _| Ok(10_000 - side[0] as u64));
        assert_eq!(shrinking.unwrap_or_default(), 10_000 - 48);
    }

    #[test]
    fn images_between_steps_come_on_top_of_a_step() {
        let plan = MemoryPlan {
            weights: WeightMemory { device: 100, host: 50 },
            adapter: 10,
            optimizer: 5,
            preparation: 150,
            images: 160,
            step: 200,
            draws_between_steps: false,
        };
        assert_eq!((plan.peak(), plan.activations()), (200, 85));
        assert_eq!(MemoryPlan { draws_between_steps: true, ..plan }.peak(), 260);
        assert_eq!(MemoryPlan { preparation: 300, ..plan }.peak(), 300);
    }
}
