//! Finds the kernels: every `extern "C" __global__` function of every `.cu` file, with the type of its parameter block.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file of kernels.
pub struct Source {
    pub path: PathBuf,
    /// The folder that holds it: `rms_norm`.
    pub family: String,
    pub kernels: Vec<Kernel>,
}

pub struct Kernel {
    pub name: String,
    pub params: String,
}

impl Source {
    /// The file name without its extension.
    pub fn stem(&self) -> String {
        self.path.file_stem().expect("a file name").to_string_lossy().into_owned()
    }
}

/// All `.cu` files of the folders under `root`, in a fixed order.
pub fn scan(root: &Path) -> Vec<Source> {
    let entries = |folder: &Path| {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(folder).expect("kernels/").map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths
    };
    let files = entries(root).into_iter().filter(|path| path.is_dir()).flat_map(|folder| entries(&folder));
    files.filter(|path| path.extension().is_some_and(|e| e == "cu")).map(|path| read(&path)).collect()
}

fn read(path: &Path) -> Source {
    let text = std::fs::read_to_string(path).expect("a kernel source");
    let family = path.parent().and_then(Path::file_name).expect("a family").to_string_lossy().into_owned();
    let kernels = text.split("extern \"C\" __global__ void").skip(1).map(|rest| {
        kernel(rest).unwrap_or_else(|| {
            panic!(
                "{}: a kernel is declared `extern \"C\" __global__ void [__launch_bounds__(…)] name(const __grid_constant__ Params p)`",
                path.display()
            )
        })
    });
    Source { path: path.to_path_buf(), family, kernels: kernels.collect() }
}

/// Reads the name and parameter type that follow `void`.
fn kernel(rest: &str) -> Option<Kernel> {
    let mut rest = rest.trim_start();
    if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
        rest = bounds.split_once(')')?.1.trim_start();
    }
    let (name, arguments) = rest.split_once('(')?;
    let (params, _) = arguments.trim_start().strip_prefix("const __grid_constant__ ")?.split_once(' ')?;
    Some(Kernel { name: name.to_string(), params: params.to_string() })
}

/// Maps over `items` with as many threads as Cargo granted jobs, each taking the next that is left; results keep their order.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).max(1);
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        items.get(index).map(|item| (index, work(item)))
    };
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(|| std::iter::from_fn(take).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
