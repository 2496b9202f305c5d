//! The shared libraries of a CUDA installation: where they are looked for, and which one was found. cudarc loads its
//! libraries by name and panics where a library or symbol is missing, so nothing calls it before [`Library::find`] has
//! found the library, asked its version, checked the symbols we call, and made sure that cudarc will load the same file.

use crate::error::{Error, Result};
use libloading::os::unix::Library as Handle;
use std::env;
use std::ffi::c_int;
use std::fmt;
use std::path::{Path, PathBuf};

/// A library by name, and what has to be true of it before anything is called.
pub struct Library {
    /// For people: "cuBLASLt".
    pub name: &'static str,
    /// File names in order of preference.
    files: fn() -> Vec<String>,
    /// Those among them that an installation has, for people.
    usual_files: &'static str,
    /// Asks the library itself. None where the symbol is missing or the call fails.
    version: fn(&Handle) -> Option<Version>,
    /// A symbol by which the loaded file is recognised.
    landmark: &'static str,
    minimum: Version,
    /// Symbols whose absence would panic later.
    symbols: &'static [&'static str],
    /// cudarc will load it by name, so its choice must be ours.
    through_cudarc: bool,
    install: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A library that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub path: PathBuf,
    pub version: Version,
}

/// The NVIDIA driver. Its version is the newest CUDA it serves: 12.8 is the first with every function that cudarc's
/// bindings make us call (cuEventElapsedTime_v2).
pub static DRIVER: Library = Library {
    name: "the NVIDIA driver (libcuda)",
    files: || cudarc::get_lib_name_candidates("cuda"),
    usual_files: "libcuda.so.1",
    // SAFETY: int cuDriverGetVersion(int*), callable before cuInit.
    version: |library| unsafe { version_by_pointer(library, "cuDriverGetVersion", |v| (v / 1000, v % 1000 / 10)) },
    landmark: "cuDriverGetVersion",
    minimum: Version { major: 12, minor: 8 },
    symbols: super::driver::SYMBOLS,
    through_cudarc: true,
    install: "install the NVIDIA driver 570 or later; in a container, start it with GPU access (docker run --gpus all)",
};

pub static CUBLASLT: Library = Library {
    name: "cuBLASLt",
    files: || cudarc::get_lib_name_candidates("cublasLt"),
    usual_files: "libcublasLt.so.13 or .12",
    version: |library| {
        type GetVersion = unsafe extern "C" fn() -> usize;
        // SAFETY: size_t cublasLtGetVersion(void) since cuBLASLt exists.
        let version = unsafe { library.get::<GetVersion>("cublasLtGetVersion").ok()?() } as u32;
        Some(Version { major: version / 10000, minor: version % 10000 / 100 })
    },
    landmark: "cublasLtGetVersion",
    minimum: Version { major: 12, minor: 0 },
    symbols: &[
        "cublasLtCreate",
        "cublasLtDestroy",
        "cublasLtMatmul",
        "cublasLtMatmulAlgoCheck",
        "cublasLtMatmulAlgoConfigGetAttribute",
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmulDescCreate",
        "cublasLtMatmulDescDestroy",
        "cublasLtMatmulDescSetAttribute",
        "cublasLtMatmulPreferenceCreate",
        "cublasLtMatmulPreferenceDestroy",
        "cublasLtMatmulPreferenceSetAttribute",
        "cublasLtMatrixLayoutCreate",
        "cublasLtMatrixLayoutDestroy",
    ],
    through_cudarc: true,
    install: "pip install nvidia-cublas (or the CUDA toolkit 12 or later)",
};

/// Every package ships NCCL as libnccl.so.2, a name that cudarc does not try, so NCCL is not loaded through cudarc. 2.14 is the first with communicators that do
/// not block.
pub static NCCL: Library = Library {
    name: "NCCL",
    files: || ["libnccl.so.2", "libnccl.so"].map(String::from).to_vec(),
    usual_files: "libnccl.so.2",
    // SAFETY: ncclResult_t ncclGetVersion(int*) since NCCL 2.
    version: |library| unsafe { version_by_pointer(library, "ncclGetVersion", |v| (v / 10000, v % 10000 / 100)) },
    landmark: "ncclGetVersion",
    minimum: Version { major: 2, minor: 14 },
    symbols: &[
        "ncclAllGather",
        "ncclCommAbort",
        "ncclCommDestroy",
        "ncclCommFinalize",
        "ncclCommGetAsyncError",
        "ncclCommInitRankConfig",
        "ncclGetErrorString",
        "ncclGetLastError",
        "ncclGetUniqueId",
        "ncclGroupEnd",
        "ncclGroupStart",
        "ncclRecv",
        "ncclSend",
    ],
    through_cudarc: false,
    install: "pip install nvidia-nccl-cu13 (or the package libnccl2); it is needed for more than one GPU only",
};

/// # Safety
/// `symbol` must be a function `int f(int*)` that writes its argument and returns 0 on success.
unsafe fn version_by_pointer(library: &Handle, symbol: &str, decode: fn(u32) -> (u32, u32)) -> Option<Version> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version: c_int = 0;
    // SAFETY: the caller vouches for the signature, and `version` outlives the call.
    let status = unsafe { library.get::<GetVersion>(symbol).ok()?(&mut version) };
    let (major, minor) = decode(version as u32);
    (status == 0).then_some(Version { major, minor })
}

