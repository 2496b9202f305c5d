//! The launcher on a GPU, over cudarc's thin driver layer: the device's primary context, two streams, the embedded
//! images loaded once, kernels resolved by name.

use super::gpu::{DeviceInfo, describe, device_handle, devices, failed, kernel_module_version};
use super::images::Image;
use super::{Event, Launch, Launcher, Recording, Stream, expect_bytes, graph};
use crate::error::{Error, Kind, Result};
use crate::tensor::{Allocator, Region, Space, View, ViewMut, format_bytes};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::any::Any;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Bytes that are not offered to tensors: the driver loads code and reserves local memory at first launches, cuBLASLt likewise.
const KEPT_FREE: usize = 256 << 20;

/// The primary context and everything that dies with it. Memory and events hold it, so it outlives them.
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    /// By [`Stream`].
    streams: [sys::CUstream; 2],
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
            let mut context = Context { device, handle, streams: [std::ptr::null_mut(); 2], modules: Vec::new() };
            context.bind()?;
            for stream in &mut context.streams {
                *stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            }
            Ok(context)
        }
    }

    /// Makes the context current on the calling thread, as every call of the driver requires.
    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained until drop.
        unsafe { result::ctx::set_current(self.handle) }
    }

    /// Waits for all work of both streams.
    fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: streams live as long as the context.
        self.streams.iter().try_for_each(|&stream| unsafe { result::stream::synchronize(stream) })
    }
}

