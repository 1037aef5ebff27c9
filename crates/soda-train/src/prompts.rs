//! What the network is told of a batch: text states that are ready, or tokens for text encoders that learn.
//!
//! Text encoders have a tape of their own, apart from the UNet's, which may be one a stage (`backward`):
//!
//! ```text
//! c = encode(ids, φ),    g = ∂L/∂c  from the UNet's backward pass,    ∂L/∂φ = ∂⟨encode(ids, φ), g⟩ / ∂φ
//! ```

use std::ops::Range;

use burn::module::Module as _;
use burn::tensor::{DType, Tensor};
use soda_adapters::{Component, leaves};
use soda_models::clip::text::TextStates;
use soda_models::pipeline::{Networks, TextIds};
use soda_models::unet::{AddedCondition, Condition};

use crate::backward::ConditionGradient;
use crate::gradients::AdapterGradients;

/// What the network is told of some samples.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Read before the first step.
    Read(Condition),
    /// To be read in every step.
    Tokens {
        /// Tokens of the captions.
        ids: TextIds,
        /// SDXL's sizes and crops, `[b, 6]`.
        time_ids: Option<Tensor<2>>,
    },
}

impl From<Condition> for Prompts {
    fn from(condition: Condition) -> Self {
        Self::Read(condition)
    }
}

impl From<Tensor<3>> for Prompts {
    fn from(text: Tensor<3>) -> Self {
        Self::Read(text.into())
    }
}

impl Prompts {
    /// Some of the samples.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Read(condition) => Self::Read(condition.rows(rows)),
            Self::Tokens { ids, time_ids } => Self::Tokens {
                ids: ids.rows(rows.clone()),
                time_ids: time_ids.clone().map(|x| x.narrow(0, rows.start, rows.len())),
            },
        }
    }

    /// Whether those of `other` can follow in one batch.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        matches!(self, Self::Read(_)) == matches!(other, Self::Read(_))
    }

    /// The samples of `self`, then those of `other`, which [fits](Self::fits).
    #[must_use]
    pub(crate) fn cat(self, other: Self) -> Self {
        match (self, other) {
            (Self::Read(one), Self::Read(other)) => Self::Read(one.cat(other)),
            (
                Self::Tokens { ids, time_ids },
                Self::Tokens { ids: other_ids, time_ids: other_time_ids },
            ) => Self::Tokens {
                ids: ids.cat(other_ids),
                time_ids: time_ids.zip(other_time_ids).map(|(a, b)| Tensor::cat(vec![a, b], 0)),
            },
            (one, _) => one,
        }
    }

    /// What is read, for a test.
    #[cfg(test)]
    pub(crate) fn ready(self) -> Option<Condition> {
        match self {
            Self::Read(condition) => Some(condition),
            Self::Tokens { .. } => None,
        }
    }

    /// What the text encoders say, off the tape and in f32.
    ///
    /// # Panics
    /// If `networks` have no text encoder for tokens.
    pub(crate) fn condition(&self, networks: &Networks) -> Condition {
        match self {
            Self::Read(condition) => condition.clone(),
            Self::Tokens { ids, time_ids } => condition(states(networks, ids), time_ids.clone()),
        }
    }
}

/// Every tensor of `condition` through `f`, flat, in one order.
pub(crate) fn map_condition(
    condition: &Condition,
    mut f: impl FnMut(Tensor<1>) -> Tensor<1>,
) -> Condition {
    let Condition { text, added } = condition;
    Condition {
        text: through(text, &mut f),
        added: added.as_ref().map(|added| AddedCondition {
            pooled: through(&added.pooled, &mut f),
            time_ids: through(&added.time_ids, &mut f),
        }),
    }
}

/// `x` through `f`, flat.
pub(crate) fn through<const D: usize>(
    x: &Tensor<D>,
    mut f: impl FnMut(Tensor<1>) -> Tensor<1>,
) -> Tensor<D> {
    let dims = x.dims();
    f(x.clone().reshape([dims.iter().product::<usize>()])).reshape(dims)
}

/// Text states that a backward pass can go on from.
pub(crate) struct Reading {
    /// Off the tape.
    pub(crate) condition: Condition,
    taped: Option<(Networks, TextStates)>,
}

impl Reading {
    /// What `networks` say of `prompts`, on a tape where their text encoders have anything to learn.
    ///
    /// # Panics
    /// If `networks` have no text encoder for tokens.
    pub(crate) fn new(networks: &Networks, prompts: &Prompts) -> Self {
        let untaped = || Self { condition: prompts.condition(networks), taped: None };
        let Prompts::Tokens { ids, time_ids } = prompts else { return untaped() };
        // The UNet is not read here, and stays off this tape.
        let taped = Networks {
            unet: networks.unet.clone(),
            text_encoder: networks.text_encoder.clone().map(|encoder| encoder.train()),
            text_encoder_2: networks.text_encoder_2.clone().map(|encoder| encoder.train()),
        };
        let encoders = [&taped.text_encoder, &taped.text_encoder_2];
        let learns = |encoder| leaves(encoder).iter().any(|leaf| leaf.trainable);
        if !encoders.into_iter().flatten().any(learns) {
            return untaped();
        }
        let states = states(&taped, &ids.clone().on_tape());
        let TextStates { hidden, pooled } = states.clone();
        let untaped = TextStates { hidden: hidden.inner(), pooled: pooled.inner() };
        let condition = condition(untaped, time_ids.clone());
        Self { condition, taped: Some((taped, states)) }
    }

