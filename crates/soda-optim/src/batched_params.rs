//! Trained parameters, batched: one tensor holds all parameters of one shape, geometry and group.
//!
//! An operation on all parameters then launches as many kernels as there are shapes, not as many as there are
//! layers.

use std::collections::{BTreeMap, HashMap};
use std::ops::Add;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use soda_adapters::{Geometry, Method, NamedParam, map_params, named_params};
use soda_kernels::{deep_copy, has_vendor_blas, matmul, multi_tensor_cat, multi_tensor_split};

use crate::error::OptimError;
use crate::gradients::AdapterGradients;
use crate::param_group::{BatchKey, MatrixShape, ParamGroup};

/// What the parameters of one batch have in common.
#[derive(Debug)]
pub struct ParamBatch {
    pub(crate) geometry: Geometry,
    pub(crate) key: BatchKey,
    /// In the order of the batch.
    params: Vec<BatchedParam>,
}

/// A parameter in a batch.
#[derive(Debug)]
struct BatchedParam {
    path: String,
    /// Number of matrices: more than 1 for a stack `[count, rows, cols]` on the Stiefel manifold.
    count: usize,
}

impl ParamBatch {
    /// The space that the parameters live in.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The group that the parameters belong to.
    pub fn group(&self) -> &ParamGroup {
        &self.key.group
    }
}

/// One value for each trained parameter: the parameters themselves, their gradients or an average.
#[derive(Clone, Debug)]
pub struct BatchedParams {
    layout: Arc<[ParamBatch]>,
    /// `[count, rows, cols]` for each batch of the layout.
    values: Vec<Tensor<3>>,
}

impl BatchedParams {
    /// The trainable parameters of an adapted `module` on a plain device, all in [`ParamGroup::DEFAULT`].
    pub fn new<M: Method, N: Module>(method: &M, module: &N) -> Self {
        Self::with_groups(method, module, |_| ParamGroup::DEFAULT)
    }

    /// The trainable parameters of an adapted `module` on a plain device; `group` maps a path to its group.
    pub fn with_groups<M: Method, N: Module>(
        method: &M,
        module: &N,
        group: impl Fn(&str) -> ParamGroup,
    ) -> Self {
        let mut buckets: BTreeMap<(bool, BatchKey), Vec<NamedParam>> = BTreeMap::new();
        for param in trainable_params(module) {
            let flat = method.geometry(&param.path) != Geometry::Stiefel;
            let shape = if flat { flat_shape(&param) } else { last_axes(&param) };
            let key = BatchKey { group: group(&param.path), shape };
            buckets.entry((flat, key)).or_default().push(param);
        }
        let batch = |((flat, key), params): ((bool, BatchKey), Vec<NamedParam>)| {
            let geometry = if flat { Geometry::Euclidean } else { Geometry::Stiefel };
            let matrix: usize = key.shape.iter().product();
            let entry = |param: NamedParam| {
                let count = param.shape.iter().product::<usize>() / matrix.max(1);
                let value = param.value().without_autodiff();
                (BatchedParam { path: param.path, count }, value)
            };
            let (params, values): (Vec<_>, Vec<_>) = params.into_iter().map(entry).unzip();
            let value = concatenated(&params, values, key.shape);
            (ParamBatch { geometry, key, params }, value)
        };
        let (layout, values): (Vec<_>, _) = buckets.into_iter().map(batch).unzip();
        Self { layout: layout.into(), values }
    }

    /// Writes these values into `module`, which has the parameters that `self` was made from.
    pub fn write_to<N: Module>(&self, module: N) -> N {
        let mut values: HashMap<&str, Tensor<1>> = self.unbatched().collect();
        map_params(module, |param| values.remove(param.path.as_str()))
    }

    /// Batches gradients in the layout of these parameters. A parameter without a gradient gets zeros.
    #[must_use]
    pub fn batch_gradients(&self, mut grads: AdapterGradients) -> Self {
        self.map(|batch, value| {
            let [_, rows, cols] = value.dims();
            let gradient = |BatchedParam { path, count }: &BatchedParam| {
                let shape = [count * rows * cols];
                let zeros = || Tensor::zeros(shape, (&value.device(), value.dtype()));
                grads.take(path).unwrap_or_else(zeros)
            };
            let flat = batch.params.iter().map(gradient).collect();
            concatenated(&batch.params, flat, batch.key.shape)
        })
    }

    /// The Euclidean norm over all values, `[1]`; `None` if there are no parameters.
    pub fn norm(&self) -> Option<Tensor<1>> {
        let all = (!self.values.is_empty()).then(|| multi_tensor_cat(self.flattened()))?;
        if !has_vendor_blas(&all) {
            return Some(all.square().sum().sqrt());
        }
        // A vendor's product of a row and a column is many times as fast as burn's sum of all elements.
        let n = all.dims()[0];
        Some(matmul(all.clone().reshape([1, n]), all.reshape([n, 1])).reshape([1]).sqrt())
    }

