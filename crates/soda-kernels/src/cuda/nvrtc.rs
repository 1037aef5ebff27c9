//! Compilation of this crate's kernels by NVRTC, at their first use.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use burn::tensor::DType;
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};

use super::sources::Source;

/// A compiled source. It lives as long as the process.
pub(super) type Image = &'static Ptx;

/// The image of [`Source::Base`], compiled for the first device.
///
/// It is `None` if NVRTC or the device cannot compile it. burn's own operations do its work then.
pub(super) fn base_image() -> Option<Image> {
    static IMAGE: OnceLock<Option<Ptx>> = OnceLock::new();
    IMAGE.get_or_init(|| compile(Source::Base, &[], Target::AtLeast((0, 0)))).as_ref()
}

/// The devices that a source is written for, by compute capability.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// This capability and all later ones.
    AtLeast((i32, i32)),
    /// This capability only, with the instructions that exist on no other.
    Exactly((i32, i32)),
}

/// The image of a source for one dtype and one number `D`, compiled at its first use.
///
/// The source sees the macros `NUMBER` (the dtype), `BF16` and `D` (a width, or sizes packed in one number).
/// The image is `None` if NVRTC cannot compile it or the device is no target.
pub(super) fn image(source: Source, dtype: DType, d: usize, target: Target) -> Option<Image> {
    type Images = HashMap<(Source, DType, usize), Option<Image>>;
    static IMAGES: LazyLock<Mutex<Images>> = LazyLock::new(Mutex::default);
    let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    *images.entry((source, dtype, d)).or_insert_with(|| {
        let number = match dtype {
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            _ => "float",
        };
        let bf16 = u8::from(dtype == DType::BF16);
        let macros = [format!("NUMBER={number}"), format!("BF16={bf16}"), format!("D={d}")];
        let image = compile(source, &macros, target)?;
        // A process leaks a few images: one for each dtype and width of its networks.
        Some(Box::leak(Box::new(image)))
    })
}

/// Compiles a source with these macros for the first device, if that is a target.
fn compile(source: Source, macros: &[String], target: Target) -> Option<Ptx> {
    let (major, minor) = compute_capability()?;
    let (fits, suffix) = match target {
        Target::AtLeast(least) => ((major, minor) >= least, ""),
        Target::Exactly(one) => ((major, minor) == one, "a"),
    };
    if !fits {
        return None;
    }
    let mut options = vec![format!("--gpu-architecture=compute_{major}{minor}{suffix}")];
    options.extend(macros.iter().map(|name| format!("-D{name}")));
    compile_ptx_with_opts(source.text(), CompileOptions { options, ..Default::default() }).ok()
}

/// The compute capability of the first device.
#[allow(unsafe_code, reason = "calls of the CUDA driver")]
pub(super) fn compute_capability() -> Option<(i32, i32)> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    static FOUND: OnceLock<Option<(i32, i32)>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        result::init().ok()?;
        let device = result::device::get(0).ok()?;
        // SAFETY: the calls read two properties of the device.
        unsafe {
            let property = |which| result::device::get_attribute(device, which).ok();
            Some((property(MAJOR)?, property(MINOR)?))
        }
    })
}