/// Folders to look in besides the loader's own path.
#[derive(Debug, Clone, Default)]
pub struct Folders {
    /// LIMO_CUDA_LIBS: before the loader's path.
    pub chosen: Vec<PathBuf>,
    /// pip's nvidia folders and the usual places of toolkit and driver: after it.
    pub usual: Vec<PathBuf>,
}

impl Folders {
    pub fn from_environment() -> Self {
        let chosen = env::var_os("LIMO_CUDA_LIBS").map(|v| env::split_paths(&v).filter(|p| p.is_dir()).collect());
        let mut usual = pip_folders(&python_prefixes());
        usual.extend(["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("lib64")));
        usual.extend(["/usr/local/cuda/lib64", "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"].map(PathBuf::from));
        usual.retain(|folder| folder.is_dir());
        Folders { chosen: chosen.unwrap_or_default(), usual }
    }
}

/// Installations of Python that a user of this shell would mean: the active environment, the python3 on PATH, the user's
/// own packages, the system's.
fn python_prefixes() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from).collect();
    let path = env::var_os("PATH").unwrap_or_default();
    prefixes.extend(env::split_paths(&path).map(|bin| bin.join("python3")).filter(|python| python.exists()).flat_map(links));
    prefixes.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    prefixes.push("/usr/local".into());
    prefixes
}

/// The installations that bin/python3 belongs to: its own, and that of each link on the way to the interpreter.
fn links(python: PathBuf) -> Vec<PathBuf> {
    const LONGEST: usize = 8;
    let next = |python: &PathBuf| Some(python.parent()?.join(std::fs::read_link(python).ok()?));
    let chain = std::iter::successors(Some(python), next).take(LONGEST);
    chain.filter_map(|python| Some(python.parent()?.parent()?.to_path_buf())).collect()
}

/// PREFIX/lib/python3.x/{site,dist}-packages/nvidia/PACKAGE/lib: where pip puts NVIDIA's libraries.
fn pip_folders(prefixes: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for python in prefixes.iter().flat_map(|prefix| subfolders(&prefix.join("lib"))) {
        if !python.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")) {
            continue;
        }
        for packages in ["site-packages", "dist-packages"] {
            let nvidia = python.join(packages).join("nvidia");
            let libraries = subfolders(&nvidia).into_iter().map(|package| package.join("lib")).filter(|lib| lib.is_dir());
            folders.extend(libraries.filter(|lib| !folders.contains(lib)).collect::<Vec<_>>());
        }
    }
    folders
}

/// The folders in `folder`, by name in descending order, so that newer versions come first.
fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|p| p.is_dir()).collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

impl Library {
    /// Loads the library for the rest of the process, or says in a usage error what is missing, where it was looked for
    /// and what to install.
    pub fn find(&self) -> Result<Found> {
        self.open().map(|(_, found)| found)
    }

    /// The same, and the library itself.
    pub fn open(&self) -> Result<(&'static Handle, Found)> {
        self.open_in(&Folders::from_environment())
    }

    fn open_in(&self, folders: &Folders) -> Result<(&'static Handle, Found)> {
        let files = (self.files)();
        let mut failures = Vec::new();
        let mut open = |name: PathBuf| match load(&name) {
            Ok(library) => Some(library),
            Err(error) => {
                if name.is_file() {
                    failures.push(error);
                }
                None
            }
        };
        let in_folders = |folders: &[PathBuf]| -> Vec<PathBuf> {
            let all = folders.iter().flat_map(|folder| files.iter().map(move |file| folder.join(file)));
            all.filter(|path| path.is_file()).collect()
        };
        let candidates =
            in_folders(&folders.chosen).into_iter().chain(files.iter().map(PathBuf::from)).chain(in_folders(&folders.usual));
        match candidates.into_iter().find_map(&mut open) {
            Some(library) => Ok((library, self.inspect(library)?)),
            None => Err(self.missing(folders, &failures)),
        }
    }

    fn inspect(&self, library: &'static Handle) -> Result<Found> {
        let unusable = |what: String| Error::usage(format!("{} cannot be used: {what}", self.name)).help(self.install);
        let path = self.path(library).ok_or_else(|| unusable(format!("it has no function {}", self.landmark)))?;
        let unusable = |what: String| unusable(format!("{}: {what}", path.display()));
        let version = (self.version)(library).ok_or_else(|| unusable("it does not tell its version".to_string()))?;
        if version < self.minimum {
            return Err(unusable(format!("its version is {version}, and {} is the oldest that serves", self.minimum)));
        }
        if let Some(symbol) = self.symbols.iter().find(|symbol| address(library, symbol).is_none()) {
            return Err(unusable(format!("it has no function {symbol}")));
        }
        if self.through_cudarc {
            let by_name = (self.files)().into_iter().find_map(|name| load(Path::new(&name)).ok());
            let by_name = by_name.and_then(|library| self.path(library));
            if by_name.as_ref() != Some(&path) {
                let other = by_name.map_or("nothing".to_string(), |path| path.display().to_string());
                let folder = path.parent().unwrap_or(&path).display().to_string();
                return Err(unusable(format!("the loader takes {other} under the same name"))
                    .help(format!("put {folder} first in LD_LIBRARY_PATH")));
            }
        }
        Ok(Found { path, version })
    }

