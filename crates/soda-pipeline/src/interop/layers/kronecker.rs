//! LoKr as LyCORIS, ComfyUI, A1111 and PEFT store it: `ΔW = s W1 ⊗ W2`, each whole or a product.

use burn::tensor::{Device, Tensor};
use soda_adapters::Weight;
use soda_adapters::lokr::factorization;
use soda_kernels::matmul;
use soda_linalg::kron;

use super::delta::tucker;
use crate::error::InteropError;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::{LayerTensors, Parameters, to_host};
use crate::interop::peft::PeftConfig;

/// A LoKr of one weight, with the scale in `W2`.
#[derive(Clone)]
pub(crate) struct Kronecker {
    /// `W1`, `[out_1, in_1]`.
    first: Tensor<2>,
    /// `W2`, `[out_2, in_2 kh kw]`.
    second: Tensor<2>,
    /// `kh kw` of a convolution.
    window: usize,
}

/// The tensors of a LoKr matrix with their names: the whole matrix, and the two factors of a product.
type MatrixNames = [(Role, &'static str); 3];

const W1: MatrixNames =
    [(Role::LokrW1, "lokr_w1"), (Role::LokrW1A, "lokr_w1_a"), (Role::LokrW1B, "lokr_w1_b")];
const W2: MatrixNames =
    [(Role::LokrW2, "lokr_w2"), (Role::LokrW2A, "lokr_w2_a"), (Role::LokrW2B, "lokr_w2_b")];

impl Kronecker {
    /// Reads the tensors of a LoKr.
    pub(super) fn new(
        layer: &LayerTensors,
        config: Option<&PeftConfig>,
        weight: &Weight,
    ) -> Result<Self, InteropError> {
        let ([input, output], window) = (weight.dims(), weight.window());
        let device = weight.device();
        let (first, first_rank) = factor(layer, W1, [output, input], &device)?;
        let [rows, cols] = first.dims();
        let large = [output / rows.max(1), input / cols.max(1)];
        let (second, second_rank) = match layer.has(Role::LokrT2) {
            true => tucker_factor(layer, window, large, &device)?,
            false => factor(layer, W2, large, &device)?,
        };
        let [more_rows, more_cols] = second.dims();
        if rows * more_rows != output || cols * more_cols != input {
            let role = if layer.has(Role::LokrW2) { Role::LokrW2 } else { Role::LokrW2A };
            let shape = format!("{large:?} beside a first factor of [{rows}, {cols}]");
            return Err(layer.misfit(role, &shape));
        }
        let rank = first_rank.or(second_rank);
        let scale = match (layer.number(Role::Alpha)?, rank, config) {
            // PEFT divides by the rank of its configuration, also where no matrix is a product.
            (None, _, Some(PeftConfig::Lokr(config))) => {
                config.scale(layer.module(), config.rank(layer.module()))
            }
            (Some(alpha), Some(rank), _) => alpha / rank as f64,
            // In LyCORIS, two whole matrices have no rank, and the scale is 1.
            (Some(_), None, _) | (None, _, _) => 1.0,
        };
        Ok(Self { first, second: second.mul_scalar(scale), window })
    }

    /// Holds a delta `ΔWᵀ`, with the number 1 as `W1`. `window` is that of a convolution.
    pub(crate) fn whole(delta: Tensor<2>, window: usize) -> Self {
        let first = Tensor::ones([1, 1], (&delta.device(), delta.dtype()));
        Self { first, second: delta.transpose(), window }
    }

    /// Rows and columns of `W1`.
    pub(crate) fn small_size(&self) -> [usize; 2] {
        self.first.dims()
    }

    /// Whether LyCORIS' setting `factor` gives the sizes of this layer.
    pub(crate) fn has_factor(&self, factor: Option<usize>) -> bool {
        let ([rows, cols], [more_rows, more_cols]) = (self.first.dims(), self.second.dims());
        let side =
            |small: usize, large: usize| factorization(small * large, factor) == (small, large);
        side(rows, more_rows) && side(cols, more_cols / self.window)
    }

    /// The larger side of `W1`, above which no `factor` can be.
    pub(crate) fn largest_factor(&self) -> usize {
        let [rows, cols] = self.first.dims();
        rows.max(cols)
    }

    /// The tensors by their names in an adapter.
    pub(crate) fn parameters(&self) -> Parameters {
        let whole = |matrix: &Tensor<2>| to_host(matrix.clone());
        vec![("w1.whole".into(), whole(&self.first)), ("w2.whole".into(), whole(&self.second))]
    }

    /// Computes `ΔWᵀ`.
    pub(super) fn delta(&self) -> Tensor<2> {
        kron(&[self.first.clone(), self.second.clone()]).transpose()
    }
}

/// Returns a LoKr matrix of at most `most` rows and columns, and its rank if it is a product.
fn factor(
    layer: &LayerTensors,
    [whole, a, b]: MatrixNames,
    most: [usize; 2],
    device: &Device,
) -> Result<(Tensor<2>, Option<usize>), InteropError> {
    let too_large = |rows: usize, cols: usize| rows > most[0] || cols > most[1];
    let expected = || format!("at most {most:?}");
    if layer.has(whole.0) || !layer.has(a.0) {
        let matrix = layer.matrix(whole.0, whole.1, device)?;
        let [rows, cols] = matrix.dims();
        if too_large(rows, cols) {
            return Err(layer.misfit(whole.0, &expected()));
        }
        return Ok((matrix, None));
    }
    let (left, right) = (layer.matrix(a.0, a.1, device)?, layer.matrix(b.0, b.1, device)?);
    let ([rows, rank], [inner, cols]) = (left.dims(), right.dims());
    if rank != inner {
        return Err(layer.misfit(b.0, &format!("[{rank}, columns]")));
    }
    if too_large(rows, cols) {
        return Err(layer.misfit(a.0, &expected()));
    }
    Ok((matmul(left, right), Some(rank)))
}

/// Returns `W2` from a Tucker decomposition, and its rank.
fn tucker_factor(
    layer: &LayerTensors,
    window: usize,
    [rows, cols]: [usize; 2],
    device: &Device,
) -> Result<(Tensor<2>, Option<usize>), InteropError> {
    let core = layer.required(Role::LokrT2, "lokr_t2")?;
    let a = layer.matrix(Role::LokrW2A, "lokr_w2_a", device)?;
    let b = layer.matrix(Role::LokrW2B, "lokr_w2_b", device)?;
    let rank = a.dims()[0];
    let matrix = tucker(core, a, b, [rows, cols])
        .ok_or_else(|| layer.misfit(Role::LokrT2, &format!("[r, r] of a window of {window}")))?;
    Ok((matrix, Some(rank)))
}
