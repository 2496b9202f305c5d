//! Named ranges on the time line of Nsight Systems, through NVIDIA's NVTX library where it is installed. Without it they cost nothing.

use super::libraries::Folders;
use libloading::Library;
use std::ffi::{CString, c_char, c_int};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The toolkit's name for it, and that of pip's package nvidia-nvtx.
const FILES: [&str; 2] = ["libnvToolsExt.so.1", "libnvtx3interop.so.1"];

struct Nvtx {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
}

static NVTX: LazyLock<Option<Nvtx>> = LazyLock::new(|| {
    let Folders { chosen, usual } = Folders::from_environment();
    let beside = |folders: Vec<PathBuf>| folders.into_iter().flat_map(|folder| FILES.map(|file| folder.join(file)));
    beside(chosen).chain(FILES.map(PathBuf::from)).chain(beside(usual)).find_map(|file| load(&file))
});

fn load(file: &Path) -> Option<Nvtx> {
    // SAFETY: running NVTX's initialisers is what loading it means. It stays loaded, so its functions stay valid; their types are those of
    // nvToolsExt.h: int nvtxRangePushA(const char*), int nvtxRangePop(void).
    unsafe {
        let library = Box::leak(Box::new(Library::new(file).ok()?));
        Some(Nvtx { push: *library.get("nvtxRangePushA").ok()?, pop: *library.get("nvtxRangePop").ok()? })
    }
}

/// Ends its range when it is dropped, on the thread that began it.
#[must_use = "the range ends when this is dropped"]
pub struct Range {
    /// Ranges nest a thread, so this one stays on its own.
    thread: PhantomData<*const ()>,
}

/// Begins a range of this thread; ranges nest.
pub fn range(name: &str) -> Range {
    if let Some(nvtx) = &*NVTX
        && let Ok(name) = CString::new(name)
    {
        // SAFETY: the name is copied during the call.
        unsafe { (nvtx.push)(name.as_ptr()) };
    }
    Range { thread: PhantomData }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(nvtx) = &*NVTX {
            // SAFETY: no arguments; a pop without a push is an error that NVTX reports and ignores.
            unsafe { (nvtx.pop)() };
        }
    }
}
