//! A stand-in for `cubecl-llvm` 0.11: the names that `cubecl-cuda` uses, without a compiler.
//!
//! The published crate links LLVM 23, which its build script downloads, so a build without that download
//! fails. `cubecl-cuda` depends on the crate even with the feature `cpp`, under which every kernel goes
//! through CUDA C++ and NVRTC. With this crate in its place the CUDA backend builds from crates.io alone. If
//! the LLVM path is taken nevertheless, [`PlironCompiler`] returns an error that names the feature.

pub mod nvptx;
pub mod shared;

use cubecl_environment::backtrace::BackTrace;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

use crate::nvptx::ptx_version::PtxVersion;

/// The output of the compiler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// Machine code for the CPU.
    #[default]
    Cpu,
    /// PTX for NVIDIA cards.
    Nvptx,
}

/// The compiler, which only returns an error.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// The output that was asked for.
    pub target: LlvmTarget,
}

/// The options of [`PlironCompiler`], none of which is read.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// The AMD architecture, which has no value without that backend.
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
    /// The symbol of the kernel.
    pub entrypoint: String,
    /// The intermediate representation, for logs.
    pub ir: String,
    /// The shared memory of a launch in bytes.
    pub shared_memory_size: usize,
    /// The use of each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// The result of a compilation.
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