    /// Whether the condition's gradient is of use.
    pub(crate) fn learns(&self) -> bool {
        self.taped.is_some()
    }

    /// Gradients of the text encoders' parameters, from those by the condition.
    pub(crate) fn backward(self, condition: ConditionGradient) -> AdapterGradients {
        let Some((taped, TextStates { hidden, pooled })) = self.taped else {
            return AdapterGradients::default();
        };
        let seeded = (hidden * Tensor::from_inner(condition.text.cast(DType::F32))).sum();
        let seeded = match condition.pooled {
            Some(g) => seeded + (pooled * Tensor::from_inner(g.cast(DType::F32))).sum(),
            None => seeded,
        };
        let grads = seeded.backward();
        [
            (Component::TextEncoder, &taped.text_encoder),
            (Component::TextEncoder2, &taped.text_encoder_2),
        ]
        .into_iter()
        .map(|(component, encoder)| AdapterGradients::collect(encoder, &grads).within(component))
        .fold(AdapterGradients::default(), std::ops::Add::add)
    }
}

/// What the text encoders say, in f32.
fn states(networks: &Networks, ids: &TextIds) -> TextStates {
    let TextStates { hidden, pooled } =
        networks.read(ids).expect("whoever trains on tokens has a text encoder");
    TextStates { hidden: hidden.cast(DType::F32), pooled: pooled.cast(DType::F32) }
}

