//! Loading of compiled kernels and their launches on a stream.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};

use super::driver::driver_error;
use super::nvrtc::{Image, base_image};

/// The shared memory in bytes that a block may have by default.
const DEFAULT_SHARED: usize = 48 << 10;

/// Launches kernels on one stream. Modules and functions are loaded at their first use.
pub(super) struct Launcher {
    stream: sys::CUstream,
    /// The modules by the address of their image.
    modules: HashMap<usize, sys::CUmodule>,
    functions: HashMap<(usize, &'static str), sys::CUfunction>,
}

#[allow(unsafe_code, reason = "calls of the CUDA driver")]
impl Launcher {
    pub(super) fn new(stream: sys::CUstream) -> Self {
        Self { stream, modules: HashMap::new(), functions: HashMap::new() }
    }

    /// Launches a kernel of the base image with `shared` bytes of dynamic shared memory for each block.
    pub(super) fn launch(
        &mut self,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        shared: usize,
        arguments: Vec<u64>,
    ) -> Result<(), String> {
        let image = base_image().ok_or("the base image was not compiled")?;
        self.launch_in(image, name, grid, block, shared, arguments)
    }

    /// [`Launcher::launch`] for a kernel of another image.
    pub(super) fn launch_in(
        &mut self,
        image: Image,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        shared: usize,
        mut arguments: Vec<u64>,
    ) -> Result<(), String> {
        // Every argument has eight bytes: an address, a count, or a float in the low half.
        let arguments = arguments.iter_mut().map(|value| std::ptr::from_mut(value).cast());
        self.launch_pointers(image, name, grid, block, shared, arguments.collect())
    }

    /// [`Launcher::launch`] for a kernel whose only argument is a struct of eight-byte numbers.
    pub(super) fn launch_struct(
        &mut self,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        fields: &mut [u64],
    ) -> Result<(), String> {
        let image = base_image().ok_or("the base image was not compiled")?;
        self.launch_pointers(image, name, grid, block, 0, vec![fields.as_mut_ptr().cast()])
    }

    fn launch_pointers(
        &mut self,
        image: Image,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        shared: usize,
        mut arguments: Vec<*mut c_void>,
    ) -> Result<(), String> {
        let function = self.function(image, name)?;
        if shared > DEFAULT_SHARED {
            allow_shared(function, shared)?;
        }
        let (grid, block) = ((grid[0] as u32, grid[1] as u32, 1), (block as u32, 1, 1));
        // SAFETY: the arguments are those of the kernel of this name.
        unsafe {
            result::launch_kernel(function, grid, block, shared as u32, self.stream, &mut arguments)
        }
        .map_err(driver_error(name))
    }

    fn function(&mut self, image: Image, name: &'static str) -> Result<sys::CUfunction, String> {
        let key = std::ptr::from_ref(image) as usize;
        if let Some(function) = self.functions.get(&(key, name)) {
            return Ok(*function);
        }
        let bytes = image.as_bytes().ok_or("a compiled image is empty")?;
        // SAFETY: the image is complete and the context is current. Module and function live as long as the
        // process.
        let function = unsafe {
            let module = match self.modules.get(&key) {
                Some(module) => *module,
                None => result::module::load_data(bytes.as_ptr().cast())
                    .map_err(driver_error("cuModuleLoadData"))?,
            };
            self.modules.insert(key, module);
            let name = CString::new(name).map_err(driver_error("a kernel's name"))?;
            result::module::get_function(module, name)
                .map_err(driver_error("cuModuleGetFunction"))?
        };
        Ok(*self.functions.entry((key, name)).or_insert(function))
    }
}

/// Allows a kernel more shared memory than the default.
#[allow(unsafe_code, reason = "a call of the CUDA driver")]
fn allow_shared(function: sys::CUfunction, bytes: usize) -> Result<(), String> {
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function lives as long as the process.
    unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) }
        .map_err(driver_error("cuFuncSetAttribute"))
}
