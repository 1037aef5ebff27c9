//! The parameters that training moves, one tensor for all of one shape, geometry and rate: what is done to them takes as many
//! kernels as there are shapes, and not layers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Add;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use soda_adapters::{Component, Geometry, Leaf, Method, leaves, map_leaves};
use soda_kernels::{cat, has_library, matmul, own, split};

use crate::step::gradients::AdapterGradients;

/// Rows and columns of a parameter as a matrix: its last axis are the columns, a vector is one row.
pub(crate) type Shape = [usize; 2];

/// Parameters that move at a rate of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Of the denoiser, or of a module that is no pipeline's.
    Denoiser,
    /// Adapters of text encoders.
    Text,
    /// Vectors of new words.
    Tokens,
}

impl Part {
    const ALL: [Self; 3] = [Self::Denoiser, Self::Text, Self::Tokens];

    fn of(path: &str) -> Self {
        match Component::split(path) {
            Some((Component::TextEncoder | Component::TextEncoder2, inside)) => {
                if inside.contains(".new_tokens.") { Self::Tokens } else { Self::Text }
            }
            _ => Self::Denoiser,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Denoiser => "denoiser",
            Self::Text => "text",
            Self::Tokens => "tokens",
        }
    }
}

/// What the parameters of a stack have in common, besides their geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) part: Part,
    pub(crate) shape: Shape,
}

impl Kind {
    /// What stands before the first dot after it in a stored state, `text.4x8` of `text.4x8.moment`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut words = name.split('.');
        let (part, shape) = (words.next()?, words.next()?);
        let part = Part::ALL.into_iter().find(|known| known.name() == part)?;
        let (rows, cols) = shape.split_once('x')?;
        Some(Self { part, shape: [rows.parse().ok()?, cols.parse().ok()?] })
    }
}

/// As [`Kind::parse`] reads it.
impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.shape;
        write!(formatter, "{}.{rows}x{cols}", self.part.name())
    }
}

/// What stands in a stack, in its order.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) geometry: Geometry,
    pub(crate) kind: Kind,
    paths: Vec<String>,
}

/// A value for each parameter that training moves: the parameters themselves, their gradients, or an average.
#[derive(Clone, Debug)]
pub struct Stacks {
    layout: Arc<[Stack]>,
    /// `[count, rows, cols]` for each of the layout.
    values: Vec<Tensor<3>>,
}

impl Stacks {
    /// The trainable parameters of an adapted `module` on a plain device.
    pub fn of<M: Method, N: Module>(method: &M, module: &N) -> Self {
        let mut buckets: BTreeMap<(bool, Kind), Vec<Leaf>> = BTreeMap::new();
        for leaf in trainable(module) {
            let flat = method.geometry(&leaf.path) != Geometry::Stiefel;
            let kind = Kind { part: Part::of(&leaf.path), shape: matrix_shape(&leaf) };
            buckets.entry((flat, kind)).or_default().push(leaf);
        }
        let own = |leaf: Leaf| (leaf.path.clone(), leaf.value().without_autodiff());
        let stack = |((flat, kind), bucket): ((bool, Kind), Vec<Leaf>)| {
            let geometry = if flat { Geometry::Euclidean } else { Geometry::Stiefel };
            let (paths, values): (_, Vec<_>) = bucket.into_iter().map(own).unzip();
            (Stack { geometry, kind, paths }, stacked(values, kind.shape))
        };
        let (layout, values): (Vec<_>, _) = buckets.into_iter().map(stack).unzip();
        Self { layout: layout.into(), values }
    }

    /// `module` with these values, which has the parameters that this was made of.
    pub fn put<N: Module>(&self, module: N) -> N {
        let mut values: HashMap<&str, Tensor<1>> = self.each().collect();
        map_leaves(module, |leaf| values.remove(leaf.path.as_str()))
    }

    /// Gradients in the same order; zero where there is none.
    #[must_use]
    pub fn gradients(&self, mut grads: AdapterGradients) -> Self {
        self.map(|stack, value| {
            let [_, rows, cols] = value.dims();
            let zeros = || Tensor::zeros([rows * cols], (&value.device(), value.dtype()));
            let own = |path: &String| grads.0.remove(path).unwrap_or_else(zeros);
            stacked(stack.paths.iter().map(own).collect(), stack.kind.shape)
        })
    }