impl Drop for Context {
    /// A failure here means that an earlier call already failed, and that one was reported.
    fn drop(&mut self) {
        let _ = self.bind();
        // SAFETY: memory and events hold this context, so nothing else is left that uses it.
        unsafe {
            for stream in self.streams.into_iter().filter(|stream| !stream.is_null()) {
                let _ = result::stream::synchronize(stream);
                let _ = result::stream::destroy(stream);
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

/// A GPU, and the stream that this launcher issues to.
pub struct Driver {
    gpu: Arc<Gpu>,
    stream: Stream,
}

struct Gpu {
    info: DeviceInfo,
    allocator: DeviceAllocator,
    pinned: PinnedHost,
    context: Arc<Context>,
    /// The module that holds each kernel with code for this GPU.
    modules: HashMap<&'static str, sys::CUmodule>,
    kernels: Mutex<HashMap<String, Kernel>>,
    /// For errors that surface later than the launch they belong to.
    last_kernel: Mutex<String>,
}

// SAFETY: the raw handles in `modules` and `kernels` are identifiers of the context, which is Send and Sync.
unsafe impl Send for Gpu {}
unsafe impl Sync for Gpu {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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
        let pinned = PinnedHost { context: context.clone() };
        let gpu = Gpu { info, allocator, pinned, context, modules, kernels: Mutex::default(), last_kernel: Mutex::default() };
        Ok(Driver { gpu: gpu.into(), stream: Stream::Compute })
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.gpu.info
    }

    /// The stream of this launcher, for libraries that work in issue order with its launches. Makes the context current.
    pub fn stream(&self) -> Result<sys::CUstream> {
        self.gpu.bind()?;
        Ok(self.handle())
    }

    fn handle(&self) -> sys::CUstream {
        self.gpu.context.streams[self.stream as usize]
    }

    /// Waits for the work of this launcher's stream.
    fn finish(&self) -> Result<()> {
        // SAFETY: the stream lives as long as the context.
        unsafe { result::stream::synchronize(self.handle()) }.map_err(|e| self.gpu.failed("waiting for the GPU", e))
    }
}

impl Gpu {
    fn bind(&self) -> Result<()> {
        self.context.bind().map_err(|e| failed("making the context current", e))
    }

    /// An error of a call that may belong to an earlier launch: kernels run asynchronously.
    fn failed(&self, what: &str, error: DriverError) -> Error {
        let error = failed(what, error);
        match lock(&self.last_kernel).as_str() {
            "" => error,
            kernel => error.help(format!(
                "the last kernel launched was {kernel}: it, or one before it, is at fault; with CUDA_LAUNCH_BLOCKING=1 that one reports itself"
            )),
        }
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        if let Some(kernel) = lock(&self.kernels).get(name) {
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
        lock(&self.kernels).insert(name.to_string(), kernel);
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
        lock(&self.kernels).insert(name.to_string(), *kernel);
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

impl Launcher for Driver {
    fn device(&self) -> String {
        match kernel_module_version() {
            Some(version) => format!("{}, driver {version}", self.gpu.info.name),
            None => self.gpu.info.name.clone(),
        }
    }

    fn allocator(&self) -> &dyn Allocator {
        &self.gpu.allocator
    }

    fn host_allocator(&self) -> &dyn Allocator {
        &self.gpu.pinned
    }

    fn on(&self, stream: Stream) -> Box<dyn Launcher> {
        Box::new(Driver { gpu: self.gpu.clone(), stream })
    }

    fn free_memory(&self) -> Result<Option<usize>> {
        self.gpu.bind()?;
        let (free, _) = result::mem_get_info().map_err(|e| self.gpu.failed("asking for free device memory", e))?;
        Ok(Some(free.saturating_sub(KEPT_FREE)))
    }

    unsafe fn launch(&self, kernel: &str, launch: Launch, params: &[u8]) -> Result<()> {
        self.gpu.bind()?;
        let name = kernel;
        let mut kernel = self.gpu.kernel(name)?;
        if kernel.param_bytes != params.len() {
            return Err(Error::internal(format!(
                "the kernel {name} takes a parameter of {} bytes, and was given {}: its two definitions differ",
                kernel.param_bytes,
                params.len()
            )));
        }
        self.gpu.allow_shared(name, &mut kernel, launch.shared_bytes)?;
        lock(&self.gpu.last_kernel).replace_range(.., name);
        let mut arguments = [params.as_ptr() as *mut c_void];
        // SAFETY: the parameter has the size the driver reads (just compared), which it copies before it returns; the
        // caller vouches for the addresses in it.
        unsafe {
            result::launch_kernel(
                kernel.function,
                launch.grid.into(),
                launch.block.into(),
                launch.shared_bytes,
                self.handle(),
                &mut arguments,
            )
        }
        .map_err(|e| self.gpu.failed(&format!("launching {name} with {launch:?}"), e))
    }

    fn fill_bytes(&self, value: u8, out: ViewMut) -> Result<()> {
        expect_device("fill", out.space(), out.space())?;
        self.gpu.bind()?;
        // SAFETY: device memory of this many bytes, borrowed exclusively.
        let filled = unsafe { result::memset_d8_async(out.address(), value, out.bytes(), self.handle()) };
        filled.map_err(|e| self.gpu.failed("filling device memory", e))
    }

    fn copy(&self, x: View, out: ViewMut) -> Result<()> {
        expect_bytes("copy", x.bytes(), out.bytes())?;
        self.gpu.bind()?;
        let (from, to, bytes, stream) = (x.address(), out.address(), x.bytes(), self.handle());
        // SAFETY: both views are memory of this many bytes, of the kind that the call is for, and live until the stream has passed the copy,
        // since regions are freed only after a synchronisation.
        let copied = unsafe {
            match (x.space(), out.space()) {
                (Space::Device, Space::Device) => result::memcpy_dtod_async(to, from, bytes, stream),
                (Space::Pinned, Space::Device) => sys::cuMemcpyHtoDAsync_v2(to, from as *const c_void, bytes, stream).result(),
                (Space::Device, Space::Pinned) => sys::cuMemcpyDtoHAsync_v2(to as *mut c_void, from, bytes, stream).result(),
                (from, to) => return Err(Error::internal(format!("copy: from {from:?} to {to:?} memory"))),
            }
        };
        copied.map_err(|e| self.gpu.failed("a copy", e))
    }

    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()> {
        expect_bytes("upload", bytes.len(), out.bytes())?;
        self.gpu.bind()?;
        if out.space() == Space::Pinned {
            self.finish()?;
            out.raw_bytes().copy_from_slice(bytes);
            return Ok(());
        }
        expect_device("upload", out.space(), out.space())?;
        // SAFETY: the sizes are equal, and `bytes` outlives the copy because we wait for it.
        unsafe { result::memcpy_htod_async(out.address(), bytes, self.handle()) }
            .map_err(|e| self.gpu.failed("copying to the device", e))?;
        self.finish()
    }

    fn download(&self, x: View, out: &mut [u8]) -> Result<()> {
        expect_bytes("download", x.bytes(), out.len())?;
        self.gpu.bind()?;
        if x.space() == Space::Pinned {
            self.finish()?;
            out.copy_from_slice(x.raw_bytes());
            return Ok(());
        }
        expect_device("download", x.space(), x.space())?;
        // SAFETY: the sizes are equal, and `out` outlives the copy because we wait for it.
        unsafe { result::memcpy_dtoh_async(out, x.address(), self.handle()) }
            .map_err(|e| self.gpu.failed("copying from the device", e))?;
        self.finish()
    }

    fn shared_limit(&self) -> u32 {
        self.gpu.info.shared_opt_in as u32
    }

    fn lend(&self, out: &ViewMut) -> Result<*mut c_void> {
        expect_device("lend", out.space(), out.space())?;
        self.stream().map(|stream| stream.cast())
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        graph::record(self, self.stream, body)
    }

    fn mark(&self) -> Result<Box<dyn Event>> {
        self.gpu.bind()?;
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(|e| self.gpu.failed("creating an event", e))?;
        let mark = Mark { event, context: self.gpu.context.clone() };
        // SAFETY: event and stream belong to the context that is current.
        unsafe { result::event::record(mark.event, self.handle()) }.map_err(|e| self.gpu.failed("recording an event", e))?;
        Ok(Box::new(mark))
    }

    fn wait(&self, event: &dyn Event) -> Result<()> {
        let mark = Mark::of(event)?;
        self.gpu.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the event was recorded, and the driver keeps what it needs of it.
        unsafe { result::stream::wait_event(self.handle(), mark.event, flags) }
            .map_err(|e| self.gpu.failed("waiting for an event", e))
    }

    fn synchronize(&self) -> Result<()> {
        self.gpu.bind()?;
        self.gpu.context.synchronize().map_err(|e| self.gpu.failed("waiting for the GPU", e))
    }
}

/// A point in a stream.
struct Mark {
    event: sys::CUevent,
    context: Arc<Context>,
}

impl Mark {
    fn of(event: &dyn Event) -> Result<&Self> {
        event.as_any().downcast_ref().ok_or_else(|| Error::internal("an event of another launcher was given to the driver"))
    }
}

impl Event for Mark {
    fn is_done(&self) -> Result<bool> {
        // SAFETY: the event was recorded, and lives until its mark is dropped.
        let asked = self.context.bind().and_then(|()| unsafe { result::event::query(self.event) });
        match asked {
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            asked => asked.map(|()| true).map_err(|e| failed("asking for an event", e)),
        }
    }

    fn milliseconds_since(&self, start: &dyn Event) -> Result<f64> {
        let start = Mark::of(start)?;
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
            // SAFETY: fresh memory of at least one byte, zeroed before anyone can see its address.
            unsafe {
                let address = result::malloc_sync(bytes.max(1))?;
                let block = DeviceBlock { address, context: self.context.clone() };
                let stream = self.context.streams[Stream::Compute as usize];
                result::memset_d8_async(address, 0, bytes.max(1), stream)?;
                result::stream::synchronize(stream)?; // other streams do not wait for this one
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

/// Page-locked host memory, which copies reach at full speed while the CPU goes on.
struct PinnedHost {
    context: Arc<Context>,
}

impl Allocator for PinnedHost {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        let reserve = || {
            self.context.bind()?;
            // SAFETY: fresh memory of at least one byte, zeroed before anyone can see its address.
            unsafe {
                let address = result::malloc_host(bytes.max(1), 0)?;
                let block = PinnedBlock { address, context: self.context.clone() };
                std::ptr::write_bytes(address as *mut u8, 0, bytes);
                Ok(Arc::new(Region::new(address as u64, bytes, Space::Pinned, Box::new(block))))
            }
        };
        reserve().map_err(|error: DriverError| {
            let error = failed(&format!("reserving {} of page-locked host memory", format_bytes(bytes)), error);
            Error { kind: Kind::DoesNotFit, ..error }
                .help("offload less (memory.offload), or raise the limit of locked memory (ulimit -l)")
        })
    }
}

struct PinnedBlock {
    address: *mut c_void,
    context: Arc<Context>,
}

// SAFETY: the block is memory that this value owns; access goes through tensors, which borrow.
unsafe impl Send for PinnedBlock {}
unsafe impl Sync for PinnedBlock {}

impl Drop for PinnedBlock {
    /// Waits for all work first, so that no copy outlives its memory.
    fn drop(&mut self) {
        let _ = self.context.bind();
        let _ = self.context.synchronize();
        // SAFETY: allocated in `region`, freed once, after all work that was issued on it.
        let _ = unsafe { result::free_host(self.address) };
    }
}

struct DeviceBlock {
    address: sys::CUdeviceptr,
    context: Arc<Context>,
}

impl Drop for DeviceBlock {
    /// Waits for all work first, so that work in flight never outlives its memory.
    fn drop(&mut self) {
        let _ = self.context.bind();
        let _ = self.context.synchronize();
        // SAFETY: allocated in `region`, freed once, after all work that was issued on it.
        let _ = unsafe { result::free_sync(self.address) };
    }
}
