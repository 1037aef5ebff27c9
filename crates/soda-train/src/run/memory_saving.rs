//! The settings that make a run need less memory, and by how much.

use soda_kernels::{ActivationFormat, QuantFormat};
use soda_models::weights::{BlockWeights, WeightStorage};

use crate::config::{GradientCheckpointing, Precision, TrainConfig};
use crate::run::personalisation::Personalisation;

/// The side of images that every model of today draws, in pixels.
const SMALLER_SIDE: usize = 512;
/// The least bytes of weights for which a setting is named.
const WORTH_IT: u64 = 1 << 20;

/// A setting that makes a run need less memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySaving {
    /// The setting, as `key=value`.
    pub setting: String,
    /// The bytes of weights that it frees. `None` if it frees activations, whose bytes only a plan knows.
    pub bytes: Option<u64>,
}

impl Personalisation {
    /// The settings that would make this run need less memory, the cheapest in time first.
    pub fn memory_savings(&self) -> Vec<MemorySaving> {
        let weights = BlockWeights::of(&self.pipeline.denoiser);
        savings(&self.config, weights, self.pipeline.image_size())
    }
}

fn savings(config: &TrainConfig, weights: BlockWeights, side: usize) -> Vec<MemorySaving> {
    let of_activations = |setting: &str| MemorySaving { setting: setting.to_owned(), bytes: None };
    let storage = config.denoiser_storage();
    let width = match config.precision {
        Precision::F32 => 4,
        Precision::Bf16 | Precision::F16 => 2,
    };
    let bytes = |storage: WeightStorage| weights.device_bytes(storage, width) as u64;
    let of_weights = |setting: String, smaller: WeightStorage| MemorySaving {
        setting,
        bytes: Some(bytes(storage).saturating_sub(bytes(smaller))),
    };
    let mut savings = Vec::new();
    // Activations in fp8 belong to weights in fp8.
    let may_change = storage.activations == ActivationFormat::Float;
    if may_change && storage.quantization != Some(QuantFormat::Nf4) {
        let quantization = Some(QuantFormat::Nf4);
        let smaller = WeightStorage { quantization, ..storage };
        savings.push(of_weights("base_precision=nf4".to_owned(), smaller));
    }
    if config.checkpointing == GradientCheckpointing::None {
        savings.push(of_activations("checkpointing=block"));
    }
    if config.batch_size > 1 {
        savings.push(of_activations("batch_size=1"));
    }
    if storage.offload < weights.blocks {
        let smaller = WeightStorage { offload: weights.blocks, ..storage };
        savings.push(of_weights(format!("offload={}", weights.blocks), smaller));
    }
    if side > SMALLER_SIDE {
        savings.push(of_activations(&format!("resolution={SMALLER_SIDE}")));
    }
    savings.retain(|saving| saving.bytes.is_none_or(|bytes| bytes >= WORTH_IT));
    savings
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;
    use crate::config::{apply_setting, preset};

    #[test]
    fn savings_are_what_the_settings_leave() {
        let weights = BlockWeights { numbers: 640 << 20, blocks: 10 };
        let found = |settings: &[&str]| {
            let mut table = preset("sdxl").unwrap();
            for setting in ["base=b", "data=d"].iter().chain(settings) {
                apply_setting(&mut table, setting).unwrap();
            }
            let config = TrainConfig::from_table(table).unwrap();
            let savings = savings(&config, weights, 1024).into_iter();
            savings.map(|saving| (saving.setting, saving.bytes)).collect::<Vec<_>>()
        };
        let expected = [
            // 4 bits and a scale of 8 bits for 64 numbers.
            ("base_precision=nf4", Some((1280 << 20) - (330 << 20))),
            ("checkpointing=block", None),
            ("offload=10", Some(1280 << 20)),
            ("resolution=512", None),
        ];
        let expected = expected.map(|(setting, bytes)| (setting.to_owned(), bytes));
        assert_eq!(found(&[]), expected);
        let small = ["base_precision=nf4", "offload=10", "checkpointing=block", "batch_size=2"];
        let settings: Vec<_> = found(&small).into_iter().map(|(setting, _)| setting).collect();
        assert_eq!(settings, ["batch_size=1", "resolution=512"]);
        let fp8 = ["base_precision=fp8", "activation_precision=fp8"];
        assert!(found(&fp8).iter().all(|(setting, _)| !setting.starts_with("base_precision")));
    }
}
