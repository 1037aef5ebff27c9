//! The devices of this build. No other file of soda-cli names a backend.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::Result;
use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;
use tracing::info_span;

/// The value of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    /// The best device that this build and this machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU through Vulkan, Metal, DX12 or WebGPU: the default adapter, or one by its index.
    Wgpu(Option<usize>),
    /// An NVIDIA GPU: the first, or one by its index.
    Cuda(Option<usize>),
}

/// The backends that this build has, by their names in `--device`.
const BACKENDS: &[&str] = &[
    #[cfg(feature = "cpu")]
    "cpu",
    #[cfg(feature = "wgpu")]
    "wgpu[:N]",
    #[cfg(feature = "cuda")]
    "cuda[:N]",
];

/// The help text of `--device`.
pub(crate) fn help() -> String {
    format!(
        "Where to compute: auto, cpu, wgpu[:N] (Vulkan, Metal, DX12, WebGPU) or cuda[:N] (NVIDIA). N is the index of \
         the GPU. auto takes the best that the machine has. This build has: {}",
        BACKENDS.join(", ")
    )
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => {
                (name, index.parse::<usize>().map(Some).map_err(|_| expected())?)
            }
            None => (text, None),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            ("cuda", index) => Ok(Self::Cuda(index)),
            _ => Err(expected()),
        }
    }
}

fn expected() -> String {
    "give auto, cpu, wgpu, wgpu:N, cuda or cuda:N, where N is the index of a GPU".to_owned()
}

/// Writes the choice as `--device` takes it.
impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, index) = match self {
            Self::Auto => ("auto", None),
            Self::Cpu => ("cpu", None),
            Self::Wgpu(index) => ("wgpu", *index),
            Self::Cuda(index) => ("cuda", *index),
        };
        match index {
            Some(index) => write!(formatter, "{name}:{index}"),
            None => formatter.write_str(name),
        }
    }
}

/// The device of this process.
static OPENED: OnceLock<Device> = OnceLock::new();

/// Waits until the device of this process has done all that is queued on it.
///
/// The CUDA driver closes while a process ends. An operation that an error left in the queue would run
/// after that, and panic.
pub(crate) fn finish() {
    if let Some(device) = OPENED.get() {
        // A failure here is of results that nobody reads any more.
        let _ = device.sync();
    }
}

impl DeviceChoice {
    /// Opens the device of this process.
    ///
    /// # Errors
    /// This build lacks the backend, or the machine has no GPU with this index.
    pub(crate) fn open(self) -> Result<Device> {
        let _span = info_span!("open device").entered();
        let device = self.find()?;
        OPENED.get_or_init(|| device.clone());
        Ok(device)
    }

