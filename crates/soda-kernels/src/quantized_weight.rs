//! Quantized weights of a network, in the place of float parameters.
//!
//! The parameter of a quantized weight holds one NaN, so that nothing reads it by mistake. The layer
//! reads its weight through burn's reparameterization, which is the quantized one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use burn::backend::Dispatch;
use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param, Reparameterization, Reparameterizer,
};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::backend::Kernels;
use crate::ops::deferred::offer_product;
use crate::quantize::{QuantLayout, QuantizedMatrix};

/// The segment of a path between a weight and its quantized form.
const SEGMENT: &str = "quantized";

/// The frozen weight `[in, out]` of a linear layer in a [`QuantFormat`](crate::QuantFormat).
///
/// The codes are those of `[out, in]`, in which checkpoints have the weight.
#[derive(Clone, Debug)]
pub struct QuantizedWeight {
    words: Tensor<1, Int>,
    scales: Tensor<1>,
    layout: QuantLayout,
}

impl QuantizedWeight {
    /// Puts a matrix `[out, in]` onto `device`.
    pub fn new(matrix: &QuantizedMatrix, device: &Device) -> Self {
        let layout = matrix.layout();
        let words = matrix.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        let words = TensorData::from_bytes_vec(words, [layout.words()], DType::I32);
        let scales = TensorData::from(matrix.scales());
        let words = Tensor::from_data(words, (device, DType::I32));
        let scales = Tensor::from_data(scales, (device, DType::F32));
        Self { words, scales, layout }
    }

    /// This weight in the place of a parameter `[in, out]` of a network that computes in `dtype`. The
    /// value of `param` is dropped; one that is not initialized stays so.
    pub fn replace<const D: usize>(
        self,
        param: Param<Tensor<D>>,
        dtype: DType,
    ) -> Param<Tensor<D>> {
        let value = placeholder(&self.scales.device(), dtype);
        let param = Param::initialized(param.id, value);
        param.apply_reparameterization(Put(BTreeMap::from([(String::new(), self)])))
    }

    /// The shape of the weight, `[in, out]`.
    pub fn dims(&self) -> [usize; 2] {
        let [output, input] = self.layout.shape();
        [input, output]
    }

    /// Where codes and scales are.
    pub fn layout(&self) -> QuantLayout {
        self.layout
    }

    /// The codes and scales in little-endian order, which identify the weight.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.words.clone().into_data().as_bytes().to_vec();
        bytes.extend_from_slice(self.scales.clone().into_data().as_bytes());
        bytes
    }

    /// The product `x W` for rows `x` `[rows, in]`: `[rows, out]` in the dtype of `x`.
    ///
    /// The tape saves neither `x` nor the weight in floats, which the gradient by `x` needs for a moment.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn product(&self, x: Tensor<2>) -> Tensor<2> {
        let [_, input] = x.dims();
        assert_eq!(input, self.dims()[0], "a quantized weight: the shapes do not fit");
        Tensor::from_dispatch(Dispatch::linear_quantized(
            x.into_dispatch(),
            self.words.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.layout,
        ))
    }

    /// The weight `[in, out]` in floats. Its memory order is that of `[out, in]`.
    pub fn dequantize(&self, dtype: DType) -> Tensor<2> {
        // There is no kernel for float64, which only tests of gradients use.
        let computed = if dtype == DType::F64 { DType::F32 } else { dtype };
        let matrix = Tensor::<2>::from_dispatch(Dispatch::dequantize_matrix(
            self.words.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.layout,
            FloatDType::from(computed),
        ));
        matrix.transpose().cast(dtype)
    }
}

impl Reparameterization for QuantizedWeight {
    const NAME: &'static str = SEGMENT;

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        if STRIPPED.get() || offer_product(|x| Some(self.product(x))) {
            return base;
        }
        let dims = self.dims();
        // Only the weights of linear layers are quantized, so D is 2.
        self.dequantize(base.dtype()).reshape(std::array::from_fn::<_, D, _>(|axis| dims[axis]))
    }
}

