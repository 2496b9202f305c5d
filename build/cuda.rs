//! `.cu` → nvcc → one fatbin a file, embedded through `OUT_DIR/images.rs`. A build without nvcc embeds the reason instead.

use crate::cache::cached;
use crate::sources::{Source, in_parallel};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Machine code for each generation, and PTX that the driver compiles for any other.
const TARGETS: [&str; 4] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_89,code=sm_89",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_80,code=compute_80",
];
const OLDEST: (u32, u32) = (12, 4);
/// Where `tools/cuda/install.sh` puts a toolkit.
const LOCAL_TOOLKIT: &str = ".cuda/nvidia/cu13/bin/nvcc";

pub fn build(sources: &[Source], out: &Path) {
    for variable in ["NVCC", "CUDA_HOME", "LIMO_REQUIRE_CUDA"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let report = out.join("ptxas.txt");
    println!("cargo::rustc-env=LIMO_PTXAS_REPORT={}", report.display());
    let nvcc = match find_nvcc() {
        Ok(nvcc) => nvcc,
        Err(reason) => {
            println!("cargo::rerun-if-env-changed=PATH");
            assert!(std::env::var_os("LIMO_REQUIRE_CUDA").is_none_or(|v| v != "1"), "LIMO_REQUIRE_CUDA=1, but {reason}");
            println!("cargo::warning=built without CUDA kernels: {reason}");
            std::fs::write(report, "").expect("OUT_DIR is writable");
            let embedded = format!("static IMAGES: &[Image] = &[];\nstatic MISSING: Option<&str> = Some({reason:?});\n");
            return std::fs::write(out.join("images.rs"), embedded).expect("OUT_DIR is writable");
        }
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());

    // Conformance and production kernels go to the GPU; those of `emulator/` are wrong on purpose.
    let sources: Vec<&Source> = sources.iter().filter(|source| source.family != "emulator").collect();
    let fatbin = |source: &Source| out.join(format!("{}.{}.fatbin", source.family, source.stem()));
    let reports = in_parallel(&sources, |source| compile(&nvcc, source, &fatbin(source), out));
    std::fs::write(report, reports.concat()).expect("OUT_DIR is writable");

    let mut embedded = "static IMAGES: &[Image] = &[\n".to_string();
    for source in sources {
        let kernels: Vec<&str> = source.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        writeln!(
            embedded,
            "Image {{ family: {:?}, source: {:?}, kernels: &{kernels:?}, fatbin: &Aligned(*include_bytes!({:?})).0 }},",
            source.family,
            source.path,
            fatbin(source),
        )
        .expect("a string");
    }
    embedded += "];\nstatic MISSING: Option<&str> = None;\n";
    std::fs::write(out.join("images.rs"), embedded).expect("OUT_DIR is writable");
}

/// Runs nvcc on one file and returns what ptxas says of its registers and spills.
fn compile(nvcc: &Path, source: &Source, fatbin: &Path, out: &Path) -> String {
    let mut command = Command::new(nvcc);
    let headers = out.join("include");
    // Products and sums are fused where the source says so and nowhere else: the emulator then computes the same bits.
    command.args(["-fatbin", "-std=c++17", "-O3", "-fmad=false", "-Xptxas=-v", "-Werror=all-warnings"]).args(TARGETS);
    command.arg("-Ikernels").arg("-I").arg(&headers).arg("-o").arg(fatbin).arg(&source.path);
    cached(fatbin, &format!("{command:?}"), &[&source.path], &[Path::new("kernels"), &headers], || {
        let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "nvcc fails on {}:\n{report}", source.path.display());
        report
    })
}

/// The first nvcc that runs and is not too old, or why there is none.
fn find_nvcc() -> Result<PathBuf, String> {
    if let Some(nvcc) = std::env::var_os("NVCC").filter(|v| !v.is_empty()).map(PathBuf::from) {
        return version(&nvcc).map(|()| nvcc).map_err(|why| format!("NVCC points at an unusable compiler: {why}"));
    }
    let home = std::env::var_os("CUDA_HOME").filter(|v| !v.is_empty()).map(|home| PathBuf::from(home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain(std::env::split_paths(&path));
    let candidates = folders.map(|folder| folder.join("nvcc"));
    let usual = ["/usr/local/cuda/bin/nvcc", LOCAL_TOOLKIT].map(PathBuf::from);
    let mut reason = "nvcc was not found through NVCC, CUDA_HOME, PATH, /usr/local/cuda or .cuda".to_string();
    for nvcc in candidates.chain(usual).filter(|nvcc| nvcc.is_file()) {
        match version(&nvcc) {
            Ok(()) => return Ok(nvcc),
            Err(why) => reason = why,
        }
    }
    Err(reason)
}

fn version(nvcc: &Path) -> Result<(), String> {
    let output = Command::new(nvcc).arg("--version").output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.split_once("release ").and_then(|(_, rest)| rest.split_once(','));
    let (major, minor) = release.and_then(|(v, _)| v.split_once('.')).unwrap_or_default();
    match (major.parse(), minor.parse()) {
        (Ok(major), Ok(minor)) if (major, minor) >= OLDEST => Ok(()),
        (Ok::<u32, _>(major), Ok::<u32, _>(minor)) => {
            Err(format!("{} is version {major}.{minor}; {}.{} is the oldest supported", nvcc.display(), OLDEST.0, OLDEST.1))
        }
        _ => Err(format!("{} --version does not state a release", nvcc.display())),
    }
}
