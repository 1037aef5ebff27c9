//! Test matrices, and error measures in f64 on the host by another implementation (nalgebra).

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{DType, Device, Tensor, TensorData};
use nalgebra::DMatrix;
use proptest::prelude::*;
use proptest::strategy::BoxedStrategy;

/// The machine epsilon of f32, the unit of the error bounds.
pub const EPS: f64 = f32::EPSILON as f64;

/// A generator of normal deviates that gives the same numbers for a seed on every platform.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A uniform deviate in `(0, 1)`, by splitmix64.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) as f64 + 0.5) / 2f64.powi(64)
    }

    /// A standard normal deviate, by the Box-Muller transform.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A matrix of standard normal deviates.
    pub fn matrix(&mut self, rows: usize, cols: usize) -> DMatrix<f64> {
        DMatrix::from_fn(rows, cols, |_, _| self.normal())
    }

    /// A matrix with orthonormal columns (rows, if it is wide).
    pub fn orthonormal(&mut self, rows: usize, cols: usize) -> DMatrix<f64> {
        if rows < cols {
            return self.orthonormal(cols, rows).transpose();
        }
        self.matrix(rows, cols).qr().q()
    }

    /// `U diag(s) Vᵀ` with random `U` and `V`; `s` is a function of the index from 0 to 1.
    pub fn with_spectrum(
        &mut self,
        rows: usize,
        cols: usize,
        s: impl Fn(f64) -> f64,
    ) -> DMatrix<f64> {
        let k = rows.min(cols);
        let mut u = self.orthonormal(rows, k);
        for (i, mut column) in u.column_iter_mut().enumerate() {
            column *= s(i as f64 / (k.max(2) - 1) as f64);
        }
        u * self.orthonormal(k, cols)
    }
}

/// `a` as a tensor of the given dtype.
pub fn tensor(a: &DMatrix<f64>, dtype: DType) -> Tensor<2> {
    let (rows, cols) = a.shape();
    let entries: Vec<f64> = a.transpose().as_slice().to_vec();
    let data = TensorData::new(entries, [rows, cols]).convert_dtype(dtype);
    Tensor::from_data(data, (&Device::default(), dtype))
}

/// `a` as an f32 tensor.
pub fn tensor_f32(a: &DMatrix<f64>) -> Tensor<2> {
    tensor(a, DType::F32)
}

/// A tensor as an nalgebra matrix in f64.
pub fn dmatrix(a: &Tensor<2>) -> DMatrix<f64> {
    let [rows, cols] = a.dims();
    DMatrix::from_row_iterator(rows, cols, a.try_to_vec_as::<f64>().unwrap())
}

/// The entries of a tensor in f64.
pub fn entries(a: &Tensor<1>) -> Vec<f64> {
    a.try_to_vec_as::<f64>().unwrap()
}

/// A batch `[b, rows, cols]` of matrices of one shape.
pub fn to_batch(matrices: &[DMatrix<f64>], dtype: DType) -> Tensor<3> {
    Tensor::stack(matrices.iter().map(|matrix| tensor(matrix, dtype)).collect(), 0)
}

/// The inverse of [`to_batch`].
pub fn from_batch(tensor: &Tensor<3>) -> Vec<DMatrix<f64>> {
    tensor.clone().iter_dim(0).map(|matrix| dmatrix(&matrix.squeeze_dim(0))).collect()
}

/// The largest magnitude of an entry; NaN if an entry is NaN, which nalgebra's `amax` drops.
pub fn max_abs(a: &DMatrix<f64>) -> f64 {
    soda_testing::max_abs(a.iter().copied())
}

/// `max |XᵀX - I|`, with `XXᵀ` for a wide `x`; NaN if an entry of `x` is.
pub fn orthogonality_error(x: &DMatrix<f64>) -> f64 {
    let x = if x.nrows() < x.ncols() { x.transpose() } else { x.clone() };
    max_abs(&(x.transpose() * &x - DMatrix::identity(x.ncols(), x.ncols())))
}