    fn missing(&self, folders: &Folders, failures: &[String]) -> Error {
        let list = |folders: &[PathBuf]| folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
        let chosen = if folders.chosen.is_empty() { "not set".to_string() } else { list(&folders.chosen) };
        let usual = if folders.usual.is_empty() { "none here".to_string() } else { list(&folders.usual) };
        let mut message = format!(
            "{} was not found: looked for {} in LIMO_CUDA_LIBS ({chosen}), on the loader's path, and in pip's and the toolkit's folders ({usual})",
            self.name, self.usual_files,
        );
        for failure in failures {
            message.push_str(&format!("; could not load {failure}"));
        }
        Error::usage(message)
            .help(format!("{}; if it is installed, set LIMO_CUDA_LIBS to the folder that holds it", self.install))
    }

    /// The file that a loaded library came from, by the address of its landmark in /proc/self/maps.
    fn path(&self, library: &Handle) -> Option<PathBuf> {
        let address = address(library, self.landmark)?;
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines().find_map(|line| file_at(line, address))
    }
}

/// The file of one line of /proc/self/maps ("start-end perms offset device inode path"), if `address` lies in its span.
fn file_at(line: &str, address: u64) -> Option<PathBuf> {
    let (span, rest) = line.split_once(' ')?;
    let (start, end) = span.split_once('-')?;
    let contains = (u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?).contains(&address);
    (contains && rest.contains('/')).then(|| PathBuf::from(&rest[rest.find('/').unwrap_or(0)..]))
}

fn address(library: &Handle, symbol: &str) -> Option<u64> {
    // SAFETY: the symbol is only located, never called, and any symbol has an address.
    unsafe { library.get::<unsafe extern "C" fn()>(symbol) }.ok().map(|f| *f as usize as u64)
}

/// Opens a library by name or path and keeps it open: its code may be called until the process ends.
fn load(name: &Path) -> Result<&'static Handle, String> {
    // SAFETY: running the initialisers of NVIDIA's libraries is what loading them means, here as in cudarc.
    let library = unsafe { libloading::Library::new(name) };
    library.map(|library| &*Box::leak(Box::new(library.into()))).map_err(|error| detail(&error))
}

/// The loader's own words, which name the file and the reason.
fn detail(error: &libloading::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const ABSENT: Library = Library {
        name: "a library",
        files: || vec!["liblimo-absent.so.1".to_string()],
        usual_files: "liblimo-absent.so.1",
        version: |_| None,
        landmark: "version",
        minimum: Version { major: 1, minor: 0 },
        symbols: &[],
        through_cudarc: false,
        install: "install the package",
    };

    #[test]
    fn a_missing_library_is_a_sentence_that_says_where_it_was_looked_for() {
        let folders = Folders { chosen: vec!["/chosen".into()], usual: vec!["/usual/a".into(), "/usual/b".into()] };
        let error = ABSENT.open_in(&folders).unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Usage);
        for words in
            ["a library was not found", "liblimo-absent.so.1", "(/chosen)", "(/usual/a, /usual/b)", "install the package"]
        {
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_the_loaders_reason() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("liblimo-absent.so.1"), "text").unwrap();
        let folders = Folders { chosen: vec![folder.path().into()], usual: vec![] };
        let error = ABSENT.open_in(&folders).unwrap_err().to_string();
        assert!(error.contains("could not load") && error.contains(&folder.path().display().to_string()), "{error}");
    }

    #[test]
    fn pips_folders_are_found_through_links_to_an_environment() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let lib = root.join("venv/lib/python3.12/site-packages/nvidia/cu13/lib");
        for made in [&lib, &root.join("venv/bin"), &root.join("usr/bin"), &root.join("venv/lib/node/nvidia/x/lib")] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::fs::write(root.join("venv/bin/python3"), "").unwrap();
        symlink("../../venv/bin/python3", root.join("usr/bin/python3")).unwrap();
        let prefixes = links(root.join("usr/bin/python3"));
        let found: Vec<PathBuf> = pip_folders(&prefixes).into_iter().map(|path| path.canonicalize().unwrap()).collect();
        assert_eq!(found, [lib]);
    }

    #[test]
    fn the_file_of_an_address_is_read_from_the_memory_map() {
        let line = "7f00a000-7f00c000 r-xp 00001000 08:01 42                         /opt/a folder/libcuda.so.580";
        assert_eq!(file_at(line, 0x7f00bfff), Some(PathBuf::from("/opt/a folder/libcuda.so.580")));
        assert_eq!(file_at(line, 0x7f00c000), None);
        assert_eq!(file_at("7f00a000-7f00c000 rw-p 00000000 00:00 0 [heap]", 0x7f00a000), None);
    }
}
