//! The GPUs that the driver shows, asked without opening one.

use super::libraries::DRIVER;
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

/// What the driver says of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub name: String,
    /// Compute capability, (9, 0) for Hopper.
    pub capability: (i32, i32),
    /// Bytes of device memory.
    pub memory: usize,
    pub multiprocessors: i32,
    /// Bytes of the last-level cache.
    pub l2: i32,
    /// Bytes of shared memory that one block may opt in to.
    pub shared_opt_in: i32,
}

/// Every GPU the driver shows. Without a usable driver or without a GPU, a usage error that says what to do.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    initialize()?;
    let count = result::device::get_count().map_err(|e| failed("counting the GPUs", e))?;
    (0..count).map(|ordinal| describe(device_handle(ordinal)?)).collect()
}

/// The number of GPUs that `--device auto` must not overlook. 0 where there is none; an error where a GPU is installed
/// but its driver cannot be used.
pub fn visible_devices() -> Result<usize> {
    let node = ["/dev/nvidia0", "/dev/dxg"].iter().any(|node| std::path::Path::new(node).exists());
    match DRIVER.find() {
        Err(_) if !node => Ok(0),
        Err(error) => Err(error),
        Ok(_) => match result::init() {
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
            _ => devices().map(|devices| devices.len()),
        },
    }
}

/// The most dense bf16 operations a second with f32 accumulation that NVIDIA's data sheets give for GPUs whose name contains these words: the
/// denominator of `mfu` in metrics.jsonl. The first match counts; other GPUs have none.
const PEAK_BF16_FLOPS: [(&str, f64); 8] = [
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
];

pub fn peak_bf16_flops(name: &str) -> Option<f64> {
    PEAK_BF16_FLOPS.iter().find(|(words, _)| name.contains(words)).map(|&(_, flops)| flops)
}

/// The display driver's own version ("580.65.06"), where the kernel module tells it.
pub fn kernel_module_version() -> Option<String> {
    let version = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(version.trim().to_string())
}

fn initialize() -> Result<()> {
    let found = DRIVER.find()?;
    result::init().map_err(|DriverError(status)| {
        let help = match status {
            CUresult::CUDA_ERROR_NO_DEVICE => {
                "check nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, start it with GPU access"
            }
            CUresult::CUDA_ERROR_STUB_LIBRARY => {
                "take the toolkit's stubs folder out of LD_LIBRARY_PATH: it shadows the driver"
            }
            CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
                "restart the machine: the driver was updated under a running kernel module"
            }
            CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => "take the CUDA compat folder out of LD_LIBRARY_PATH",
            CUresult::CUDA_ERROR_SYSTEM_NOT_READY => "start nvidia-fabricmanager, which NVSwitch machines need",
            _ => "check that nvidia-smi runs",
        };
        Error::usage(format!("the NVIDIA driver {} found no usable GPU: {}", found.path.display(), text(status))).help(help)
    })
}

pub(super) fn device_handle(ordinal: i32) -> Result<sys::CUdevice> {
    result::device::get(ordinal).map_err(|e| failed(&format!("opening GPU {ordinal}"), e))
}

pub(super) fn describe(device: sys::CUdevice) -> Result<DeviceInfo> {
    // SAFETY: `device` came from cuDeviceGet.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let info = || -> Result<DeviceInfo, DriverError> {
        Ok(DeviceInfo {
            name: result::device::get_name(device)?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: as above.
            memory: unsafe { result::device::total_mem(device)? },
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            shared_opt_in: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    };
    info().map_err(|e| failed("asking the GPU's properties", e))
}

/// CUDA's own name and words for a status.
fn text(status: CUresult) -> String {
    let error = DriverError(status);
    let part = |text: Result<&std::ffi::CStr, DriverError>| text.map(|t| t.to_string_lossy().into_owned());
    match (part(error.error_name()), part(error.error_string())) {
        (Ok(name), Ok(words)) => format!("{name} ({words})"),
        _ => format!("CUDA error {}", status as u32),
    }
}

pub(super) fn failed(what: &str, DriverError(status): DriverError) -> Error {
    let message = format!("{what} failed: {}", text(status));
    match status {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::does_not_fit(message),
        _ => Error::internal(message),
    }
}
