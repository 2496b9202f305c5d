//! What one process does of a job: its shard, its file, its GPU.

use super::args::{ResumeChoice, SampleArgs};
use crate::cli::device::DeviceChoice;
use crate::cli::launch::{launched, ordinal};
use crate::error::{Error, Result};
use crate::sample::Shard;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What `--input -` means.
pub const STDIN: &str = "/dev/stdin";

pub struct Part {
    pub shard: Shard,
    pub output: PathBuf,
    /// Which of the visible GPUs.
    pub ordinal: usize,
    /// Processes that share the machine's memory.
    pub on_machine: usize,
    pub resume: bool,
    pub overwrite: bool,
}

impl Part {
    /// Under a launcher each process takes the shard of its rank, and a file of its own.
    pub fn of(args: &SampleArgs) -> Result<Part> {
        if args.output == Path::new("-") {
            return Err(Error::usage("--output -: rows go to a file, so that the job can go on from it").help("give a file"));
        }
        let (resume, overwrite) = (args.resume == ResumeChoice::Auto, args.overwrite);
        let Some(launch) = launched()? else {
            let (shard, output) = (args.shard.unwrap_or(Shard::ALL), args.output.clone());
            return Ok(Part { shard, output, ordinal: 0, on_machine: 1, resume, overwrite });
        };
        let shard = Shard { index: launch.rank, of: launch.world };
        if let Some(given) = args.shard {
            let what = format!("--shard {given}: {} started this process for shard {shard}", launch.starter);
            return Err(Error::usage(what).help("leave --shard out: the launcher decides"));
        }
        if args.input == Path::new(STDIN) {
            let what = format!("--input -: {} started {} processes, which all need it", launch.starter, launch.world);
            return Err(Error::usage(what).help("give a file"));
        }
        let on_gpu = args.engine.device.resolve()? == DeviceChoice::Cuda;
        Ok(Part {
            shard,
            output: output_of(&args.output, shard),
            ordinal: if on_gpu { ordinal(&launch)? } else { 0 },
            on_machine: launch.local_world.unwrap_or(1),
            // A job that is started again goes on, whatever it was told at first.
            resume: resume || launch.restarts > 0,
            overwrite: overwrite && launch.restarts == 0,
        })
    }

    /// One of several processes tells what is the same for all.
    pub fn speaks(&self) -> bool {
        self.shard.index == 0
    }
}

/// `dir/samples.jsonl` of shard 2/8 is `dir/samples.2-of-8.jsonl`.
fn output_of(output: &Path, shard: Shard) -> PathBuf {
    let mut name = output.file_stem().map(OsString::from).unwrap_or_default();
    name.push(format!(".{}-of-{}", shard.index, shard.of));
    if let Some(extension) = output.extension() {
        name.push(".");
        name.push(extension);
    }
    output.with_file_name(name)
}
