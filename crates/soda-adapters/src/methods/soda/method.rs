//! How SODA's settings make an adapter for a weight.

use burn::tensor::Tensor;
use soda_linalg::{LinalgError, factor_sizes};

use super::adapter::Soda;
use super::allocation::{ranks, side_key};
use super::checks::{NAME, product};
use super::config::{
    Basis, Parametrization, RotationConfig, Selection, Shift, Side, SodaConfig, SpectrumConfig,
    Structure, Subspace,
};
use super::rotation::Rotation;
use super::spectrum::Spectrum;
use super::truncated::{TruncatedSpectrum, copy_in_order};
use crate::directions::{Calibration, CalibrationRequest, Directions};
use crate::error::AdapterError;
use crate::method::{Geometry, Method};
use crate::methods::block_rotation::nearest_divisor;
use crate::methods::permutation::Permutation;
use crate::methods::timestep_mask::TimestepMask;
use crate::probe::{Probe, ProbeSettings, Signal};
use crate::seeded_init::SeededInit;
use crate::weight::Weight;

/// Size of the blocks of a group-and-shuffle rotation, unless it is given: that of OFT.
const BLOCK_SIZE: usize = 32;

/// Number of reflections, unless it is given: that of PEFT's HRA.
const REFLECTIONS: usize = 8;

/// The largest rank of one side where the rotations of a network share a number of parameters.
const MAX_SHARED_RANK: usize = 48;

impl Method for SodaConfig {
    type Adapter = Soda;

    fn name(&self) -> &'static str {
        NAME
    }

    fn needs_svd(&self) -> bool {
        self.spectrum.as_ref().is_some_and(|spectrum| spectrum.basis == Basis::Svd)
            || self.placement() == Some(Subspace::Principal)
    }

    fn needs_svd_to_restore(&self) -> bool {
        let whole = |spectrum: &SpectrumConfig| spectrum.rank.is_none();
        self.spectrum.as_ref().is_some_and(|s| s.basis == Basis::Svd && whole(s))
    }

    fn calibration(&self) -> Option<CalibrationRequest> {
        let draws = self.calibration.unwrap_or_default().draws;
        let needs_svd = self.selects_by_gradient();
        let needed = needs_svd || self.signal().is_some();
        needed.then_some(CalibrationRequest { draws, needs_svd })
    }

    fn probe(&self, path: &str, weight: &Weight) -> Result<Option<Probe>, AdapterError> {
        if self.calibration().is_none() {
            return Ok(None);
        }
        self.check()?;
        let [input, output] = weight.dims();
        let side = |side: WeightSide, width: usize| -> Result<_, AdapterError> {
            let rotation = self.rotation.as_ref().filter(|config| side.is_rotated(config.side));
            let (Some(signal), Some(config)) = (self.signal(), rotation) else { return Ok(None) };
            let rank = match config.numbers {
                Some(_) => MAX_SHARED_RANK.min(width),
                None => config.rank_of(side, path, width).map_err(decomposition(path))?,
            };
            Ok((rank > 0).then_some((signal, rank)))
        };
        let settings = ProbeSettings {
            input: side(WeightSide::Input, input)?,
            output: side(WeightSide::Output, output)?,
            spectrum: self.selects_by_gradient(),
            seed: self.calibration.unwrap_or_default().seed,
        };
        Probe::new(&settings, path, weight).map(Some)
    }

    fn calibrated(&self, calibration: &Calibration) -> Result<Self, AdapterError> {
        let mut config = self.clone();
        if let Some(rotation) = &mut config.rotation
            && let Some(numbers) = rotation.numbers
        {
            rotation.ranks = ranks(calibration, numbers);
            if rotation.ranks.values().all(|rank| *rank == 0) {
                let reason = "`rotation.numbers` is too small for one rotation; a plane takes 4";
                return Err(AdapterError::Config { method: NAME, reason });
            }
        }
        Ok(config)
    }

    fn is_trained(&self, parameter: &str) -> bool {
        const FROZEN: [&str; 5] = [
            "rotation.basis",
            "truncated_spectrum.left",
            "truncated_spectrum.right",
            "truncated_spectrum.s",
            "low_rank.start",
        ];
        !FROZEN.iter().any(|frozen| parameter.ends_with(frozen))
    }

    fn depends_on_timestep(&self) -> bool {
        self.timestep_mask.is_some()
    }

    fn init(&self, path: &str, weight: &Weight) -> Result<Soda, AdapterError> {
        self.check()?;
        if self.timestep_mask.is_some() {
            TimestepMask::check_weight(path, weight)?;
        }
        let w = weight.compute_matrix();
        let rotation = |side: WeightSide| match &self.rotation {
            Some(config) if side.is_rotated(config.side) => {
                self.rotation(config, side, path, weight, &w)
            }
            _ => Ok(None),
        };
        let (mut spectrum, mut truncated) = (None, None);
        match &self.spectrum {
            None => {}
            Some(config) => match (config.rank, config.shift) {
                (Some(k), Shift::Diagonal { init }) => {
                    let selection = config.select.unwrap_or_default();
                    self.check_measured(path, weight, selection == Selection::Gradient)?;
                    let shift = TruncatedSpectrum::new(k, selection, init, weight, &w);
                    truncated = Some(shift.map_err(decomposition(path))?);
                }
                (_, shift) => {
                    let seed = if let Shift::LowRank { seed, .. } = shift { seed } else { 0 };
                    let init = SeededInit::new(seed, path, weight);
                    let shift = Spectrum::new(config, weight, &w, &init);
                    spectrum = Some(shift.map_err(decomposition(path))?);
                }
            },
        }
        let (input, output) = (rotation(WeightSide::Input)?, rotation(WeightSide::Output)?);
        let soda = Soda::new(input, output, spectrum, truncated, self.timestep_mask, &w);
        Ok(if self.output_scale { soda.with_output_scale(&w) } else { soda })
    }

    fn geometry(&self, path: &str) -> Geometry {
        // Generators of the Cayley transform and unconstrained matrices have other names, and are Euclidean.
        // Blocks have one name. Frozen bases have orthonormal columns too.
        const ORTHONORMAL: [&str; 5] = [
            "rotation.factors.",
            "rotation.permuted.0.factors.",
            "rotation.basis",
            "truncated_spectrum.left",
            "truncated_spectrum.right",
        ];
        const BLOCKS: [&str; 2] = ["rotation.blocks", "rotation.permuted.0.blocks"];
        let on_manifold = |rotation: &RotationConfig| {
            rotation.parametrization == Parametrization::Stiefel
                && BLOCKS.iter().any(|name| path.ends_with(name))
        };
        let is_orthonormal = ORTHONORMAL.iter().any(|name| path.contains(name))
            || self.rotation.as_ref().is_some_and(on_manifold);
        if is_orthonormal { Geometry::Stiefel } else { Geometry::Euclidean }
    }
}

