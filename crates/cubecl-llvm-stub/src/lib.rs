//! A stand-in for `cubecl-llvm` 0.11: the names that `cubecl-cuda` mentions, and no compiler.
//!
//! The published crate links LLVM 23, which its build script downloads, so a build without that
//! download fails; and `cubecl-cuda` depends on it even with its feature `cpp`, under which every kernel
//! goes through CUDA C++ and NVRTC and LLVM is never called. With this crate in its place the CUDA
//! backend builds from crates.io alone. Should the LLVM path be taken after all, [`PlironCompiler`]
//! answers with an error that says so.

pub mod nvptx;
pub mod shared;

use cubecl_environment::backtrace::BackTrace;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

use crate::nvptx::ptx_version::PtxVersion;

/// What the compiler would emit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// Machine code.
    #[default]
    Cpu,
    /// PTX.
    Nvptx,
}

/// The compiler that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would emit.
    pub target: LlvmTarget,
}

/// Its options, none of which is read.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// An AMD architecture; there is none without that backend.
    pub arch: Option<core::convert::Infallible>,
    /// The NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// The PTX version.
    pub ptx_version: Option<PtxVersion>,
    /// Whether launch parameters are passed as grid constants.
    pub grid_constants: bool,
}

/// A compiled PTX module.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX, NUL-terminated.
    pub ptx: Vec<core::ffi::c_char>,
    /// The kernel's symbol.
    pub entrypoint: String,
    /// The intermediate representation, for logs.
    pub ir: String,
    /// Shared memory of a launch, in bytes.
    pub shared_memory_size: usize,
    /// How each buffer is used.
    pub io: Vec<BufferIOAttr>,
}

/// What a compilation would give.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// A PTX module.
    NvptxCode(NvptxModule),
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM; build with the feature `cubecl-cuda/cpp`, which compiles with NVRTC"
                .to_owned(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
