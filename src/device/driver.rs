//! The launcher on a GPU, over cudarc's thin driver layer: the device's primary context, one stream, the embedded
//! images loaded once, kernels resolved by name.

use super::gpu::{DeviceInfo, describe, device_handle, devices, failed, kernel_module_version};
use super::images::Image;
use super::{Event, Launch, Launcher};
use crate::error::{Error, Kind, Result};
use crate::tensor::{Allocator, Region, Space, View, ViewMut, format_bytes};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Every function of libcuda that we make cudarc call, checked before the first call: cudarc panics at a missing one.
pub(super) const SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
];

/// The primary context and everything that dies with it. Memory and events hold it, so it outlives them.
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
}

// SAFETY: the driver API may be called from any thread; its handles are plain identifiers, and every use makes the
// context current on its own thread first.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Context {
    fn open(device: sys::CUdevice) -> Result<Self, DriverError> {
        // SAFETY: `device` came from cuDeviceGet; the context is released in drop, and current before the stream is made.
        unsafe {
            let handle = result::primary_ctx::retain(device)?;
            let mut context = Context { device, handle, stream: std::ptr::null_mut(), modules: Vec::new() };
            context.bind()?;
            context.stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            Ok(context)
        }
    }

    /// Makes the context current on the calling thread, as every call of the driver requires.
    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained until drop.
        unsafe { result::ctx::set_current(self.handle) }
    }
}

