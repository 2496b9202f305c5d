//! `limo-engine doctor`: what this machine offers, what is missing, and what to do about it.

use super::device::open_emulator;
use super::say;
use crate::comm::launch::{self, LaunchEnvironment};
use crate::device::gpu::{self, DeviceInfo};
use crate::device::images::images;
use crate::device::libraries::{CUBLASLT, DRIVER, Found, NCCL};
use crate::error::{Error, Result};
use crate::tensor::format_bytes;
use std::fmt::Write;

/// Show devices, libraries, kernels and the launch environment, and say what is missing
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {}

/// Prints the findings. What is missing is a finding, not a failure.
pub fn run(_: DoctorArgs) -> Result<()> {
    say!("{}", render(&Facts::collect()).trim_end())
}

const DRIVER_LINE: &str = "driver";

/// Everything that is looked at, apart from how it is told.
pub struct Facts {
    pub version: &'static str,
    pub commit: String,
    pub devices: Result<Vec<DeviceInfo>>,
    /// The display driver's own version.
    pub kernel_module: Option<String>,
    /// In the order of the lines: driver, cuBLASLt, NCCL.
    pub libraries: Vec<(&'static str, Result<Found>)>,
    /// What the GPU code in this binary is.
    pub kernels: Result<String>,
    pub emulator: Result<String>,
    pub cpu: Cpu,
    pub launch: Result<LaunchEnvironment>,
}

pub struct Cpu {
    pub model: String,
    pub threads: usize,
    pub simd: Vec<&'static str>,
}

impl Facts {
    fn collect() -> Self {
        Facts {
            version: env!("CARGO_PKG_VERSION"),
            commit: crate::bench::commit(),
            devices: gpu::devices(),
            kernel_module: gpu::kernel_module_version(),
            libraries: vec![(DRIVER_LINE, DRIVER.find()), ("cuBLASLt", CUBLASLT.find()), ("NCCL", NCCL.find())],
            kernels: kernels(),
            emulator: open_emulator().map(|_| "in this binary".to_string()),
            cpu: Cpu::detect(),
            launch: launch::detect(|name| std::env::var(name).ok()),
        }
    }
}

impl Cpu {
    fn detect() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Cpu {
            model: model.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_string(),
            threads: rayon::current_num_threads(),
            simd: simd(),
        }
    }
}

/// How much GPU code this binary holds.
fn kernels() -> Result<String> {
    let images = images()?;
    let kernels: usize = images.iter().map(|image| image.kernels.len()).sum();
    let bytes: usize = images.iter().map(|image| image.fatbin.len()).sum();
    let mut families: Vec<&str> = images.iter().map(|image| image.family).collect();
    families.dedup();
    Ok(format!("{kernels} kernels in {} images, {} ({})", images.len(), format_bytes(bytes), families.join(", ")))
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    let detected = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ("AVX-512BF16", is_x86_feature_detected!("avx512bf16")),
    ];
    detected.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Vec<&'static str> {
    if cfg!(target_feature = "neon") { vec!["NEON"] } else { Vec::new() }
}

/// The findings as aligned text.
pub fn render(facts: &Facts) -> String {
    let mut page = Page { text: format!("limo-engine {}, commit {}\n", facts.version, facts.commit) };
    page.heading("GPUs");
    let driver = facts.libraries.iter().find(|(name, _)| *name == DRIVER_LINE);
    match &facts.devices {
        Err(_) if driver.is_some_and(|(_, found)| found.is_err()) => page.line("none", "the driver, below, cannot be used"),
        Err(error) => page.problem("none", error),
        Ok(devices) if devices.is_empty() => page.line("none", "the driver shows none"),
        Ok(devices) => devices.iter().enumerate().for_each(|(ordinal, device)| {
            let DeviceInfo { name, capability: (major, minor), memory, multiprocessors, l2, .. } = device;
            let (memory, l2) = (format_bytes(*memory), format_bytes(*l2 as usize));
            page.line(
                &ordinal.to_string(),
                &format!("{name}, capability {major}.{minor}, {memory}, {multiprocessors} multiprocessors, L2 {l2}"),
            );
        }),
    }
    if let Some(version) = &facts.kernel_module {
        page.line("module", &format!("NVIDIA kernel module {version}"));
    }
    page.heading("Libraries");
    for (name, library) in &facts.libraries {
        match library {
            Ok(Found { path, version }) if *name == DRIVER_LINE => {
                page.line(name, &format!("for CUDA up to {version}, {}", path.display()))
            }
            Ok(Found { path, version }) => page.line(name, &format!("{version}, {}", path.display())),
            Err(error) => page.problem(name, error),
        }
    }
    page.heading("Kernels");
    page.finding("CUDA", &facts.kernels);
    page.finding("emulator", &facts.emulator);
    page.heading("CPU");
    let Cpu { model, threads, simd } = &facts.cpu;
    page.line("model", model);
    page.line("threads", &threads.to_string());
    page.line("SIMD", &if simd.is_empty() { "none detected".to_string() } else { simd.join(", ") });
    page.heading("Launch environment");
    match &facts.launch {
        Err(error) => page.problem("refused", error),
        Ok(LaunchEnvironment { starter, rank, world, local_rank, master, restarts, reason, .. }) => {
            page.line("launcher", &format!("{starter} ({reason})"));
            let local = local_rank.map_or(String::new(), |local| format!(", rank {local} on this machine"));
            page.line("process", &format!("rank {rank} of {world}{local}"));
            if let Some(master) = master {
                page.line("master", master);
            }
            if *restarts > 0 {
                page.line("restarts", &restarts.to_string());
            }
        }
    }
    page.text
}

/// Lines of a label and wrapped text.
struct Page {
    text: String,
}

impl Page {
    const LABEL: usize = 12;
    const WIDTH: usize = 120;

    fn heading(&mut self, title: &str) {
        let _ = writeln!(self.text, "\n{title}");
    }

    fn line(&mut self, label: &str, words: &str) {
        let width = Self::LABEL;
        let mut line = format!("  {label:width$}");
        let margin = line.chars().count();
        for word in words.split_whitespace() {
            let used = line.chars().count();
            if used > margin && used + 1 + word.chars().count() > Self::WIDTH {
                let _ = writeln!(self.text, "{line}");
                line = " ".repeat(margin);
            }
            if line.chars().count() > margin {
                line.push(' ');
            }
            line.push_str(word);
        }
        let _ = writeln!(self.text, "{}", line.trim_end());
    }

    fn problem(&mut self, label: &str, error: &Error) {
        self.line(label, &error.message);
        if let Some(help) = &error.help {
            self.line("", &format!("→ {help}"));
        }
    }

    fn finding(&mut self, label: &str, finding: &Result<String>) {
        match finding {
            Ok(words) => self.line(label, words),
            Err(error) => self.problem(label, error),
        }
    }
}
