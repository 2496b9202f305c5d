//! NCCL's functions that we call, resolved in the library that is installed. cudarc knows them too, but looks for NCCL under names that no package has.

use crate::device::libraries::{NCCL, Version};
use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};

pub type Communicator = *mut c_void;
pub type Status = c_int;
type Stream = *mut c_void;
type DataType = c_int;

pub const SUCCESS: Status = 0;
pub const IN_PROGRESS: Status = 7;
pub const BYTES: DataType = 1; // ncclUint8

/// By this the ranks of a group find one another (ncclUniqueId).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Id(pub [u8; 128]);

/// ncclConfig_t as NCCL 2.14 had it; newer versions take their defaults for the rest.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

impl Config {
    pub fn non_blocking() -> Self {
        Config { size: size_of::<Config>(), magic: 0xcafebeef, version: 21400, blocking: 0 }
    }
}

/// Signatures as in nccl.h.
pub struct Api {
    pub version: Version,
    pub get_unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    pub init_rank: unsafe extern "C" fn(*mut Communicator, c_int, Id, c_int, *mut Config) -> Status,
    pub finalize: unsafe extern "C" fn(Communicator) -> Status,
    pub destroy: unsafe extern "C" fn(Communicator) -> Status,
    pub abort: unsafe extern "C" fn(Communicator) -> Status,
    pub async_error: unsafe extern "C" fn(Communicator, *mut Status) -> Status,
    pub all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, DataType, Communicator, Stream) -> Status,
    pub send: unsafe extern "C" fn(*const c_void, usize, DataType, c_int, Communicator, Stream) -> Status,
    pub receive: unsafe extern "C" fn(*mut c_void, usize, DataType, c_int, Communicator, Stream) -> Status,
    pub group_start: unsafe extern "C" fn() -> Status,
    pub group_end: unsafe extern "C" fn() -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    last_error: unsafe extern "C" fn(Communicator) -> *const c_char,
}

impl Api {
    pub fn load() -> Result<Self> {
        let (library, found) = NCCL.open()?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the signature is that of nccl.h, and the library stays open until the process ends.
                *unsafe { library.get($name) }.map_err(|e| Error::internal(e.to_string()))?
            };
        }
        Ok(Api {
            version: found.version,
            get_unique_id: function!("ncclGetUniqueId"),
            init_rank: function!("ncclCommInitRankConfig"),
            finalize: function!("ncclCommFinalize"),
            destroy: function!("ncclCommDestroy"),
            abort: function!("ncclCommAbort"),
            async_error: function!("ncclCommGetAsyncError"),
            all_gather: function!("ncclAllGather"),
            send: function!("ncclSend"),
            receive: function!("ncclRecv"),
            group_start: function!("ncclGroupStart"),
            group_end: function!("ncclGroupEnd"),
            error_string: function!("ncclGetErrorString"),
            last_error: function!("ncclGetLastError"),
        })
    }

    /// A communication error, with NCCL's own words, unless the call succeeded or goes on.
    pub fn check(&self, what: &str, status: Status, communicator: Communicator) -> Result<()> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both return a string that NCCL keeps, or null.
        let text = |words: *const c_char| match words.is_null() {
            true => String::new(),
            false => unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned(),
        };
        let (kind, detail) = unsafe { (text((self.error_string)(status)), text((self.last_error)(communicator))) };
        let detail = if detail.is_empty() { detail } else { format!(" ({})", detail.trim()) };
        let error = Error::communication(format!("{what}: NCCL {}: {kind}{detail}", self.version));
        Err(error.help("NCCL_DEBUG=WARN makes NCCL say more"))
    }
}
