//! `limo-engine bench`.

use super::device::{KernelDevice, open_emulator, open_gpu};
use super::say;
use crate::bench::report::{Report, table};
use crate::bench::{Bench, commit, select};
use crate::device::Launcher;
use crate::device::gpu::visible_devices;
use crate::error::{Error, Result, write_error};
use crate::io::write_atomic;
use std::path::{Path, PathBuf};

/// Verify kernels, then time them against the roofline of this machine's GPU
///
/// Without a GPU there is nothing to time: `--device emulator` then checks the kernels on small shapes.
///
/// Example: limo-engine bench rmsnorm --json rmsnorm.json
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// ceilings (device copy and cuBLASLt product), rmsnorm (every version of the ladder). Default: all
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Write every number, with commit and device, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = KernelDevice::Auto)]
    device: KernelDevice,
}

pub fn run(args: BenchArgs) -> Result<()> {
    let benches = select(&args.names)?;
    let report = match args.device {
        KernelDevice::Emulator => verify(&benches)?,
        KernelDevice::Auto if visible_devices()? == 0 => {
            return Err(Error::usage("no GPU is visible, and benchmarks time kernels on a GPU")
                .help("`limo-engine doctor` says what is missing; --device emulator checks the kernels without timing them"));
        }
        KernelDevice::Auto | KernelDevice::Cuda => time(&benches)?,
    };
    say!("\n{}", table(&report.results))?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(())
}

fn time(benches: &[&Bench]) -> Result<Report> {
    let driver = open_gpu()?;
    let mut report = start(driver.device())?;
    for bench in benches {
        say!("{}: {}", bench.name, bench.about)?;
        report.results.extend((bench.time)(&driver)?);
    }
    Ok(report)
}

fn verify(benches: &[&Bench]) -> Result<Report> {
    let emulator = open_emulator()?;
    let mut report = start(emulator.device())?;
    say!("small shapes, checked and not timed: speed on the emulator says nothing about a GPU")?;
    for bench in benches {
        match bench.verify {
            Some(verify) => report.results.extend(verify(&emulator)?),
            None => say!("{}: skipped, it only times", bench.name)?,
        }
    }
    Ok(report)
}

fn start(device: String) -> Result<Report> {
    let report = Report { limo_engine: env!("CARGO_PKG_VERSION"), commit: commit(), device, results: Vec::new() };
    say!("limo-engine {}, commit {}, on {}", report.limo_engine, report.commit, report.device)?;
    Ok(report)
}

pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("{}: {e}", path.display())))?;
    write_atomic(path, |file| std::io::Write::write_all(file, text.as_bytes()).map_err(|e| write_error(path, e)))
}