/// `|A - B|_F / |A|_F` without overflow; `max |B|` if `A` is zero, NaN if an entry is.
pub fn relative_error(a: &DMatrix<f64>, b: &DMatrix<f64>) -> f64 {
    let scale = max_abs(a);
    if scale == 0.0 { max_abs(b) } else { ((a - b) / scale).norm() / (a / scale).norm() }
}

/// Named matrices for the tests of every decomposition, rounded to f32.
pub fn cases() -> Vec<(&'static str, DMatrix<f64>)> {
    let mut noise = Noise::new(1);
    let random = noise.matrix(60, 40);
    vec![
        ("random square", noise.matrix(50, 50)),
        ("random tall", random.clone()),
        ("random wide", random.transpose()),
        ("rank 5 of 40", noise.matrix(60, 5) * noise.matrix(5, 40)),
        ("clustered", noise.with_spectrum(64, 48, |t| if t < 0.5 { 1.0 } else { 0.5 })),
        ("graded to 1e-8", noise.with_spectrum(64, 64, |t| 10f64.powf(-8.0 * t))),
        ("zero", DMatrix::zeros(9, 6)),
        ("identity", DMatrix::identity(12, 12)),
        ("1 x 1", DMatrix::from_element(1, 1, -3.0)),
        ("1 x n", noise.matrix(1, 17)),
        ("n x 1", noise.matrix(17, 1)),
        (
            "zero columns",
            DMatrix::from_fn(20, 10, |i, j| if j % 3 == 0 { 0.0 } else { (i * j) as f64 }),
        ),
        ("tall 2560 x 320", noise.matrix(2560, 320)),
        ("wide 320 x 1280", noise.matrix(320, 1280)),
        ("nearly dependent, small", small_remainder()),
        ("nearly dependent, small, wide", small_remainder().transpose()),
        ("nearly dependent, tall", nearly_dependent(&mut noise)),
        ("nearly dependent, wide", nearly_dependent(&mut noise).transpose()),
        ("graded, tall", noise.with_spectrum(900, 60, |t| 10f64.powf(-8.0 * t))),
        ("graded columns, tall", graded_columns(&mut noise)),
        ("graded columns, wide", graded_columns(&mut noise).transpose()),
        ("times 1e-30", &random * 1e-30),
        ("times 1e30", &random * 1e30),
        ("subnormal", &random * 1e-40),
    ]
    .into_iter()
    .map(|(name, matrix)| (name, matrix.map(|entry| f64::from(entry as f32))))
    .collect()
}

/// Two nearly parallel columns, which differ by `1e-7` of their norm.
fn small_remainder() -> DMatrix<f64> {
    let mut a = DMatrix::zeros(5, 2);
    (a[(0, 0)], a[(0, 1)], a[(1, 0)], a[(4, 1)]) = (72362.898, 748070.5, 0.493055, 0.190022);
    a
}

/// Every second column equals the one before it, up to a thousandth.
fn nearly_dependent(noise: &mut Noise) -> DMatrix<f64> {
    let mut a = noise.matrix(2560, 320);
    for j in (1..320).step_by(2) {
        let copy = a.column(j - 1).map(|entry| entry + 1e-3 * noise.normal());
        a.set_column(j, &copy);
    }
    a
}

/// Copies of one random column, each with a perturbation of another size.
fn graded_columns(noise: &mut Noise) -> DMatrix<f64> {
    let base = noise.matrix(1200, 1);
    DMatrix::from_fn(1200, 60, |i, j| base[i] + noise.normal() * 10f64.powi(-(j as i32 % 9)))
}

/// Small matrices whose entries have very different sizes; some are zero.
pub fn any_matrix() -> BoxedStrategy<DMatrix<f64>> {
    let entry = prop_oneof![
        4 => -1.0..1.0f64,
        1 => Just(0.0),
        1 => (-1.0..1.0f64, -12..12i32).prop_map(|(x, e)| x * 10f64.powi(e)),
    ];
    (1..24usize, 1..24usize)
        .prop_flat_map(move |(rows, cols)| {
            proptest::collection::vec(entry.clone(), rows * cols)
                .prop_map(move |entries| DMatrix::from_vec(rows, cols, entries))
        })
        .prop_map(|matrix| matrix.map(|entry| f64::from(entry as f32)))
        .boxed()
}
