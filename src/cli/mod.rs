//! The command line: what the user typed, and which command it means. A file a command.

mod bench;
mod completions;
mod device;
pub mod doctor;
mod inspect_checkpoint;
mod inspect_data;
mod inspect_model;
mod launch;
mod memory;
mod model;
mod plan;
mod progress;
mod replaced;
mod sample;
mod score;
mod selftest;
mod signals;
mod terminal;
pub mod tools;
mod train;

use crate::error::{Error, Kind, Result};
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Fine-tune Qwen2-family models with all parameters on long reasoning chains.
///
/// Exit codes: 0 done, 1 internal error, 2 usage or configuration, 3 data, 4 does not fit in memory, 5 loss not finite,
/// 6 communication, 7 checkpoint, 75 stopped by a signal with everything saved.
#[derive(Parser)]
#[command(name = "limo-engine", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::TrainArgs),
    Plan(plan::PlanArgs),
    Sample(sample::SampleArgs),
    Score(score::ScoreArgs),
    /// Show what a run is made of, without training.
    #[command(subcommand)]
    Inspect(Inspect),
    Bench(bench::BenchArgs),
    Selftest(selftest::SelftestArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
}

#[derive(Subcommand)]
enum Inspect {
    Data(inspect_data::DataArgs),
    Model(inspect_model::ModelArgs),
    Checkpoint(inspect_checkpoint::CheckpointArgs),
}

/// Runs the program; errors go to standard error.
pub fn main() -> ExitCode {
    memory::keep_few_arenas();
    let Cli { command } = Cli::parse();
    finish(std::panic::catch_unwind(|| dispatch(command)))
}

/// What became of a program as its exit code; errors go to standard error. A panic is a bug of ours: it has printed where, and becomes exit code 1.
fn finish(ended: std::thread::Result<Result<()>>) -> ExitCode {
    let bug = || Error::internal("this is a bug in limo-engine").help("please report it with the command and the lines above");
    match ended.unwrap_or_else(|_| Err(bug())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed too.
            let text = terminal::visible(&error.to_string());
            let _ = match error.kind {
                Kind::Stopped => writeln!(std::io::stderr(), "{text}"),
                _ => writeln!(std::io::stderr(), "error: {text}"),
            };
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Train(args) => train::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Sample(args) => sample::run(args),
        Command::Score(args) => score::run(args),
        Command::Inspect(Inspect::Data(args)) => inspect_data::run(args),
        Command::Inspect(Inspect::Model(args)) => inspect_model::run(args),
        Command::Inspect(Inspect::Checkpoint(args)) => inspect_checkpoint::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args, Cli::command()),
    }
}

/// Writes a line to standard output. A reader that went away (`| head`) is no reason to stop.
pub(crate) fn print_line(line: std::fmt::Arguments) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::usage(format!("standard output: {error}")).help("make room, or send it elsewhere"))
        }
        _ => Ok(()),
    }
}

/// `println!` that reports a full disk and survives a closed pipe.
macro_rules! say {
    ($($argument:tt)*) => { $crate::cli::print_line(format_args!($($argument)*)) };
}
pub(crate) use say;
