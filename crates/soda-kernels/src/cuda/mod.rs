//! CUDA: products by cuBLAS and cuBLASLt, convolutions by cuDNN, other operations by kernels of this crate.
//!
//! The libraries are NVIDIA's and are loaded at run time if the machine has them; every machine with PyTorch
//! does. A build needs nothing of CUDA.
//!
//! All calls work on the backend's own buffers, in the order of its stream. Burn's kernels do what no library
//! or kernel takes, and everything on a machine without them.
//!
//! | module | contents |
//! |---|---|
//! | `kernels` | the traits `Kernels` and `KernelGradients` for the CubeCL backend |
//! | `tensors` | the functions on tensors that the rest of the crate calls, apart from those traits |
//! | `graph` | capture and replay of CUDA graphs |
//! | `cublas`, `cublaslt`, `cudnn` | calls of the libraries |
//! | `cublaslt_plan`, `cudnn_plan` | descriptors and chosen algorithms, kept for each shape |
//! | `nccl` | sums over the GPUs of several processes |
//! | `copy_stream`, `offload/` | copies of matrices in host memory, ahead of the products that read them |
//! | `driver` | calls of the driver, and its errors |
//! | `dlopen` | whether a library is there |
//! | `handles` | handles and workspaces of the libraries, for each stream |
//! | `matrices` | how the matrices of a tensor are stored, as the libraries take it |
//! | `stream` | tasks in the order of the backend's streams |
//! | `module` | loading of compiled kernels and their launches |
//! | `nvrtc`, `sources` | compilation of kernels, and the list of their sources |
//! | `launch/` | the launchers of this crate's kernels, one file an operation |
//! | `src/*.cu`, `src/*.cuh` | the kernels |

mod copy_stream;
mod cublas;
mod cublaslt;
mod cublaslt_plan;
mod cudnn;
mod cudnn_plan;
mod dlopen;
mod driver;
mod graph;
mod handles;
mod kernels;
mod launch;
mod matrices;
mod module;
mod nccl;
mod nvrtc;
mod offload;
mod sources;
mod stream;
mod support;
mod tensors;

pub use dlopen::missing_for_cuda;
pub(crate) use graph::Graph;
pub(crate) use nccl::{Communicator, nccl_refusal, nccl_unique_id};
pub(crate) use offload::{begin_pass, end_pass, pin};
pub(crate) use tensors::{
    Tf32Split, checksum, free_bytes, has_blas, has_fp8_products, kronecker_gradient,
    kronecker_product, multi_tensor_cat, multi_tensor_split, polar_step, tf32_split,
    workspace_bytes,
};