/// A side of the stored weight `[in, out]`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WeightSide {
    Input,
    Output,
}

impl WeightSide {
    fn is_rotated(self, side: Side) -> bool {
        match self {
            Self::Input => side.has_input(),
            Self::Output => side.has_output(),
        }
    }
}

/// Names the weight in an error of the linear algebra.
fn decomposition(path: &str) -> impl Fn(LinalgError) -> AdapterError + '_ {
    |source| AdapterError::Decomposition { path: path.to_owned(), source }
}

impl SodaConfig {
    /// Where the subspace of the rotation lies, if it has one.
    fn placement(&self) -> Option<Subspace> {
        let rotation = self.rotation.as_ref();
        let rotation = rotation.filter(|rotation| rotation.structure == Structure::Subspace)?;
        Some(rotation.subspace.unwrap_or_default())
    }

    /// What the probes of the rotated sides measure.
    pub(super) fn signal(&self) -> Option<Signal> {
        match self.placement()? {
            Subspace::Gradient => Some(Signal::SkewGradient),
            Subspace::Activations => Some(Signal::Activations),
            Subspace::Principal => None,
        }
    }

    fn selects_by_gradient(&self) -> bool {
        self.spectrum.as_ref().is_some_and(|s| s.select == Some(Selection::Gradient))
    }

