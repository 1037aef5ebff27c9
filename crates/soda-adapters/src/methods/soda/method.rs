//! How SODA's settings make an adapter for a weight.

use burn::tensor::Tensor;
use soda_kernels::deep_copy;
use soda_linalg::{LinalgError, factor_sizes};

use super::adapter::Soda;
use super::allocation::{ranks, side_key};
use super::config::{
    Basis, RotationConfig, Selection, Shift, Side, SodaConfig, SpectrumConfig, Structure, Subspace,
};
use super::rotation::Rotation;
use super::spectrum::Spectrum;
use super::truncated::TruncatedSpectrum;
use crate::directions::{Calibration, CalibrationRequest, Directions};
use crate::error::AdapterError;
use crate::method::{Geometry, Method};
use crate::methods::bounds::{MAX_DRAWS, MAX_PRODUCT_RANK, MAX_TERMS, MAX_WIDTH};
use crate::probe::{Probe, ProbeSettings, Signal};
use crate::seeded_init::SeededInit;
use crate::weight::{Weight, compute_dtype};

const NAME: &str = "soda";

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
        let [input, output] = weight.matrix.dims();
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

    fn init(&self, path: &str, weight: &Weight) -> Result<Soda, AdapterError> {
        self.check()?;
        let w = weight.matrix.clone().cast(compute_dtype(weight.matrix.dtype()));
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
        Ok(Soda::new(input, output, spectrum, truncated, &w))
    }

    fn geometry(&self, path: &str) -> Geometry {
        // Generators of the Cayley transform and unconstrained matrices have other names, and are Euclidean.
        // Frozen bases have orthonormal columns too.
        const ORTHONORMAL: [&str; 4] = [
            "rotation.factors.",
            "rotation.basis",
            "truncated_spectrum.left",
            "truncated_spectrum.right",
        ];
        let is_orthonormal = ORTHONORMAL.iter().any(|name| path.contains(name));
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
    fn signal(&self) -> Option<Signal> {
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
            let sizes = config.sizes_of(width).map_err(decomposition(path))?;
            return Ok(Some(Rotation::identity(&sizes, config.parametrization, w)));
        };
        let r = config.rank_of(side, path, width).map_err(decomposition(path))?;
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
            Some(columns) => deep_copy(columns.narrow(1, 0, r.min(width))),
            None => Tensor::zeros([width, r], (&w.device(), w.dtype())),
        };
        Ok(Some(Rotation::identity(&[r], config.parametrization, w).within(q)))
    }

    /// Checks the settings.
    fn check(&self) -> Result<(), AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: NAME, reason });
        if self.rotation.is_none() && self.spectrum.is_none() {
            return refuse("it trains nothing; keep the rotation, the spectrum, or both");
        }
        if self.rotation.as_ref().is_some_and(|rotation| rotation.factors == 0) {
            return refuse("a rotation has at least one factor");
        }
        if self.rotation.as_ref().is_some_and(|rotation| rotation.factors > MAX_TERMS) {
            return refuse("a rotation has at most 100 factors");
        }
        let mut sizes = self.rotation.iter().flat_map(|rotation| &rotation.sizes);
        if sizes.any(|sizes| product(sizes).is_none_or(|width| width > MAX_WIDTH)) {
            return refuse("sizes of factors are those of widths up to 1048576");
        }
        let mut sizes = self.rotation.iter().flat_map(|rotation| &rotation.sizes);
        if sizes.any(|sizes| sizes.is_empty() || sizes.contains(&0)) {
            return refuse("sizes of factors are lists of numbers of 1 or more");
        }
        if let Some(rotation) = &self.rotation {
            let subspace = rotation.structure == Structure::Subspace;
            if !subspace && (rotation.subspace.is_some() || rotation.rank.is_some()) {
                return refuse(
                    "`rotation.subspace` and `rotation.rank` belong to `rotation.structure = \
                     \"subspace\"`",
                );
            }
            let shares = rotation.numbers.is_some() || !rotation.ranks.is_empty();
            if shares && !(subspace && self.signal().is_some()) {
                return refuse(
                    "`rotation.numbers` and `rotation.ranks` belong to a subspace of the gradient or of \
                     the activations",
                );
            }
            if rotation.numbers.is_some() && rotation.rank.is_some() {
                return refuse("`rotation.numbers` and `rotation.rank` exclude each other");
            }
            if rotation.ranks.values().any(|rank| *rank > MAX_PRODUCT_RANK) {
                return refuse("the ranks of `rotation.ranks` are at most 4096");
            }
            if rotation.rank.is_some_and(|rank| !(1..=MAX_PRODUCT_RANK).contains(&rank)) {
                return refuse("`rotation.rank` is between 1 and 4096");
            }
        }
        if let Some(spectrum) = &self.spectrum {
            let is_plain =
                spectrum.basis == Basis::Svd && matches!(spectrum.shift, Shift::Diagonal { .. });
            if spectrum.rank.is_some() && !is_plain {
                return refuse(
                    "`spectrum.rank` belongs to a diagonal shift in the basis of an SVD",
                );
            }
            if spectrum.rank.is_some_and(|rank| !(1..=MAX_PRODUCT_RANK).contains(&rank)) {
                return refuse("`spectrum.rank` is between 1 and 4096");
            }
            if spectrum.select.is_some() && spectrum.rank.is_none() {
                return refuse("`spectrum.select` belongs to a `spectrum.rank`");
            }
        }
        if let Some(calibration) = self.calibration {
            if self.calibration().is_none() {
                return refuse(
                    "`calibration` belongs to directions of the gradient or of the activations",
                );
            }
            if !(1..=MAX_DRAWS).contains(&calibration.draws) {
                return refuse("`calibration.draws` is between 1 and 100000");
            }
        }
        match self.spectrum.as_ref().map(|spectrum| spectrum.shift) {
            Some(Shift::Diagonal { init }) if !init.is_finite() => {
                refuse("the spectrum's start must be a finite number")
            }
            Some(Shift::LowRank { rank: 0, .. }) => refuse("a low-rank shift has rank 1 or more"),
            Some(Shift::LowRank { rank, .. }) if rank > MAX_PRODUCT_RANK => {
                refuse("a low-rank shift has at most rank 4096")
            }
            _ => Ok(()),
        }
    }
}

/// The width that factors of these sizes are for. `None` if it is out of range.
fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1, |width: usize, size| width.checked_mul(*size))
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