    fn find(self) -> Result<Device> {
        #[cfg(feature = "persistence")]
        if self != Self::Cpu && kernel_cache_has_room() {
            soda_kernels::enable_kernel_cache();
        }
        match self {
            Self::Auto => best(),
            #[cfg(feature = "cpu")]
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(None) => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(Some(index)) => nth(burn::tensor::DeviceType::Wgpu, index, "wgpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => cuda(index.unwrap_or(0)),
            #[allow(unreachable_patterns, reason = "a build with every backend lacks none")]
            Self::Cpu | Self::Wgpu(_) | Self::Cuda(_) => {
                let choice = self.to_string();
                let name = choice.split(':').next().unwrap_or_default();
                anyhow::bail!(
                    "this soda was built without the {name} backend; build it with `--features {name}`"
                )
            }
        }
    }

    /// The choice of a rank: each takes the GPU of its number, or the only one that it is shown.
    pub(crate) fn of_rank(self, local_rank: Option<usize>) -> Self {
        let shown = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
        match (self, local_rank) {
            (Self::Cuda(None), Some(rank)) if !is_one_device(&shown) => Self::Cuda(Some(rank)),
            #[cfg(feature = "cuda")]
            (Self::Auto, Some(rank)) if !is_one_device(&shown) && cuda(0).is_ok() => {
                Self::Cuda(Some(rank))
            }
            (choice, _) => choice,
        }
    }

    /// The same backend without an index.
    pub(crate) fn without_index(self) -> Self {
        match self {
            Self::Wgpu(_) => Self::Wgpu(None),
            Self::Cuda(_) => Self::Cuda(None),
            choice => choice,
        }
    }
}

/// Whether a value of `CUDA_VISIBLE_DEVICES` shows one device.
fn is_one_device(shown: &str) -> bool {
    !shown.trim().is_empty() && !shown.contains(',')
}

/// Returns the device `index` of those that the backend finds on this machine.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn nth(backend: burn::tensor::DeviceType, index: usize, name: &str) -> Result<Device> {
    let mut found = Device::enumerate(backend).into_vec();
    let shown = std::env::var("CUDA_VISIBLE_DEVICES").ok().filter(|_| name == "CUDA");
    if let (true, Some(shown)) = (found.is_empty(), shown) {
        anyhow::bail!(
            "this machine has no CUDA device `{shown}`, which `--gpus` or CUDA_VISIBLE_DEVICES names, or no driver \
             that shows it"
        );
    }
    anyhow::ensure!(
        !found.is_empty(),
        "this machine has no {name} device, or no driver that shows it; give another --device"
    );
    anyhow::ensure!(
        index < found.len(),
        "there is no {name} device {index}: this machine has {}, counted from 0",
        found.len()
    );
    Ok(found.swap_remove(index))
}

/// Returns the CUDA device `index`, if this machine has what its kernels need.
#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    let device = nth(burn::tensor::DeviceType::Cuda, index, "CUDA")?;
    match soda_kernels::missing_for_cuda() {
        None => Ok(device),
        Some(missing) => anyhow::bail!(
            "the CUDA device needs {missing}, which this machine lacks; install the CUDA toolkit, or give \
             another --device"
        ),
    }
}

/// Whether compiled kernels can be kept on disk. The cache of CubeCL panics where it cannot write.
#[cfg(feature = "persistence")]
fn kernel_cache_has_room() -> bool {
    /// The kernels of all networks take 7 MB, and the database of the cache a copy while it writes.
    const KERNELS: u64 = 16 << 20;
    let folder = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let folder = folder.filter(|folder| folder.is_absolute());
    let home = || std::env::home_dir().map(|home| home.join(".cache"));
    folder.or_else(home).is_some_and(|folder| soda_files::has_room(&folder, KERNELS))
}

/// The best device: an NVIDIA GPU, another GPU, then the processor, of the backends in this build.
///
/// A build with one backend uses that backend. burn's environment variable `BURN_DEVICE` overrides the
/// choice.
fn best() -> Result<Device> {
    if BACKENDS.len() > 1 && std::env::var_os("BURN_DEVICE").is_none() {
        #[cfg(feature = "cuda")]
        if let Ok(device) = cuda(0) {
            return Ok(device);
        }
        #[cfg(feature = "wgpu")]
        if has_gpu() {
            return Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice));
        }
        #[cfg(feature = "cpu")]
        return Ok(Device::flex());
    }
    check_variable(std::env::var("BURN_DEVICE").ok().as_deref())?;
    let device = Device::default();
    #[cfg(feature = "cuda")]
    if device == Device::cuda(0) {
        return cuda(0);
    }
    Ok(device)
}

/// Refuses a value of `BURN_DEVICE` that names none of this build's backends; burn would panic.
fn check_variable(value: Option<&str>) -> Result<()> {
    let names: Vec<&str> = BACKENDS
        .iter()
        .map(|name| name.trim_end_matches("[:N]"))
        .map(|name| if name == "cpu" { "flex" } else { name })
        .collect();
    match value {
        Some(value) if !names.contains(&value.to_lowercase().as_str()) => anyhow::bail!(
            "the environment variable BURN_DEVICE is `{value}`, and this soda has {}",
            names.join(", ")
        ),
        _ => Ok(()),
    }
}

