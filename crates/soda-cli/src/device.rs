//! The one file of the workspace that names a backend.

use anyhow::Result;
use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;

/// Where to compute; `auto` is the best this build has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceKind {
    #[default]
    Auto,
    /// The processor
    Cpu,
    /// A graphics card through Vulkan, Metal, DX12 or WebGPU
    Wgpu,
    /// An NVIDIA card
    Cuda,
}

impl DeviceKind {
    /// # Errors
    /// The build lacks that backend.
    pub(crate) fn open(self) -> Result<Device> {
        #[cfg(feature = "persistence")]
        soda_kernels::keep_compiled_kernels();
        match self {
            Self::Auto => Ok(Device::default()),
            #[cfg(feature = "cpu")]
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(Device::cuda(0)),
            #[allow(unreachable_patterns, reason = "a build with every backend lacks none")]
            kind => anyhow::bail!(
                "this soda was built without the {kind:?} backend; build it with `--features {}`",
                kind.to_possible_value().as_ref().map_or("", |value| value.get_name()),
            ),
        }
    }
}

/// In which precision weights are kept and networks compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    #[default]
    F32,
    F16,
    Bf16,
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

/// In how many parts a batch is best computed: a processor's threads work apart.
pub(crate) fn shards(device: &Device) -> usize {
    #[cfg(feature = "cpu")]
    if *device == Device::flex() {
        return rayon::current_num_threads();
    }
    let _ = device;
    1
}
