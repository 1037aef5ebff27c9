//! The calibration of a method on training data, see [`Probe`].

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::TensorData;
use soda_adapters::{
    AdapterError, Calibration, DivideDecompositions, Method as _, Plan, PlanOptions, Probe, Targets,
};
use soda_linalg::SvdCache;
use soda_models::pipeline::Networks;
use soda_pipeline::{Component, TARGET_PRESETS};

use crate::config::{Loss, TrainConfig};
use crate::divided::Division;
use crate::error::TrainError;
use crate::output::tensor_file::Tensors;
use crate::step::gradient_sum::gradient_sum;
use crate::step::precision::frozen_denoiser;
use crate::step::trainer::{StepData, Trainer};

/// Separates the samples of the calibration from those of the training steps.
const SEED: u64 = 0xCA11_B8A7_E000_0000;

/// The measured directions of each network.
#[derive(Debug, Default)]
pub(crate) struct Calibrations(BTreeMap<Component, Calibration>);

impl Calibrations {
    /// The directions of one network.
    pub(crate) fn get(&self, component: Component) -> Option<&Calibration> {
        self.0.get(&component)
    }

    /// The tensors to store, by the path of the weight in the pipeline.
    pub(crate) fn to_tensors(&self) -> Tensors {
        let mut all = Tensors::new();
        for (component, calibration) in &self.0 {
            let tensors = calibration.to_tensors().into_iter();
            all.extend(tensors.map(|(name, data)| (format!("{}{name}", component.prefix()), data)));
        }
        all
    }
}

/// The probes of each network that is trained.
#[derive(Debug)]
pub(crate) struct Probes(BTreeMap<Component, Plan<Probe>>);

impl Probes {
    /// Makes the probes of all weights that the settings adapt.
    pub(crate) fn plan(
        config: &TrainConfig,
        networks: &Networks,
        cache: Option<&SvdCache>,
        division: Division<'_>,
    ) -> Result<Self, AdapterError> {
        let Networks { denoiser, text_encoder, text_encoder_2 } = networks;
        let of_denoiser = probes_of(denoiser, config, &config.targets, cache, division)?;
        let mut probes = BTreeMap::from([(Component::from(denoiser), of_denoiser)]);
        let encoders =
            [(Component::TextEncoder, text_encoder), (Component::TextEncoder2, text_encoder_2)];
        for (component, encoder) in encoders {
            if let (Some(text), Some(encoder)) = (config.trained_text_encoder(), encoder) {
                probes
                    .insert(component, probes_of(encoder, config, &text.targets, cache, division)?);
            }
        }
        Ok(Self(probes))
    }

    /// Measures the directions on samples that no training step sees. `networks` are those of the plan, whose
    /// adapted weights are as in the file. The ranks divide the steps. `with_graph` replays the gradients
    /// from a CUDA graph.
    ///
    /// # Errors
    /// A gradient that is not finite; a rank that has gone.
    pub(crate) fn measure(
        &self,
        config: &TrainConfig,
        networks: &Networks,
        data: &StepData<'_>,
        with_graph: bool,
        division: Division<'_>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Calibrations, TrainError> {
        let mut config = TrainConfig { seed: config.seed ^ SEED, ..config.clone() };
        // The gradient of DCO at the base model is this one, in half the time.
        config.objective.loss = Loss::Mse;
        let mut all = Plan::default();
        for (component, probes) in &self.0 {
            all.extend(probes.clone().with_prefix(&component.prefix()));
        }
        let draws = config.method.calibration().map_or(0, |request| request.draws);
        let steps = draws.div_ceil(config.images_per_step());
        // The gradients are those of the network that is trained, stored as it will be.
        let mut networks = networks.clone();
        networks.denoiser = frozen_denoiser(&config, networks.denoiser);
        let trainer = Trainer::new(all.attach(networks), &config.method, &config)?;
        let mut trainer = if with_graph { trainer.with_graph() } else { trainer };
        let gradients = gradient_sum(&mut trainer, data, steps, division, on_progress)?;
        let calibrate = |(component, probes): (&Component, &Plan<Probe>)| {
            let gradients = of_component(&gradients, *component);
            Ok((*component, Probe::measure(probes.adapters(), &gradients)?))
        };
        self.0.iter().map(calibrate).collect::<Result<_, TrainError>>().map(Calibrations)
    }

    /// Reads stored directions. Returns `None` if they are not those of these probes.
    pub(crate) fn stored(&self, tensors: &Tensors) -> Option<Calibrations> {
        let read = |(component, probes): (&Component, &Plan<Probe>)| {
            let prefix = component.prefix();
            let own = tensors.iter().filter_map(|(name, data)| {
                Some((name.strip_prefix(&prefix)?.to_owned(), data.clone()))
            });
            Some((*component, Probe::stored(probes.adapters(), &own.collect())?))
        };
        self.0.iter().map(read).collect::<Option<_>>().map(Calibrations)
    }
}

/// The gradients of one network's probes, by `<path of the weight>.<parameter>`.
fn of_component(
    gradients: &BTreeMap<String, TensorData>,
    component: Component,
) -> BTreeMap<String, TensorData> {
    let prefix = component.prefix();
    let own = |(path, data): (&String, &TensorData)| {
        let path = path.strip_prefix(&prefix)?.replace(".adapter.", ".");
        Some((path, data.clone()))
    };
    gradients.iter().filter_map(own).collect()
}

fn probes_of<N: Module>(
    network: &N,
    config: &TrainConfig,
    targets: &Targets,
    cache: Option<&SvdCache>,
    division: Division<'_>,
) -> Result<Plan<Probe>, AdapterError> {
    let division = (division.world() > 1).then_some(&division as &dyn DivideDecompositions);
    let presets = TARGET_PRESETS;
    let mut options = PlanOptions { presets, cache, division, ..PlanOptions::default() };
    config.method.plan_probes(targets, network, &mut options)
}