    /// Multiplies every value by `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f32) -> Self {
        self.map(|_, value| value.clone().mul_scalar(factor))
    }

    /// Copies the values into memory that nothing else uses.
    #[must_use]
    pub fn deep_copy(&self) -> Self {
        self.map(|_, value| deep_copy(value.clone()))
    }

    /// The batches as flat tensors `[count · rows · cols]`, the inputs of a
    /// [`CapturedGraph`](soda_kernels::CapturedGraph).
    pub fn flattened(&self) -> Vec<Tensor<1>> {
        self.values.iter().map(|value| value.clone().flatten(0, 2)).collect()
    }

    /// The same layout with the next values of `flattened`, in the order of [`BatchedParams::flattened`]. A
    /// batch keeps its value where the iterator has ended.
    #[must_use]
    pub fn with_flattened(&self, mut flattened: impl Iterator<Item = Tensor<1>>) -> Self {
        self.map(|_, value| match flattened.next() {
            Some(flat) => flat.reshape(value.dims()),
            None => value.clone(),
        })
    }

    /// The values by path, each flat, for a file.
    pub fn to_data(&self) -> BTreeMap<String, TensorData> {
        self.unbatched().map(|(path, value)| (path.to_owned(), value.into_data())).collect()
    }

    /// The same layout with stored values.
    ///
    /// # Errors
    /// [`OptimError::OtherParameters`] if a value is missing, has another size, or belongs to no parameter.
    pub fn from_data(&self, mut stored: BTreeMap<String, TensorData>) -> Result<Self, OptimError> {
        let other = |path: &str, what| OptimError::OtherParameters(format!("`{path}` {what}"));
        let mut values = Vec::with_capacity(self.values.len());
        for (batch, value) in self.layout.iter().zip(&self.values) {
            let [_, rows, cols] = value.dims();
            let mut flat = Vec::with_capacity(batch.params.len());
            for BatchedParam { path, count } in &batch.params {
                let data = stored.remove(path).ok_or_else(|| other(path, "is missing"))?;
                if data.shape().as_slice() != [count * rows * cols] {
                    return Err(other(path, "has another size"));
                }
                flat.push(Tensor::from_data(data, (&value.device(), value.dtype())));
            }
            values.push(concatenated(&batch.params, flat, batch.key.shape));
        }
        match stored.keys().next() {
            Some(path) => Err(other(path, "is no parameter of the module")),
            None => Ok(Self { layout: Arc::clone(&self.layout), values }),
        }
    }

    /// Applies `f` to each batch. `f` returns a value of the same shape.
    #[must_use]
    pub fn map(&self, mut f: impl FnMut(&ParamBatch, &Tensor<3>) -> Tensor<3>) -> Self {
        let values = self.layout.iter().zip(&self.values).map(|(batch, value)| f(batch, value));
        Self { layout: Arc::clone(&self.layout), values: values.collect() }
    }

    /// Applies `f` to each batch of `self` and of `other`, which has the same layout.
    #[must_use]
    pub fn zip(
        &self,
        other: &Self,
        mut f: impl FnMut(&ParamBatch, Tensor<3>, Tensor<3>) -> Tensor<3>,
    ) -> Self {
        let mut others = other.values.iter();
        self.map(|batch, value| match others.next() {
            Some(other) => f(batch, value.clone(), other.clone()),
            None => value.clone(),
        })
    }

    /// Paths and flat values of the single parameters.
    fn unbatched(&self) -> impl Iterator<Item = (&str, Tensor<1>)> {
        self.layout.iter().zip(&self.values).flat_map(|(batch, value)| {
            let [_, rows, cols] = value.dims();
            let sizes: Vec<_> =
                batch.params.iter().map(|param| param.count * rows * cols).collect();
            let values = multi_tensor_split(value.clone().flatten(0, 2), &sizes);
            batch.params.iter().map(|param| param.path.as_str()).zip(values)
        })
    }
}

/// The gradients of the sum of two losses.
impl Add for BatchedParams {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.zip(&other, |_, a, b| a + b)
    }
}

/// The parameters that training changes, of a module on a plain device.
pub fn trainable_params<N: Module>(module: &N) -> Vec<NamedParam> {
    // A parameter on a plain device requires no gradient. The module on the tape says which parameters would.
    let on_tape = named_params(&module.clone().train());
    let trainable = on_tape.into_iter().map(|param| param.trainable);
    named_params(module)
        .into_iter()
        .zip(trainable)
        .filter_map(|(param, trainable)| trainable.then_some(param))
        .collect()
}

/// A parameter as one matrix. Its last axis gives the columns.
fn flat_shape(param: &NamedParam) -> MatrixShape {
    let cols = param.shape.last().copied().unwrap_or(1);
    let elements: usize = param.shape.iter().product();
    [elements / cols.max(1), cols]
}

/// One matrix of a stack of matrices, which are its last two axes.
fn last_axes(param: &NamedParam) -> MatrixShape {
    match *param.shape.as_slice() {
        [.., rows, cols] => [rows, cols],
        _ => flat_shape(param),
    }
}

/// Concatenates the flat tensors of parameters to `[count, rows, cols]`.
fn concatenated(
    params: &[BatchedParam],
    flat: Vec<Tensor<1>>,
    [rows, cols]: MatrixShape,
) -> Tensor<3> {
    let count = params.iter().map(|param| param.count).sum();
    multi_tensor_cat(flat).reshape([count, rows, cols])
}
