//! Pinned host memory, which the device reads without the host's help.

use std::ffi::c_void;
use std::sync::mpsc::channel;

use burn::tensor::Tensor;
use cudarc::driver::sys;

use crate::cuda::stream::{flush, submit};
use crate::cuda::support::{Cube, on_cuda};
use crate::host_matrix::Pin;

/// Memory that is pinned in a context of the driver.
struct Pinned {
    /// The addresses of the context and of the memory, which threads may share.
    context: usize,
    memory: usize,
}

/// Pins `bytes` for the CUDA device of `like`. The caller drops the result before the bytes.
///
/// `None` on another device, and where the system allows no more pinned memory. Copies from memory that is
/// not pinned are correct, and wait for the host.
#[allow(unsafe_code, reason = "calls of the CUDA driver")]
pub(crate) fn pin(bytes: &[u8], like: &Tensor<1>) -> Option<Pin> {
    let like = like.clone().without_autodiff().try_into_primitive::<Cube>().ok().filter(on_cuda)?;
    let (memory, length) = (bytes.as_ptr() as usize, bytes.len());
    let (sender, receiver) = channel();
    // The device's thread has the device's context.
    submit([&like], move |_, [_]| {
        let mut context = std::ptr::null_mut();
        // SAFETY: the caller holds the bytes while this function waits. It drops the result before them.
        let is_pinned = unsafe {
            sys::cuCtxGetCurrent(&mut context).result().is_ok()
                && sys::cuMemHostRegister_v2(memory as *mut c_void, length, 0).result().is_ok()
        };
        let _ = sender.send(is_pinned.then_some(context as usize));
        Ok(())
    });
    flush();
    let context = receiver.recv().ok().flatten()?;
    Some(Box::new(Pinned { context, memory }))
}

impl Drop for Pinned {
    #[allow(unsafe_code, reason = "calls of the CUDA driver")]
    fn drop(&mut self) {
        // SAFETY: the memory was pinned in this context, and its copies are done when the context is
        // synchronized. What fails here fails at the end of the process, which unpins all memory.
        unsafe {
            if sys::cuCtxPushCurrent_v2(self.context as sys::CUcontext).result().is_ok() {
                let _ = sys::cuCtxSynchronize();
                let _ = sys::cuMemHostUnregister(self.memory as *mut c_void);
                let _ = sys::cuCtxPopCurrent_v2(&mut std::ptr::null_mut());
            }
        }
    }
}
