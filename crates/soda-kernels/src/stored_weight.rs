//! Frozen weights of a network that are quantized, in host memory, or both, in the place of float parameters.
//!
//! The parameter of a stored weight holds one NaN, so that nothing reads it by mistake. The layer reads its
//! weight through burn's reparameterization, which is the stored one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use burn::backend::Dispatch;
use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param, Reparameterization, Reparameterizer,
};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::backend::Kernels;
use crate::cuda::pin;
use crate::device::checksum::checksum_of_transposed;
use crate::device::vendor_blas::has_vendor_blas;
use crate::host_matrix::{HostMatrix, HostNumbers};
use crate::host_transpose::transposed;
use crate::ops::linear::deferred::offer_product;
use crate::quantize::{QuantLayout, QuantizedMatrix};

/// The segment of a path between a weight and its stored form.
const SEGMENT: &str = "stored";

/// The frozen weight `[in, out]` of a linear layer in a [`QuantFormat`](crate::QuantFormat), in the memory of
/// the host, or both.
///
/// What is stored is the matrix `[out, in]`, in which checkpoints have the weight.
#[derive(Clone, Debug)]
pub struct StoredWeight {
    storage: Storage,
    /// The scales of a quantized weight. Otherwise one number that nothing reads. It is on the device that
    /// computes with the weight.
    scales: Tensor<1>,
}

#[allow(clippy::large_enum_variant, reason = "most weights are on the device")]
#[derive(Clone, Debug)]
enum Storage {
    /// The words of a quantized matrix on the device.
    Device(Tensor<1, Int>, QuantLayout),
    Host(HostMatrix),
    /// Floats in host memory until their adapter is made.
    Waiting(HostMatrix),
}

/// How a [`StoredWeight`] is stored: what identifies it, beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFormat {
    /// The numbers of the matrix `[out, in]`.
    pub numbers: HostNumbers,
    /// Whether they are in host memory.
    pub is_offloaded: bool,
}

impl StoredWeight {
    /// Puts a quantized matrix `[out, in]` onto `device`.
    pub fn quantized(matrix: &QuantizedMatrix, device: &Device) -> Self {
        let layout = matrix.layout();
        let words = matrix.word_bytes();
        let words = TensorData::from_bytes_vec(words, [layout.words()], DType::I32);
        let words = Tensor::from_data(words, (device, DType::I32));
        Self { storage: Storage::Device(words, layout), scales: scales_on(device, matrix.scales()) }
    }

    /// Keeps a quantized matrix `[out, in]` in host memory, for products on `device`. Its scales are on the
    /// device.
    pub fn offloaded_codes(matrix: &QuantizedMatrix, device: &Device) -> Self {
        let scales = scales_on(device, matrix.scales());
        let host = HostMatrix::of_codes(matrix, |bytes| pin(bytes, &scales));
        Self { storage: Storage::Host(host), scales }
    }

    /// Keeps a matrix of floats `[out, in]` in host memory, for products on `device`. `None` if `data` is not
    /// such a matrix.
    pub fn offloaded_floats(data: &TensorData, device: &Device) -> Option<Self> {
        let scales = scales_on(device, &[1.0]);
        let host = HostMatrix::of_floats(data, |bytes| pin(bytes, &scales))?;
        Some(Self { storage: Storage::Host(host), scales })
    }

    /// Keeps a matrix of floats `[out, in]` in host memory until the adapter of the weight is made. The
    /// memory is not pinned, since it is read once or twice. `None` if `data` is not such a matrix.
    pub fn waiting_floats(data: &TensorData, device: &Device) -> Option<Self> {
        let host = HostMatrix::of_floats(data, |_| None)?;
        Some(Self { storage: Storage::Waiting(host), scales: scales_on(device, &[1.0]) })
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
        let [output, input] = match &self.storage {
            Storage::Device(_, layout) => layout.shape(),
            Storage::Host(host) | Storage::Waiting(host) => host.shape(),
        };
        [input, output]
    }

    /// The device that computes with the weight.
    pub fn device(&self) -> Device {
        self.scales.device()
    }

    /// Whether the device has the library of [`has_vendor_blas`](crate::has_vendor_blas).
    pub fn has_vendor_blas(&self) -> bool {
        has_vendor_blas(&self.scales)
    }

