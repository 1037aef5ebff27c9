//! Kernels of our own, compiled when they are first asked for.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use burn::tensor::DType;
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};

/// Compiled kernels, for as long as the process lives.
pub(super) type Image = &'static Ptx;

/// `kernels.cu` and what follows it, compiled for the first device, or `None` where NVRTC or the device cannot: burn's own operations do
/// its work then.
pub(super) fn kernels() -> Option<Image> {
    static IMAGE: OnceLock<Option<Ptx>> = OnceLock::new();
    let source = concat!(
        include_str!("numbers.cu"),
        include_str!("kernels.cu"),
        include_str!("pieces.cu"),
        include_str!("halves.cu")
    );
    IMAGE.get_or_init(|| compile(source, &[], Target::From((0, 0)))).as_ref()
}

/// Devices that a source is for, by their compute capability.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// All from this one on.
    From((i32, i32)),
    /// This one, with the instructions that no other has.
    Only((i32, i32)),
}

/// A source that is compiled for one type of numbers, `NUMBER`, and a width (or sizes in one number) `D`, by when it is first
/// asked for; `None` where NVRTC cannot or the device is no target.
pub(super) fn image(
    source: &'static str,
    dtype: DType,
    width: usize,
    target: Target,
) -> Option<Image> {
    type Images = HashMap<(usize, DType, usize), Option<Image>>;
    static IMAGES: LazyLock<Mutex<Images>> = LazyLock::new(Mutex::default);
    let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    *images.entry((source.as_ptr() as usize, dtype, width)).or_insert_with(|| {
        let number = match dtype {
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            _ => "float",
        };
        let bf16 = u8::from(dtype == DType::BF16);
        let macros = [format!("NUMBER={number}"), format!("BF16={bf16}"), format!("D={width}")];
        let image = compile(source, &macros, target)?;
        // As many as there are types and widths in a process: a few.
        Some(Box::leak(Box::new(image)))
    })
}

/// A source with these macros, compiled for the first device if that is a target.
fn compile(source: &str, macros: &[String], target: Target) -> Option<Ptx> {
    let (major, minor) = capability()?;
    let (fits, own) = match target {
        Target::From(least) => ((major, minor) >= least, ""),
        Target::Only(one) => ((major, minor) == one, "a"),
    };
    if !fits {
        return None;
    }
    let mut options = vec![format!("--gpu-architecture=compute_{major}{minor}{own}")];
    options.extend(macros.iter().map(|name| format!("-D{name}")));
    compile_ptx_with_opts(source, CompileOptions { options, ..Default::default() }).ok()
}

/// The compute capability of the first device.
#[allow(unsafe_code, reason = "calls of the CUDA driver")]
pub(super) fn capability() -> Option<(i32, i32)> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    static FOUND: OnceLock<Option<(i32, i32)>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        result::init().ok()?;
        let device = result::device::get(0).ok()?;
        // SAFETY: reads two properties.
        unsafe {
            let property = |which| result::device::get_attribute(device, which).ok();
            Some((property(MAJOR)?, property(MINOR)?))
        }
    })
}