thread_local! {
    /// Whether quantized weights give their placeholders, so that they can be taken off.
    static STRIPPED: Cell<bool> = const { Cell::new(false) };
    /// The quantized weight that a visit has just met, while [`quantized_weights`] listens.
    static MET: RefCell<Option<Vec<QuantizedWeight>>> = const { RefCell::new(None) };
}

/// Takes the quantized weights off a module: the module with placeholders, and the weights by the path of
/// their parameter.
///
/// The module has no other reparameterizations. [`with_quantized`] puts weights on again.
pub fn take_quantized<M: Module>(module: M) -> (M, BTreeMap<String, QuantizedWeight>) {
    let weights = quantized_weights(&module);
    if weights.is_empty() {
        return (module, weights);
    }
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            STRIPPED.set(false);
        }
    }
    let _restore = Restore;
    STRIPPED.set(true);
    (module.materialize(), weights)
}

/// The quantized weights of a module, by the path of their parameter.
pub fn quantized_weights<M: Module>(module: &M) -> BTreeMap<String, QuantizedWeight> {
    MET.set(Some(Vec::new()));
    let mut paths = Paths::default();
    module.visit(&mut paths);
    MET.set(None);
    paths.found
}

/// Puts quantized weights in the place of the parameters with these paths. What a parameter held is dropped.
pub fn with_quantized<M: Module>(module: M, weights: BTreeMap<String, QuantizedWeight>) -> M {
    if weights.is_empty() { module } else { module.apply_reparameterization(Put(weights)) }
}

/// A parameter in the place of a quantized weight: one NaN in the dtype that the network computes in.
fn placeholder<const D: usize>(device: &Device, dtype: DType) -> Tensor<D> {
    Tensor::full([1; D], f32::NAN, (device, dtype))
}

struct Put(BTreeMap<String, QuantizedWeight>);

impl Reparameterizer for Put {
    type Reparam = QuantizedWeight;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<QuantizedWeight>) {
        match self.0.remove(path) {
            None => (param, None),
            Some(weight) => {
                let hold = |value: Tensor<D>| placeholder(&value.device(), value.dtype());
                (param.map(hold).set_require_grad(false), Some(weight))
            }
        }
    }
}

/// Collects quantized weights. Their own visit tells of them, since a visitor is told of parameters only.
#[derive(Default)]
struct Paths {
    path: Vec<String>,
    found: BTreeMap<String, QuantizedWeight>,
}

impl ModuleVisitor for Paths {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, name: &str, _container: &str) {
        self.path.pop();
        let met = || MET.with_borrow_mut(|met| met.as_mut().and_then(Vec::pop));
        if name == SEGMENT
            && let Some(weight) = met()
        {
            self.found.insert(self.path.join("."), weight);
        }
    }
}

/// Written by hand, since a visit tells [`quantized_weights`] of the weight.
impl Module for QuantizedWeight {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.scales.collect_devices(self.words.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        self.map_tensors(|words| words.fork(device), |scales| scales.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_tensors(|words| words.to_device(device), |scales| scales.to_device(device))
    }

    fn train(self) -> Self {
        self.map_tensors(Module::train, Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().map_tensors(|words| words.valid(), |scales| scales.valid())
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, _visitor: &mut V) {
        MET.with_borrow_mut(|met| met.as_mut().map(|met| met.push(self.clone())));
    }

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        self
    }
}

impl QuantizedWeight {
    fn map_tensors(
        self,
        words: impl FnOnce(Tensor<1, Int>) -> Tensor<1, Int>,
        scales: impl FnOnce(Tensor<1>) -> Tensor<1>,
    ) -> Self {
        Self { words: words(self.words), scales: scales(self.scales), layout: self.layout }
    }
}

impl ModuleDisplayDefault for QuantizedWeight {
    fn content(&self, content: Content) -> Option<Content> {
        let [input, output] = self.dims();
        let format = self.layout.format().name();
        content.add_single(&format!("{format} {{shape: [{input}, {output}]}}")).optional()
    }
}

impl ModuleDisplay for QuantizedWeight {}