/// Whether wgpu finds a GPU. A software rasterizer (lavapipe, llvmpipe, WARP) is slower than the CPU backend.
#[cfg(feature = "wgpu")]
fn has_gpu() -> bool {
    let software = Device::wgpu(burn::tensor::DeviceKind::Cpu);
    let found = Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec();
    found.iter().any(|device| *device != software)
}

/// The device for work that computes nothing, such as a conversion: the processor if this build has it.
#[cfg(feature = "cpu")]
pub(crate) fn host() -> Device {
    Device::flex()
}

/// The device for work that computes nothing, in a build without the CPU backend: the default device.
#[cfg(not(feature = "cpu"))]
pub(crate) fn host() -> Device {
    Device::default()
}

/// The precision of weights and computations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    #[default]
    F32,
    F16,
    Bf16,
}

impl From<soda_train::Precision> for Precision {
    fn from(precision: soda_train::Precision) -> Self {
        match precision {
            soda_train::Precision::F32 => Self::F32,
            soda_train::Precision::F16 => Self::F16,
            soda_train::Precision::Bf16 => Self::Bf16,
        }
    }
}

impl From<Precision> for FloatDType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Bf16 => Self::BF16,
        }
    }
}

/// The best number of shards of a batch: one per thread on the processor, otherwise one.
pub(crate) fn shards(device: &Device) -> usize {
    if is_processor(device) { rayon::current_num_threads() } else { 1 }
}

/// Whether a device is one of wgpu's.
#[cfg(all(feature = "cpu", feature = "wgpu"))]
pub(crate) fn is_wgpu(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    if Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().contains(device) {
        return false;
    }
    !is_processor(device)
}

/// Whether a device is the processor.
pub(crate) fn is_processor(device: &Device) -> bool {
    #[cfg(feature = "cpu")]
    if *device == Device::flex() {
        return true;
    }
    let _ = device;
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_written_as_it_is_read() {
        for text in ["auto", "cpu", "wgpu", "wgpu:0", "cuda", "cuda:13"] {
            let choice = DeviceChoice::from_str(text);
            assert_eq!(choice.as_ref().map(ToString::to_string), Ok(text.to_owned()));
        }
        for text in ["", "gpu", "auto:0", "cpu:1", "cuda:", "cuda:-1", "cuda:0:1", "CUDA"] {
            assert_eq!(DeviceChoice::from_str(text), Err(expected()), "{text}");
        }
    }

    #[test]
    fn a_rank_takes_the_device_of_its_number() {
        assert_eq!(DeviceChoice::Cpu.of_rank(Some(3)), DeviceChoice::Cpu);
        assert_eq!(DeviceChoice::Cuda(Some(1)).of_rank(Some(3)), DeviceChoice::Cuda(Some(1)));
        assert_eq!(DeviceChoice::Cuda(None).of_rank(None), DeviceChoice::Cuda(None));
        assert!(is_one_device("3") && is_one_device("GPU-8932f937") && !is_one_device("0,1"));
        assert!(!is_one_device("") && !is_one_device(" "));
    }

    #[test]
    fn the_default_device_opens() {
        assert!(DeviceChoice::default().open().is_ok());
    }

    #[test]
    fn the_variable_names_a_backend_of_the_build() {
        assert!(check_variable(None).is_ok());
        let error = check_variable(Some("abacus")).map_err(|error| error.to_string());
        assert!(error.is_err_and(|error| error.contains("BURN_DEVICE is `abacus`")));
        #[cfg(feature = "cpu")]
        assert!(check_variable(Some("Flex")).is_ok());
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_missing_backend_is_named_with_its_feature() {
        let error = DeviceChoice::Cuda(Some(1)).open().map_err(|error| error.to_string());
        let message =
            "this soda was built without the cuda backend; build it with `--features cuda`";
        assert_eq!(error.err().as_deref(), Some(message));
    }
}