    /// The norm over all of it, `[1]`; `None` of nothing.
    pub fn norm(&self) -> Option<Tensor<1>> {
        let all = (!self.values.is_empty()).then(|| cat(self.flat()))?;
        if !has_library(&all) {
            return Some(all.square().sum().sqrt());
        }
        // A library's product of a row and a column is many times as fast as burn's sum of all.
        let n = all.dims()[0];
        Some(matmul(all.clone().reshape([1, n]), all.reshape([n, 1])).reshape([1]).sqrt())
    }

    /// All of it times `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f32) -> Self {
        self.map(|_, value| value.clone().mul_scalar(factor))
    }

    /// The same numbers in memory of their own.
    #[must_use]
    pub fn copied(&self) -> Self {
        self.map(|_, value| own(value.clone()))
    }

    /// The stacks one by one, flat: the inputs of a [`Recording`](soda_kernels::Recording).
    pub fn flat(&self) -> Vec<Tensor<1>> {
        self.values.iter().map(|value| value.clone().flatten(0, 2)).collect()
    }

    /// The same parameters with the next values of `flat`, in the order of [`Stacks::flat`].
    #[must_use]
    pub fn filled(&self, mut flat: impl Iterator<Item = Tensor<1>>) -> Self {
        self.map(|_, value| match flat.next() {
            Some(flat) => flat.reshape(value.dims()),
            None => value.clone(),
        })
    }

    /// The values by path.
    pub(crate) fn state(&self) -> BTreeMap<String, TensorData> {
        self.each().map(|(path, value)| (path.to_owned(), value.into_data())).collect()
    }

    /// The same parameters with stored values; `None` if those are of others.
    pub(crate) fn restored(&self, mut stored: BTreeMap<String, TensorData>) -> Option<Self> {
        let mut values = Vec::with_capacity(self.values.len());
        for (stack, value) in self.layout.iter().zip(&self.values) {
            let [_, rows, cols] = value.dims();
            let mut own = Vec::with_capacity(stack.paths.len());
            for path in &stack.paths {
                let fits = |data: &TensorData| data.shape().as_slice() == [rows * cols];
                let data = stored.remove(path).filter(fits)?;
                own.push(Tensor::from_data(data, (&value.device(), value.dtype())));
            }
            values.push(stacked(own, stack.kind.shape));
        }
        stored.is_empty().then(|| Self { layout: Arc::clone(&self.layout), values })
    }

    /// Each stack through `f`.
    pub(crate) fn map(&self, mut f: impl FnMut(&Stack, &Tensor<3>) -> Tensor<3>) -> Self {
        let values = self.layout.iter().zip(&self.values).map(|(stack, value)| f(stack, value));
        Self { layout: Arc::clone(&self.layout), values: values.collect() }
    }

    /// Each stack with that of `other`, which is of the same parameters, through `f`.
    pub(crate) fn zip(
        &self,
        other: &Self,
        mut f: impl FnMut(&Stack, Tensor<3>, Tensor<3>) -> Tensor<3>,
    ) -> Self {
        let mut others = other.values.iter();
        self.map(|stack, value| match others.next() {
            Some(other) => f(stack, value.clone(), other.clone()),
            None => value.clone(),
        })
    }

    /// The parameters one by one, flat.
    fn each(&self) -> impl Iterator<Item = (&str, Tensor<1>)> {
        self.layout.iter().zip(&self.values).flat_map(|(stack, value)| {
            let [count, rows, cols] = value.dims();
            let parts = split(value.clone().flatten(0, 2), &vec![rows * cols; count]);
            stack.paths.iter().map(String::as_str).zip(parts)
        })
    }
}

/// Gradients of the sum of two losses.
impl Add for Stacks {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.zip(&other, |_, a, b| a + b)
    }
}

/// The parameters that training moves, of a module on a plain device.
pub fn trainable<N: Module>(module: &N) -> Vec<Leaf> {
    // Off the tape no parameter asks for a gradient; which ones would shows on it.
    let taped = leaves(&module.clone().train());
    let moves = taped.into_iter().map(|leaf| leaf.trainable);
    leaves(module)
        .into_iter()
        .zip(moves)
        .filter_map(|(leaf, moves)| moves.then_some(leaf))
        .collect()
}

fn matrix_shape(leaf: &Leaf) -> Shape {
    let cols = leaf.shape.last().copied().unwrap_or(1);
    let elements: usize = leaf.shape.iter().product();
    [elements / cols.max(1), cols]
}

/// Flat tensors of one shape as `[count, rows, cols]`.
fn stacked(flat: Vec<Tensor<1>>, [rows, cols]: Shape) -> Tensor<3> {
    let count = flat.len();
    cat(flat).reshape([count, rows, cols])
}
