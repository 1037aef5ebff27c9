//! The directions of all weights, read from the gradients of their probes.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, s};
use soda_linalg::Svd;

use super::sketch::{Probe, Sketch};
use crate::directions::{Calibration, SideDirections, WeightDirections};
use crate::error::AdapterError;

impl Probe {
    /// Computes the directions from the gradients of the parameters of `probes`, by path of their weight.
    ///
    /// `gradients` has a tensor for each parameter of a probe, by `<path of the weight>.<parameter>`. A
    /// parameter that the loss did not reach may be absent and counts as zero. The scale of the loss has no
    /// influence.
    ///
    /// # Errors
    /// [`AdapterError::Decomposition`] for gradients that are not finite, and
    /// [`AdapterError::NoActivations`] for a layer whose rows the probe did not see.
    pub fn measure(
        probes: &BTreeMap<String, Self>,
        gradients: &BTreeMap<String, TensorData>,
    ) -> Result<Calibration, AdapterError> {
        let gradient = |path: &str, parameter: &str| gradients.get(&format!("{path}.{parameter}"));
        let input = directions(probes, |path, probe| {
            Some((gradient(path, "input.y"), probe.input.as_ref()?))
        })?;
        let output = directions(probes, |path, probe| {
            Some((gradient(path, "output.y"), probe.output.as_ref()?))
        })?;
        let weight = |(path, probe): (&String, &Self)| {
            let spectrum = probe.spectrum.as_ref().map(|probe| probe.delta.val());
            let directions = WeightDirections {
                input: input.get(path).cloned(),
                output: output.get(path).cloned(),
                spectrum: spectrum
                    .map(|delta| like(gradient(path, "spectrum.delta"), &delta).abs()),
            };
            (path.clone(), Arc::new(directions))
        };
        Ok(Calibration(probes.iter().map(weight).collect()))
    }

    /// Reads the directions from the tensors of [`Calibration::to_tensors`]. Returns `None` if the tensors
    /// are not those of these probes.
    pub fn stored(
        probes: &BTreeMap<String, Self>,
        tensors: &BTreeMap<String, TensorData>,
    ) -> Option<Calibration> {
        let weight = |(path, probe): (&String, &Self)| {
            let data = |name: &str| tensors.get(&format!("{path}.{name}"));
            let side = |name: &str, sketch: &Option<Sketch>| match sketch {
                Some(sketch) => {
                    let y = sketch.y.val();
                    let sizes: Tensor<1> = y.clone().slice(s![0..1, ..]).flatten(0, 1);
                    Some(Some(SideDirections {
                        vectors: exactly_like(data(name)?, &y)?,
                        sizes: exactly_like(data(&format!("{name}_sizes"))?, &sizes)?,
                    }))
                }
                None => Some(None),
            };
            let spectrum = match &probe.spectrum {
                Some(probe) => Some(exactly_like(data("spectrum")?, &probe.delta.val())?),
                None => None,
            };
            let directions = WeightDirections {
                input: side("input", &probe.input)?,
                output: side("output", &probe.output)?,
                spectrum,
            };
            Some((path.clone(), Arc::new(directions)))
        };
        probes.iter().map(weight).collect::<Option<_>>().map(Calibration)
    }
}

/// The left singular vectors of the sketches of one side, by path of the weight.
fn directions<'a>(
    probes: &'a BTreeMap<String, Probe>,
    side: impl Fn(&str, &'a Probe) -> Option<(Option<&'a TensorData>, &'a Sketch)>,
) -> Result<BTreeMap<String, SideDirections>, AdapterError> {
    let mut sketches = BTreeMap::new();
    for (path, probe) in probes {
        let Some((gradient, sketch)) = side(path, probe) else { continue };
        if gradient.is_none() && sketch.of_activations {
            return Err(AdapterError::NoActivations { path: path.clone() });
        }
        sketches.insert(path, like(gradient, &sketch.y.val()));
    }
    let matrices: Vec<_> = sketches.values().cloned().collect();
    let found = Svd::thin_batch_via_f64(&matrices);
    let vectors = |((path, sketch), svd): ((&String, Tensor<2>), Result<Svd, _>)| match svd {
        Ok(svd) => {
            // A column of `K Ω` has the size of `K` for columns of `Ω` of size 1.
            let columns = (sketch.dims()[1] as f64).sqrt();
            let vectors = svd.u.cast(sketch.dtype());
            let sizes = svd.s.cast(sketch.dtype()).div_scalar(columns);
            Ok((path.clone(), SideDirections { vectors, sizes }))
        }
        Err(source) => Err(AdapterError::Decomposition { path: path.clone(), source }),
    };
    sketches.into_iter().zip(found).map(vectors).collect()
}

/// The values with the shape of a parameter; zeros if there are none.
fn like<const D: usize>(data: Option<&TensorData>, parameter: &Tensor<D>) -> Tensor<D> {
    let Some(data) = data else { return parameter.zeros_like() };
    let shape: [usize; D] = parameter.dims();
    let data = TensorData::new(data.iter::<f32>().collect::<Vec<_>>(), shape);
    Tensor::from_data(
        data.convert_dtype(parameter.dtype()),
        (&parameter.device(), parameter.dtype()),
    )
}

/// The values, if they have the shape of a parameter and are finite.
fn exactly_like<const D: usize>(data: &TensorData, parameter: &Tensor<D>) -> Option<Tensor<D>> {
    let fits =
        data.shape().as_slice() == parameter.dims() && data.iter::<f32>().all(f32::is_finite);
    fits.then(|| like(Some(data), parameter))
}
