//! `limo-engine bench`.

use super::device::{KernelDevice, open_emulator, open_gpu};
use super::say;
use crate::bench::models::MODELS;
use crate::bench::report::{Report, aligned, table};
use crate::bench::{self, BENCHES, Chosen, Listed};
use crate::device::Launcher;
use crate::device::gpu::visible_devices;
use crate::error::{Error, Result, write_error};
use crate::io::write_atomic;
use clap::builder::PossibleValuesParser;
use std::path::{Path, PathBuf};

/// Verify kernels, then time them against the roofline of this machine's GPU
///
/// Every version of every ladder runs its case table, and is then timed at the shapes of Qwen2.5 models and 16384 tokens. Without a GPU there is
/// nothing to time: `--device emulator` checks the kernels, `--list` shows what would be launched.
///
/// Example: limo-engine bench rms_norm --model 7B --json rms_norm.json
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[arg(value_name = "NAME", help = names())]
    names: Vec<String>,
    /// Only the shapes of this model; may be repeated
    #[arg(long, value_parser = PossibleValuesParser::new(MODELS.map(|model| model.name)))]
    model: Vec<String>,
    /// Only the versions that ship
    #[arg(long)]
    shipped: bool,
    /// Show the launches of every version and shape, and run nothing
    #[arg(long)]
    list: bool,
    /// Write every number, with commit and device, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = KernelDevice::Auto)]
    device: KernelDevice,
}

fn names() -> String {
    let lines = BENCHES.iter().map(|bench| format!("\n- {}: {}", bench.name, bench.about));
    format!("Default: all of{}", lines.collect::<String>())
}

pub fn run(args: BenchArgs) -> Result<()> {
    let models = MODELS.iter().filter(|model| args.model.is_empty() || args.model.iter().any(|name| name == model.name));
    let chosen = Chosen { benches: bench::select(&args.names)?, models: models.collect(), shipped: args.shipped };
    let json = args.json.as_deref();
    match args.device {
        _ if args.list => list(&chosen, json),
        KernelDevice::Emulator => verify(&chosen, json),
        KernelDevice::Auto if visible_devices()? == 0 => {
            Err(Error::usage("no GPU is visible, and benchmarks time kernels on a GPU")
                .help("`limo-engine doctor` says what is missing; --device emulator checks the kernels without timing them"))
        }
        KernelDevice::Auto | KernelDevice::Cuda => time(&chosen, json),
    }
}

fn time(chosen: &Chosen, json: Option<&Path>) -> Result<()> {
    let driver = open_gpu()?;
    let mut report = start(driver.device())?;
    // What runs for minutes may be stopped: a file is written again after each line. A pipe gets one document, at the end.
    let kept = json.filter(|path| path.is_file() || !path.exists());
    bench::time(&driver, chosen, &mut |line| {
        let time = line.speed.map_or("not timed".to_string(), |speed| format!("{:.4} ms", speed.milliseconds));
        say!("{} {}, {}, {}: {time}", line.bench, line.version, line.model, line.shape)?;
        report.results.push(line);
        kept.map_or(Ok(()), |path| write_json(path, &report))
    })?;
    say!("\n{}", table(&report.results))?;
    json.map_or(Ok(()), |path| write_json(path, &report))
}

fn verify(chosen: &Chosen, json: Option<&Path>) -> Result<()> {
    let emulator = open_emulator()?;
    let mut report = start(emulator.device())?;
    say!("case tables, checked and not timed: speed on the emulator says nothing about a GPU")?;
    bench::verify(&emulator, chosen, &mut |line| {
        report.results.push(line);
        Ok(())
    })?;
    if report.results.is_empty() {
        return Err(Error::usage("none of these benchmarks runs on the emulator").help("products and ceilings need a GPU"));
    }
    say!("\n{}", table(&report.results))?;
    json.map_or(Ok(()), |path| write_json(path, &report))
}

fn start(device: String) -> Result<Report> {
    let report = Report::new(device);
    say!("limo-engine {}, commit {}, on {}", report.limo_engine, report.commit, report.device)?;
    Ok(report)
}

fn list(chosen: &Chosen, json: Option<&Path>) -> Result<()> {
    let listed = bench::list(chosen)?;
    if listed.is_empty() {
        return Err(Error::usage("none of these benchmarks launches kernels of ours")
            .help("products and ceilings are cuBLASLt's and the driver's"));
    }
    let mut rows = vec![["model", "shape", "version", "kernel", "grid", "threads", "shared bytes"].map(String::from)];
    for Listed { line, launches } in &listed {
        rows.extend(launches.iter().map(|launch| {
            let [x, y, z] = launch.grid;
            [
                line.model.to_string(),
                line.shape.clone(),
                format!("{} {}", line.bench, line.version),
                launch.kernel.clone(),
                format!("{x} x {y} x {z}"),
                launch.threads.to_string(),
                launch.shared_bytes.to_string(),
            ]
        }));
    }
    say!("{}", aligned(&rows, &[4, 5, 6]).trim_end())?;
    json.map_or(Ok(()), |path| write_json(path, &listed))
}

pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("{}: {e}", path.display())))?;
    write_atomic(path, |file| std::io::Write::write_all(file, text.as_bytes()).map_err(|e| write_error(path, e)))
}