fn condition(states: TextStates, time_ids: Option<Tensor<2>>) -> Condition {
    let TextStates { hidden, pooled } = states;
    let added = time_ids.map(|time_ids| AddedCondition { pooled, time_ids });
    Condition { text: hidden, added }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::{Device, TensorData};
    use soda_models::clip::text::ClipTextConfig;
    use soda_models::noise::gaussian;
    use soda_models::unet::UnetConfig;

    use super::*;
    use crate::backward::Checkpointing;
    use crate::batch::Batch;
    use crate::config::TrainConfig;
    use crate::loss::gradients;
    use crate::parts::Parts;
    use crate::testing::{filled, norm, sdxl, settings};

    const SAMPLES: usize = 3;

    /// A denoiser of SDXL's kind with both its text encoders.
    fn networks(device: &Device) -> Networks {
        let unet: UnetConfig = serde_json::from_value(sdxl()).unwrap();
        let encoder = |width, projection_dim| ClipTextConfig {
            vocab_size: 30,
            hidden_size: width,
            intermediate_size: 2 * width,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            max_position_embeddings: 6,
            eos_token_id: 29,
            projection_dim,
            ..ClipTextConfig::default()
        };
        filled(Networks {
            unet: unet.init(device),
            text_encoder: Some(encoder(8, None).init(device)),
            text_encoder_2: Some(encoder(16, Some(12)).init(device)),
        })
    }

    fn batch(device: &Device) -> Batch {
        let ids = |shift: i32| {
            let id =
                |row: i32, at: i32| if at < 3 + row { (7 * row + 5 * at + shift) % 29 } else { 29 };
            let ids: Vec<i32> =
                (0..SAMPLES as i32).flat_map(|row| (0..6).map(move |at| id(row, at))).collect();
            Tensor::from_data(TensorData::new(ids, [SAMPLES, 6]), device)
        };
        let sizes = TensorData::from([[64f32, 96.0, 0.0, 8.0, 80.0, 112.0]; SAMPLES]);
        Batch {
            noisy: gaussian(0, 0, [SAMPLES, 4, 8, 8], device),
            target: gaussian(0, 1, [SAMPLES, 4, 8, 8], device),
            timesteps: Tensor::from_data(TensorData::from([20f32, 400.0, 800.0]), device),
            prompts: Prompts::Tokens {
                ids: TextIds { first: ids(0), second: Some(ids(3)) },
                time_ids: Some(Tensor::from_data(sizes, device)),
            },
            weight: Tensor::from_data(TensorData::from([0.5f32, 0.3, 0.2]), device),
            mask: None,
        }
    }

    fn adapted(more: &[&str], device: &Device) -> (TrainConfig, Networks) {
        let common = ["method=svdiff", "text_encoder.targets=['text-attention+mlp']"];
        let config = settings(&[&common, more].concat());
        let networks = networks(device);
        let (_, plan) = Parts::plan(&config, &networks, None, &mut |_, _| ()).unwrap();
        (config, plan.attach(networks))
    }

    /// Through the condition and back, by blocks or not, the gradients are those of one tape through encoders and UNet:
    /// 1e-5 of a tensor's own norm, since sums are added in another order.
    #[test]
    fn text_encoders_have_the_gradients_of_one_tape_through_everything() {
        let device = Device::default();
        let batch = batch(&device);
        let (config, networks) = adapted(&[], &device);
        let taped = networks.clone().train();
        let Prompts::Tokens { ids, time_ids } = &batch.prompts else { panic!("tokens") };
        let states = taped.read(&ids.clone().on_tape()).unwrap();
        let on_tape = |x: Tensor<4>| Tensor::<4>::from_inner(x);
        let told = condition(states, time_ids.clone().map(Tensor::from_inner));
        let at = Tensor::<1>::from_inner(batch.timesteps.clone());
        let prediction = taped.unet.forward(on_tape(batch.noisy.clone()), at, told);
        let squares: Tensor<2> =
            (prediction - on_tape(batch.target.clone())).square().flatten(1, 3);
        let each: Tensor<1> = squares.mean_dim(1).reshape([SAMPLES]);
        let loss = (each * Tensor::from_inner(batch.weight.clone())).sum();
        let expected = AdapterGradients::collect(&taped, &loss.backward());
        let texts = expected.0.keys().filter(|path| path.starts_with("text_encoder")).count();
        // Of two layers the first encoder, and of three the second, whose pooled text has seen the last.
        assert_eq!(texts, 2 * 6 + 3 * 6);
        for checkpointing in [Checkpointing::None, Checkpointing::Block] {
            let config = TrainConfig { checkpointing, ..config.clone() };
            let (value, found) = gradients(&networks, &batch, &config, 1.0);
            assert!((value - loss.clone().into_scalar::<f32>()).abs() < 1e-5);
            for (path, expected) in &expected.0 {
                let (distance, own) =
                    (norm(found.0[path].clone() - expected.clone()), norm(expected.clone()));
                assert!(own > 0.0 && distance <= 1e-5 * own, "{path}: {distance:e} of {own:e}");
            }
            // What the loss cannot reach has a gradient of zero, or none.
            let rest = found.0.iter().filter(|(path, _)| !expected.0.contains_key(*path));
            assert!(rest.into_iter().all(|(_, grad)| norm(grad.clone()) == 0.0));
        }
    }

    /// f16's loss scale is a power of two, and goes through the condition into the text encoders as it is.
    #[test]
    fn a_loss_scale_multiplies_the_text_encoders_gradients_too() {
        let device = Device::default();
        let batch = batch(&device);
        let (config, networks) = adapted(&[], &device);
        let [(loss, plain), (same, scaled)] =
            [1.0, 1024.0].map(|scale| gradients(&networks, &batch, &config, scale));
        assert_eq!(loss, same);
        let text: Vec<_> =
            plain.0.iter().filter(|(path, _)| path.starts_with("text_encoder")).collect();
        assert!(!text.is_empty());
        for (path, grad) in text {
            let expected = grad.clone().mul_scalar(1024.0);
            let distance = norm(scaled.0[path].clone() - expected.clone());
            assert!(distance <= 1e-6 * norm(expected), "{path}: {distance:e}");
        }
    }

    /// The frozen prediction is that of the frozen text encoders too: where everything is at its start, DCO's loss is
    /// log 2 for every sample.
    #[test]
    fn dco_measures_against_frozen_text_encoders() {
        let device = Device::default();
        let (config, networks) = adapted(&["objective.loss=dco"], &device);
        let shifted = soda_adapters::map_leaves(networks.clone(), |leaf| {
            let text = leaf.path.starts_with("text_encoder.") && leaf.path.contains(".adapter.");
            text.then(|| leaf.value().add_scalar(0.3))
        });
        let mse = settings(&["method=svdiff", "text_encoder.targets=['text-attention+mlp']"]);
        // How far each sample's loss is from log 2, beside its squared error, which rounds in its last bits; the loss
        // multiplies that by β/2, its slope there.
        let far = |networks: &Networks| {
            let of = |sample: usize| {
                let mut weight = [0.0; SAMPLES];
                weight[sample] = 1.0;
                let weight = Tensor::from_data(TensorData::from(weight), &device);
                let batch = Batch { weight, ..batch(&device) };
                let loss = gradients(networks, &batch, &config, 1.0).0 - std::f32::consts::LN_2;
                let error = gradients(networks, &batch, &mse, 1.0).0;
                loss.abs() / (0.5 * config.objective.dco_beta as f32 * error)
            };
            (0..SAMPLES).map(of).fold(0.0, f32::max)
        };
        let (fresh, shifted) = (far(&networks), far(&shifted));
        assert!(fresh < 4.0 * f32::EPSILON && shifted > 1e-4, "{fresh:e}, {shifted:e}");
    }
}