impl Drop for Context {
    /// A failure here means that an earlier call already failed, and that one was reported.
    fn drop(&mut self) {
        let _ = self.bind();
        // SAFETY: memory and events hold this context, so nothing else is left that uses it.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
            for &module in &self.modules {
                let _ = result::module::unload(module);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[derive(Clone, Copy)]
struct Kernel {
    function: sys::CUfunction,
    /// The size of its one parameter, as the driver tells it.
    param_bytes: usize,
    /// Dynamic shared memory allowed so far; 48 KiB needs no permission.
    shared_limit: u32,
}

/// A GPU.
pub struct Driver {
    info: DeviceInfo,
    allocator: DeviceAllocator,
    context: Arc<Context>,
    /// The module that holds each kernel with code for this GPU.
    modules: HashMap<&'static str, sys::CUmodule>,
    kernels: RefCell<HashMap<String, Kernel>>,
    /// For errors that surface later than the launch they belong to.
    last_kernel: RefCell<String>,
}

// SAFETY: the raw handles in `modules` and `kernels` are identifiers of the context, which is Send.
unsafe impl Send for Driver {}

impl Driver {
    /// Opens GPU `ordinal` (as CUDA_VISIBLE_DEVICES numbers them) and loads those of `images` that hold code for it.
    pub fn open(ordinal: usize, images: &[Image]) -> Result<Self> {
        let devices = devices()?;
        if ordinal >= devices.len() {
            let visible = devices.len();
            return Err(Error::usage(format!("there is no GPU {ordinal}: {visible} visible"))
                .help("GPUs are numbered from 0, as CUDA_VISIBLE_DEVICES orders them"));
        }
        let device = device_handle(ordinal as i32)?;
        let info = describe(device)?;
        let mut context = Context::open(device).map_err(|e| failed(&format!("opening a context on {}", info.name), e))?;
        let mut modules = HashMap::new();
        for image in images {
            if let Some(module) = load_image(image, &info)? {
                context.modules.push(module);
                modules.extend(image.kernels.iter().map(|&kernel| (kernel, module)));
            }
        }
        let context = Arc::new(context);
        let allocator = DeviceAllocator { context: context.clone(), regions: AtomicUsize::new(0) };
        Ok(Driver { info, allocator, context, modules, kernels: RefCell::default(), last_kernel: RefCell::default() })
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The stream of every launch and copy, for libraries that work in issue order with them. Makes the context current.
    pub fn stream(&self) -> Result<sys::CUstream> {
        self.bind()?;
        Ok(self.context.stream)
    }

    /// Copies on the device, in issue order.
    pub fn copy(&self, x: View, out: ViewMut) -> Result<()> {
        expect_device("copy", x.space(), out.space())?;
        expect_bytes("copy", x.bytes(), out.bytes())?;
        self.bind()?;
        // SAFETY: both views are device memory of this many bytes, and live until the stream has passed the copy, since
        // regions are freed only after a synchronisation.
        let copied = unsafe { result::memcpy_dtod_async(out.address(), x.address(), x.bytes(), self.context.stream) };
        copied.map_err(|e| self.failed("a copy on the device", e))
    }

    fn bind(&self) -> Result<()> {
        self.context.bind().map_err(|e| failed("making the context current", e))
    }

    /// An error of a call that may belong to an earlier launch: kernels run asynchronously.
    fn failed(&self, what: &str, error: DriverError) -> Error {
        let error = failed(what, error);
        match self.last_kernel.borrow().as_str() {
            "" => error,
            kernel => error.help(format!(
                "the last kernel launched was {kernel}; with CUDA_LAUNCH_BLOCKING=1 the kernel at fault reports itself"
            )),
        }
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        if let Some(kernel) = self.kernels.borrow().get(name) {
            return Ok(*kernel);
        }
        let (major, minor) = self.info.capability;
        let absent = || {
            let device = &self.info.name;
            Error::internal(format!(
                "no image in this binary holds the kernel {name} for {device} (capability {major}.{minor})"
            ))
        };
        let &module = self.modules.get(name).ok_or_else(absent)?;
        let symbol = CString::new(name).map_err(|_| absent())?;
        // SAFETY: the module is loaded until the context is dropped.
        let function = unsafe { result::module::get_function(module, symbol) };
        let function = function.map_err(|error| self.failed(&format!("resolving the kernel {name}"), error))?;
        let kernel = Kernel { function, param_bytes: single_parameter_bytes(name, function)?, shared_limit: 48 << 10 };
        self.kernels.borrow_mut().insert(name.to_string(), kernel);
        Ok(kernel)
    }

    /// Raises a kernel's dynamic shared memory where the launch needs more than it was allowed.
    fn allow_shared(&self, name: &str, kernel: &mut Kernel, bytes: u32) -> Result<()> {
        if bytes <= kernel.shared_limit {
            return Ok(());
        }
        if bytes as i32 > self.info.shared_opt_in {
            let limit = format_bytes(self.info.shared_opt_in as usize);
            let wanted = format_bytes(bytes as usize);
            return Err(Error::internal(format!(
                "{name} wants {wanted} of shared memory; a block has {limit} on {}",
                self.info.name
            )));
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to a loaded module.
        unsafe { result::function::set_function_attribute(kernel.function, attribute, bytes as i32) }
            .map_err(|e| self.failed(&format!("raising the shared memory of {name}"), e))?;
        kernel.shared_limit = bytes;
        self.kernels.borrow_mut().insert(name.to_string(), *kernel);
        Ok(())
    }
}

/// Loads one fatbin, or nothing where it holds no code for this GPU (a file for Hopper alone, on another).
fn load_image(image: &Image, info: &DeviceInfo) -> Result<Option<sys::CUmodule>> {
    // SAFETY: a whole fatbin, made by nvcc at build time and aligned where it is embedded; the driver copies what it keeps.
    match unsafe { result::module::load_data(image.fatbin.as_ptr().cast()) } {
        Ok(module) => Ok(Some(module)),
        Err(DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => Ok(None),
        Err(DriverError(status)) => {
            let mut error = failed(&format!("loading {} on {}", image.source, info.name), DriverError(status));
            if status == CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION {
                error = Error { kind: Kind::Usage, ..error };
                error = error.help("update the NVIDIA driver: these kernels were built with a newer CUDA than it knows");
            }
            Err(error)
        }
    }
}

/// The size of a kernel's only parameter.
fn single_parameter_bytes(name: &str, function: sys::CUfunction) -> Result<usize> {
    let parameter = |index| {
        let (mut offset, mut bytes) = (0usize, 0usize);
        // SAFETY: both out-pointers are valid, and the function belongs to a loaded module.
        unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut bytes) }.result().map(|()| bytes)
    };
    match (parameter(0), parameter(1)) {
        (Ok(bytes), Err(_)) => Ok(bytes),
        (Ok(_), Ok(_)) => Err(Error::internal(format!("the kernel {name} has more than one parameter"))),
        (Err(error), _) => Err(failed(&format!("asking the parameter of {name}"), error)),
    }
}

fn expect_device(what: &str, from: Space, to: Space) -> Result<()> {
    if from == Space::Device && to == Space::Device {
        return Ok(());
    }
    Err(Error::internal(format!("{what}: the memory is not on the GPU")))
}

fn expect_bytes(what: &str, source: usize, destination: usize) -> Result<()> {
    if source == destination {
        return Ok(());
    }
    Err(Error::internal(format!("{what}: {source} bytes into {destination}")))
}

impl Launcher for Driver {
    fn device(&self) -> String {
        match kernel_module_version() {
            Some(version) => format!("{}, driver {version}", self.info.name),
            None => self.info.name.clone(),
        }
    }

    fn allocator(&self) -> &dyn Allocator {
        &self.allocator
    }

    fn free_memory(&self) -> Result<Option<usize>> {
        self.bind()?;
        let (free, _) = result::mem_get_info().map_err(|e| self.failed("asking for free device memory", e))?;
        Ok(Some(free))
    }

    unsafe fn launch(&self, kernel: &str, launch: Launch, params: &[u8]) -> Result<()> {
        self.bind()?;
        let name = kernel;
        let mut kernel = self.kernel(name)?;
        if kernel.param_bytes != params.len() {
            return Err(Error::internal(format!(
                "the kernel {name} takes a parameter of {} bytes, and was given {}: its two definitions differ",
                kernel.param_bytes,
                params.len()
            )));
        }
        self.allow_shared(name, &mut kernel, launch.shared_bytes)?;
        self.last_kernel.borrow_mut().replace_range(.., name);
        let mut arguments = [params.as_ptr() as *mut c_void];
        // SAFETY: the parameter has the size the driver reads (just compared), which it copies before it returns; the
        // caller vouches for the addresses in it.
        unsafe {
            result::launch_kernel(
                kernel.function,
                launch.grid.into(),
                launch.block.into(),
                launch.shared_bytes,
                self.context.stream,
                &mut arguments,
            )
        }
        .map_err(|e| self.failed(&format!("launching {name} with {launch:?}"), e))
    }

    fn fill_bytes(&self, value: u8, out: ViewMut) -> Result<()> {
        expect_device("fill", out.space(), out.space())?;
        self.bind()?;
        // SAFETY: device memory of this many bytes, borrowed exclusively.
        let filled = unsafe { result::memset_d8_async(out.address(), value, out.bytes(), self.context.stream) };
        filled.map_err(|e| self.failed("filling device memory", e))
    }

    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()> {
        expect_device("upload", out.space(), out.space())?;
        expect_bytes("upload", bytes.len(), out.bytes())?;
        self.bind()?;
        // SAFETY: the sizes are equal, and `bytes` outlives the copy because we wait for it.
        unsafe { result::memcpy_htod_async(out.address(), bytes, self.context.stream) }
            .map_err(|e| self.failed("copying to the device", e))?;
        self.synchronize()
    }

    fn download(&self, x: View, out: &mut [u8]) -> Result<()> {
        expect_device("download", x.space(), x.space())?;
        expect_bytes("download", x.bytes(), out.len())?;
        self.bind()?;
        // SAFETY: the sizes are equal, and `out` outlives the copy because we wait for it.
        unsafe { result::memcpy_dtoh_async(out, x.address(), self.context.stream) }
            .map_err(|e| self.failed("copying from the device", e))?;
        self.synchronize()
    }

    fn shared_limit(&self) -> u32 {
        self.info.shared_opt_in as u32
    }

    fn mark(&self) -> Result<Box<dyn Event>> {
        self.bind()?;
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(|e| self.failed("creating an event", e))?;
        let mark = Mark { event, context: self.context.clone() };
        // SAFETY: event and stream belong to the context that is current.
        unsafe { result::event::record(mark.event, self.context.stream) }.map_err(|e| self.failed("recording an event", e))?;
        Ok(Box::new(mark))
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as the context.
        unsafe { result::stream::synchronize(self.context.stream) }.map_err(|e| self.failed("waiting for the GPU", e))
    }
}

/// A point in the stream.
struct Mark {
    event: sys::CUevent,
    context: Arc<Context>,
}

impl Event for Mark {
    fn milliseconds_since(&self, start: &dyn Event) -> Result<f64> {
        let start = start.as_any().downcast_ref::<Mark>().ok_or_else(|| Error::internal("a mark of another launcher"))?;
        let elapsed = || {
            self.context.bind()?;
            // SAFETY: both events were recorded, and live until their marks are dropped.
            unsafe {
                result::event::synchronize(self.event)?;
                result::event::elapsed(start.event, self.event)
            }
        };
        elapsed().map(f64::from).map_err(|e| failed("timing with events", e))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created in `mark`, destroyed once. A failure repeats one that was already reported.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}

struct DeviceAllocator {
    context: Arc<Context>,
    regions: AtomicUsize,
}

impl Allocator for DeviceAllocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        let reserve = || {
            self.context.bind()?;
            // SAFETY: fresh memory of at least one byte, zeroed in stream order before anyone can see its address.
            unsafe {
                let address = result::malloc_sync(bytes.max(1))?;
                let block = DeviceBlock { address, context: self.context.clone() };
                result::memset_d8_async(address, 0, bytes.max(1), self.context.stream)?;
                Ok(Arc::new(Region::new(address, bytes, Space::Device, Box::new(block))))
            }
        };
        self.regions.fetch_add(1, Ordering::Relaxed);
        reserve().map_err(|DriverError(status)| {
            let mut error = failed(&format!("reserving {} of device memory", format_bytes(bytes)), DriverError(status));
            if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                error.kind = Kind::DoesNotFit;
            }
            error
        })
    }

    fn regions(&self) -> usize {
        self.regions.load(Ordering::Relaxed)
    }
}

struct DeviceBlock {
    address: sys::CUdeviceptr,
    context: Arc<Context>,
}

impl Drop for DeviceBlock {
    /// Waits for the stream first, so that work in flight never outlives its memory.
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: allocated in `region`, freed once, after all work that was issued on it.
        unsafe {
            let _ = result::stream::synchronize(self.context.stream);
            let _ = result::free_sync(self.address);
        }
    }
}