    /// How the weight is stored.
    pub fn format(&self) -> StoredFormat {
        match &self.storage {
            Storage::Device(_, layout) => {
                StoredFormat { numbers: HostNumbers::Codes(*layout), is_offloaded: false }
            }
            Storage::Host(host) | Storage::Waiting(host) => {
                StoredFormat { numbers: host.numbers(), is_offloaded: true }
            }
        }
    }

    /// The numbers and scales in little-endian order. They are the same wherever the weight is.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = match &self.storage {
            Storage::Device(words, _) => words.clone().into_data().as_bytes().to_vec(),
            Storage::Host(host) | Storage::Waiting(host) => host.bytes().to_vec(),
        };
        bytes.extend_from_slice(self.scales.clone().into_data().as_bytes());
        bytes
    }

    /// The numbers in host memory, if they are there.
    pub(crate) fn host_bytes(&self) -> Option<&[u8]> {
        match &self.storage {
            Storage::Device(..) => None,
            Storage::Host(host) | Storage::Waiting(host) => Some(host.bytes()),
        }
    }

    /// The scales of a quantized weight, or one number.
    pub(crate) fn scales(&self) -> Tensor<1> {
        self.scales.clone()
    }

    /// The bytes that the weight occupies on its device, and in host memory beside it.
    pub fn memory(&self) -> (usize, usize) {
        let scales = 4 * self.scales.dims()[0];
        match &self.storage {
            Storage::Device(words, _) => (4 * words.dims()[0] + scales, 0),
            Storage::Host(host) | Storage::Waiting(host) => (scales, host.bytes().len()),
        }
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
        assert_eq!(input, self.dims()[0], "a stored weight: the shapes do not fit");
        let (x, scales) = (x.into_dispatch(), self.scales.clone().into_dispatch());
        Tensor::from_dispatch(match &self.storage {
            Storage::Device(words, layout) => {
                Dispatch::linear_quantized(x, words.clone().into_dispatch(), scales, *layout)
            }
            Storage::Host(host) | Storage::Waiting(host) => {
                Dispatch::linear_from_host(x, host.clone(), scales)
            }
        })
    }

    /// The weight `[in, out]` in floats on the device. Its memory order is that of `[out, in]`.
    pub fn to_float(&self, dtype: DType) -> Tensor<2> {
        // There is no kernel for float64, which only tests of gradients use.
        let computed = FloatDType::from(if dtype == DType::F64 { DType::F32 } else { dtype });
        let scales = self.scales.clone().into_dispatch();
        let matrix = Tensor::<2>::from_dispatch(match &self.storage {
            Storage::Device(words, layout) => {
                let words = words.clone().into_dispatch();
                Dispatch::dequantize_matrix(words, scales, *layout, computed)
            }
            Storage::Host(host) | Storage::Waiting(host) => {
                Dispatch::matrix_from_host(host.clone(), scales, computed)
            }
        });
        matrix.transpose().cast(dtype)
    }

    /// The weight `[in, out]` in f32, if it is floats in host memory.
    pub fn host_floats(&self) -> Option<TensorData> {
        match &self.storage {
            Storage::Host(host) | Storage::Waiting(host) => match host.numbers() {
                HostNumbers::Floats { .. } => {
                    Some(transposed(&host.to_data().convert_dtype(DType::F32)))
                }
                HostNumbers::Codes(_) => None,
            },
            Storage::Device(..) => None,
        }
    }

    /// The [`checksum`](crate::checksum) of the weight `[in, out]` in f32, if it is floats in host memory.
    pub fn host_checksum(&self) -> Option<u64> {
        let (Storage::Host(host) | Storage::Waiting(host)) = &self.storage else { return None };
        match host.numbers() {
            HostNumbers::Floats { dtype, shape } => {
                checksum_of_transposed(dtype, shape, host.bytes())
            }
            HostNumbers::Codes(_) => None,
        }
    }

    /// Whether the weight waits in host memory until its adapter is made.
    pub fn is_waiting(&self) -> bool {
        matches!(self.storage, Storage::Waiting(_))
    }

    /// The floats `[out, in]` of a weight that waits; `None` of one that is stored as it will be read.
    pub fn waiting(&self) -> Option<TensorData> {
        match &self.storage {
            Storage::Waiting(host) => Some(host.to_data()),
            Storage::Device(..) | Storage::Host(_) => None,
        }
    }
}

