//! `limo-engine selftest`.

use super::bench::write_json;
use super::device::{KernelDevice, open_emulator, open_gpu};
use super::say;
use crate::bench::selftest::{Outcome, Report, Target, Verdict, run as run_tables, tables as known_tables};
use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::device::gpu::{kernel_module_version, visible_devices};
use crate::error::{Error, Result, write_error};
use crate::testing::conformance;
use std::path::{Path, PathBuf};

/// Run every case table of the kernels from this binary
///
/// Without a GPU, `auto` runs the kernels in the emulator and counts the GPU's cases as skipped; LIMO_REQUIRE_GPU=1 makes skipped
/// cases a failure.
///
/// Example: limo-engine selftest rms_norm --device emulator
#[derive(Debug, clap::Args)]
pub struct SelftestArgs {
    #[arg(value_name = "TABLE", help = format!("Tables to run: {}. Default: all", known_tables().join(", ")))]
    tables: Vec<String>,
    /// Print the names of the tables, and run nothing
    #[arg(long)]
    list: bool,
    #[arg(long, value_enum, default_value_t = KernelDevice::Auto)]
    device: KernelDevice,
    /// Write every case with its verdict as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Record what the GPU's instructions write, as a fixture for tests/fixtures/conformance
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

pub fn run(args: SelftestArgs) -> Result<()> {
    if args.list {
        return say!("{}", known_tables().join("\n"));
    }
    let (device, outcomes) = match args.device {
        KernelDevice::Cuda => on_gpu(&args)?,
        KernelDevice::Auto if visible_devices()? > 0 => on_gpu(&args)?,
        KernelDevice::Auto | KernelDevice::Emulator => on_emulator(&args)?,
    };
    if outcomes.is_empty() {
        return Err(Error::usage("none of these tables runs on the emulator").help("products need cuBLASLt, and so a GPU"));
    }
    let unproven = conformance::unproven(&conformance::records()?).into_iter().map(String::from).collect();
    let report = Report::new(device, outcomes, unproven);
    say!("{}", report.text().trim_end())?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    let required = std::env::var_os("LIMO_REQUIRE_GPU").is_some_and(|value| value == "1");
    let Report { failed, skipped, .. } = report;
    match (failed, skipped) {
        (0, 0) => Ok(()),
        (0, _) if !required => Ok(()),
        (0, _) => Err(Error::internal(format!("{skipped} cases were skipped, and LIMO_REQUIRE_GPU=1 asks for all"))),
        _ => Err(Error::internal(format!("{failed} cases failed"))),
    }
}

fn on_gpu(args: &SelftestArgs) -> Result<(String, Vec<Outcome>)> {
    let driver = open_gpu()?;
    let mut outcomes = run_tables(Target::Gpu(&driver), &args.tables)?;
    if let Some(folder) = &args.record {
        let verdict = Verdict::of(record(&driver, folder));
        outcomes.push(Outcome { table: "record".to_string(), case: folder.display().to_string(), verdict });
    }
    Ok((driver.device(), outcomes))
}

/// Asked for by name the emulator is all there is; as a stand-in, the GPU's cases are counted as skipped too.
fn on_emulator(args: &SelftestArgs) -> Result<(String, Vec<Outcome>)> {
    if args.record.is_some() {
        return Err(Error::usage("--record: only a GPU can be recorded").help("`limo-engine doctor` says what is missing"));
    }
    let emulator = open_emulator()?;
    let mut outcomes = run_tables(Target::Emulator(&emulator), &args.tables)?;
    if args.device == KernelDevice::Auto {
        outcomes.extend(run_tables(Target::Absent("no GPU is visible"), &args.tables)?);
    }
    Ok((emulator.device(), outcomes))
}

/// Writes DIR/<gpu>.json.
fn record(driver: &Driver, folder: &Path) -> Result<()> {
    let gpu = &driver.info().name;
    let record = conformance::record(driver, gpu, &kernel_module_version().unwrap_or("unknown".to_string()))?;
    let file = gpu.to_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).collect::<Vec<_>>().join("-");
    std::fs::create_dir_all(folder).map_err(|e| write_error(folder, e))?;
    let path = folder.join(format!("{file}.json"));
    write_json(&path, &record)?;
    say!("recorded {} in {}", gpu, path.display())
}