    /// Refuses a weight without measured directions, if they are needed.
    fn check_measured(
        &self,
        path: &str,
        weight: &Weight,
        needed: bool,
    ) -> Result<(), AdapterError> {
        match weight.directions() {
            Directions::Unknown if needed => {
                Err(AdapterError::NotCalibrated { method: NAME, path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Makes the identity on one side of a weight; `None` for a rank of 0.
    fn rotation(
        &self,
        config: &RotationConfig,
        side: WeightSide,
        path: &str,
        weight: &Weight,
        w: &Tensor<2>,
    ) -> Result<Option<Rotation>, AdapterError> {
        let [input, output] = w.dims();
        let width = if side == WeightSide::Input { input } else { output };
        let Some(subspace) = self.placement() else {
            return whole_rotation(config, side, path, width, weight, w);
        };
        let mut r = config.rank_of(side, path, width).map_err(decomposition(path))?;
        if subspace == Subspace::Principal {
            r = r.min(input).min(output);
        }
        if r == 0 {
            return Ok(None);
        }
        self.check_measured(path, weight, subspace != Subspace::Principal)?;
        let columns = match weight.directions() {
            Directions::InState => None,
            _ if subspace == Subspace::Principal => {
                let svd = weight.svd().map_err(decomposition(path))?.svd;
                Some(if side == WeightSide::Input { svd.u } else { svd.vt.transpose() })
            }
            Directions::Measured(directions) => match side {
                WeightSide::Input => directions.input.as_ref().map(|side| side.vectors.clone()),
                WeightSide::Output => directions.output.as_ref().map(|side| side.vectors.clone()),
            },
            Directions::Unknown => None,
        };
        let q = match columns {
            Some(columns) => copy_in_order(columns.narrow(1, 0, r.min(width))),
            None => Tensor::zeros([width, r], (&w.device(), w.dtype())),
        };
        let rotation = Rotation::identity(&[r], config.parametrization, w).within(q);
        Ok(Some(if config.scales { rotation.scaled(r, w) } else { rotation }))
    }
}

/// Makes the identity of a structure without a frozen basis; `None` for a width that is too small for two
/// reflections.
fn whole_rotation(
    config: &RotationConfig,
    side: WeightSide,
    path: &str,
    width: usize,
    weight: &Weight,
    w: &Tensor<2>,
) -> Result<Option<Rotation>, AdapterError> {
    let kronecker = || -> Result<Rotation, AdapterError> {
        let sizes = config.sizes_of(width).map_err(decomposition(path))?;
        Ok(Rotation::identity(&sizes, config.parametrization, w))
    };
    let seed = config.seed.unwrap_or_default();
    Ok(Some(match config.structure {
        Structure::Kronecker | Structure::Subspace => kronecker()?,
        Structure::KroneckerPermuted => {
            kronecker()?.then_permuted(kronecker()?, Permutation::random(width, seed, w))
        }
        Structure::GroupAndShuffle => {
            let size = nearest_divisor(width, config.block_size.unwrap_or(BLOCK_SIZE));
            let blocks = || Rotation::block_identity(width, size, config.parametrization, w);
            blocks().then_permuted(blocks(), Permutation::shuffle(width, size, w))
        }
        Structure::Householder => {
            let pairs = config.rank.unwrap_or(REFLECTIONS).min(width) / 2;
            if pairs == 0 {
                return Ok(None);
            }
            let init = SeededInit::new(seed, path, weight);
            let name = if side == WeightSide::Input { "reflections" } else { "output_reflections" };
            // As PEFT draws one vector of each pair. Only its direction counts.
            let half = init.kaiming(name, [width, pairs, 1], pairs);
            Rotation::from_reflections(half.repeat_dim(2, 2).reshape([width, 2 * pairs]))
        }
    }))
}

impl RotationConfig {
    /// Returns the dimension of the subspace of one side of the weight at `path`; 0 for no rotation.
    fn rank_of(&self, side: WeightSide, path: &str, width: usize) -> Result<usize, LinalgError> {
        let own = self.ranks.get(&side_key(path, side == WeightSide::Output)).copied();
        let squares = |sizes: Vec<usize>| sizes.iter().map(|size| size * size).sum::<usize>();
        let rank = match own.or(self.rank) {
            Some(rank) => rank,
            None => squares(self.sizes_of(width)?).isqrt(),
        };
        Ok(rank.min(width))
    }

    /// Returns the sizes of the Kronecker factors of a width.
    fn sizes_of(&self, width: usize) -> Result<Vec<usize>, LinalgError> {
        let named = self.sizes.iter().find(|sizes| product(sizes) == Some(width));
        named.map_or_else(|| factor_sizes(width, self.factors), |sizes| Ok(sizes.clone()))
    }
}