fn scales_on(device: &Device, scales: &[f32]) -> Tensor<1> {
    Tensor::from_data(TensorData::from(scales), (device, DType::F32))
}

impl Reparameterization for StoredWeight {
    const NAME: &'static str = SEGMENT;

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        if STRIPPED.get() || offer_product(|x| Some(self.product(x))) {
            return base;
        }
        let dims = self.dims();
        // Only the weights of linear layers are stored, so D is 2.
        self.to_float(base.dtype()).reshape(std::array::from_fn::<_, D, _>(|axis| dims[axis]))
    }
}

thread_local! {
    /// Whether stored weights give their placeholders, so that they can be taken off.
    static STRIPPED: Cell<bool> = const { Cell::new(false) };
    /// The stored weight that a visit has just met, while [`stored_weights`] listens.
    static MET: RefCell<Option<Vec<StoredWeight>>> = const { RefCell::new(None) };
}

/// Takes the stored weights off a module: the module with placeholders, and the weights by the path of
/// their parameter.
///
/// The module has no other reparameterizations. [`with_stored`] puts weights on again.
pub fn take_stored<M: Module>(module: M) -> (M, BTreeMap<String, StoredWeight>) {
    let weights = stored_weights(&module);
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

/// The stored weights of a module, by the path of their parameter.
pub fn stored_weights<M: Module>(module: &M) -> BTreeMap<String, StoredWeight> {
    MET.set(Some(Vec::new()));
    let mut paths = Paths::default();
    module.visit(&mut paths);
    MET.set(None);
    paths.found
}

/// Puts stored weights in the place of the parameters with these paths. What a parameter held is dropped.
pub fn with_stored<M: Module>(module: M, weights: BTreeMap<String, StoredWeight>) -> M {
    if weights.is_empty() { module } else { module.apply_reparameterization(Put(weights)) }
}

/// A parameter in the place of a stored weight: one NaN in the dtype that the network computes in.
fn placeholder<const D: usize>(device: &Device, dtype: DType) -> Tensor<D> {
    Tensor::full([1; D], f32::NAN, (device, dtype))
}

struct Put(BTreeMap<String, StoredWeight>);

impl Reparameterizer for Put {
    type Reparam = StoredWeight;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<StoredWeight>) {
        match self.0.remove(path) {
            None => (param, None),
            Some(weight) => {
                let hold = |value: Tensor<D>| placeholder(&value.device(), value.dtype());
                (param.map(hold).set_require_grad(false), Some(weight))
            }
        }
    }
}

/// Collects stored weights. Their own visit tells of them, since a visitor is told of parameters only.
#[derive(Default)]
struct Paths {
    path: Vec<String>,
    found: BTreeMap<String, StoredWeight>,
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

/// Written by hand, since a visit tells [`stored_weights`] of the weight.
impl Module for StoredWeight {
    fn collect_devices(&self, devices: Devices) -> Devices {
        // The words of a weight are on the device of its scales.
        self.scales.collect_devices(devices)
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

impl StoredWeight {
    fn map_tensors(
        self,
        words: impl FnOnce(Tensor<1, Int>) -> Tensor<1, Int>,
        scales: impl FnOnce(Tensor<1>) -> Tensor<1>,
    ) -> Self {
        let storage = match self.storage {
            Storage::Device(tensor, layout) => Storage::Device(words(tensor), layout),
            host @ (Storage::Host(_) | Storage::Waiting(_)) => host,
        };
        Self { storage, scales: scales(self.scales) }
    }
}

impl ModuleDisplayDefault for StoredWeight {
    fn content(&self, content: Content) -> Option<Content> {
        let [input, output] = self.dims();
        let StoredFormat { numbers, is_offloaded } = self.format();
        let numbers = match numbers {
            HostNumbers::Codes(layout) => layout.format().name().to_owned(),
            HostNumbers::Floats { dtype, .. } => format!("{dtype:?}").to_lowercase(),
        };
        let place = if is_offloaded { ", offloaded" } else { "" };
        content.add_single(&format!("{numbers} {{shape: [{input}, {output}]{place}}}")).optional()
    }
}

impl ModuleDisplay for StoredWeight {}
