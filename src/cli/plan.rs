//! `limo-engine plan`: what a run reserves and how long it takes, before anything is reserved, downloaded or tokenised.

use super::device::Storage;
use super::memory::bytes;
use super::say;
use crate::comm::Planned;
use crate::config::{Config, ModelConfig};
use crate::data::{Chat, Dataset, load};
use crate::error::{Error, Result};
use crate::model::Layout;
use crate::ops::cuda::Cuda;
use crate::tensor::{DType, Ledger, Ledgers, format_bytes};
use crate::train::{Budget, Candidate, Demand, Plan, RECOMPUTE, Steps, Work, most_packed, times};
use clap::ValueEnum;
use std::path::PathBuf;
use std::rc::Rc;

/// Show what a run would reserve, by name, and how fast it would be
///
/// Needs the architecture only (model.config, or model.path): neither weights nor data, which make it sharper where they are there. Exits with 4 where the run does not
/// fit, and says what would.
///
/// Example: limo-engine plan configs/limo-32b-one-h200.toml
#[derive(clap::Args)]
pub struct PlanArgs {
    /// The configuration (docs/config.md has every key)
    config: PathBuf,
    /// Override a key, as in train.batch=8; values are TOML, else text
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Ranks of the run: GPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks: u32,
    /// Ranks on one machine, which share its host memory [default: up to 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks_per_machine: Option<u32>,
    /// Memory of each device
    #[arg(long, value_name = "BYTES", default_value = "139GiB", value_parser = bytes)]
    device_memory: usize,
    /// Host memory of each machine that the run may use
    #[arg(long, value_name = "BYTES", default_value = "112GiB", value_parser = bytes)]
    host_memory: usize,
    /// What the run is planned for; nothing of it has to be there
    #[arg(long, value_enum, default_value_t = PlannedDevice::Cuda)]
    device: PlannedDevice,
    #[arg(long, value_enum)]
    dtype: Option<Storage>,
}

/// What a run is planned for
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlannedDevice {
    /// GPUs, in bf16
    Cuda,
    /// A CPU, in f32 if --dtype does not say otherwise
    Cpu,
}

/// What a context, the kernels' code and cuBLASLt take of a device beside the plan, about.
const OUTSIDE: usize = 768 << 20;

pub fn run(args: PlanArgs) -> Result<()> {
    let config = Config::load(&args.config, &args.set)?;
    let architecture = ModelConfig::from_file(&config.model.config_file()?)?;
    let data = read_data(&config, &architecture);
    let datasets: Vec<&Dataset> = data.iter().flatten().collect();
    let longest = datasets.iter().flat_map(|d| &d.examples).map(|e| e.tokens.len()).max();
    let longest = longest.unwrap_or(config.data.max_tokens.min(config.train.micro_tokens));
    let packed = if datasets.is_empty() { usize::MAX } else { most_packed(&config, &datasets) };
    let (storage, multiple, device) = match (args.device, args.dtype) {
        (PlannedDevice::Cuda, Some(Storage::F32)) => {
            return Err(
                Error::usage("--dtype f32: the CUDA kernels store bf16").help("leave --dtype out, or pass --device cpu")
            );
        }
        (PlannedDevice::Cuda, _) => (DType::Bf16, Cuda::TOKEN_MULTIPLE, "the planned device"),
        (PlannedDevice::Cpu, Some(Storage::Bf16)) => (DType::Bf16, 1, "the planned machine"),
        (PlannedDevice::Cpu, _) => (DType::F32, 1, "the planned machine"),
    };
    let world = args.ranks as usize;
    let neighbours = args.ranks_per_machine.map_or(world.min(8), |n| (n as usize).min(world));
    let host = args.host_memory / neighbours;
    let budget = match args.device {
        PlannedDevice::Cuda => Budget::Two { device: args.device_memory.saturating_sub(OUTSIDE), host },
        PlannedDevice::Cpu => Budget::One(host),
    };
    let comm = Rc::new(Planned { world });
    let (device, samples) = (device.to_string(), Default::default());
    let demand =
        Demand { config: &config, architecture: &architecture, device, storage, multiple, comm, longest, packed, samples };

    let layout = Layout::new(&architecture);
    say!("model: {} parameters, {} layers", layout.parameter_count(), architecture.num_hidden_layers)?;
    describe_place(&args, world, neighbours)?;
    let work = work(&demand, &datasets, world, neighbours);
    let chosen = demand.choose(budget);
    if let Ok(plan) = &chosen {
        describe_plan(plan, &args)?;
        describe_disk(plan, &config, &demand)?;
    }
    describe_policies(&demand, budget, &work, chosen.as_ref().ok())?;
    let plan = chosen?;
    if args.device == PlannedDevice::Cuda {
        describe_time(&demand, &plan, &datasets, &work)?;
    }
    Ok(())
}

/// Training rows, then evaluation rows, where they and the tokenizer are there.
fn read_data(config: &Config, architecture: &ModelConfig) -> Option<Vec<Dataset>> {
    let tokenizer = config.model.tokenizer_folder().ok()?;
    let chat = Chat::load(&tokenizer, config.model.chat_template.as_deref(), architecture.vocab_size).ok()?;
    let mut datasets = vec![load(&config.data.train, &config.data, &chat).ok()?];
    if !config.data.eval.is_empty() {
        datasets.push(load(&config.data.eval, &config.data, &chat).ok()?);
    }
    Some(datasets)
}

/// A step of the data that is there; of rows as long as they may be, where none is.
fn work(demand: &Demand, datasets: &[&Dataset], world: usize, neighbours: usize) -> Work {
    let (train, tokens, ranks) = (&demand.config.train, demand.micro_tokens(), world as f64);
    let lengths: Vec<f64> = datasets.iter().take(1).flat_map(|d| &d.examples).map(|e| e.tokens.len() as f64).collect();
    let sum: f64 = lengths.iter().sum();
    let (row, sequence) = match lengths.is_empty() {
        true => (demand.longest as f64, demand.longest as f64),
        false => (sum / lengths.len() as f64, lengths.iter().map(|n| n * n).sum::<f64>() / sum),
    };
    let step = row * train.batch as f64;
    let micro_batches = (step / tokens as f64 / ranks).ceil().max(1.0);
    Work {
        micro_batches,
        tokens: (step / micro_batches / ranks).min(tokens as f64),
        sequence,
        ranks,
        neighbours: neighbours as f64,
    }
}

fn describe_place(args: &PlanArgs, world: usize, neighbours: usize) -> Result<()> {
    let host = format_bytes(args.host_memory);
    match args.device {
        PlannedDevice::Cpu => say!("ranks: {world}, {neighbours} a machine of {host}"),
        PlannedDevice::Cuda => {
            let device = format_bytes(args.device_memory);
            say!("ranks: {world}, {neighbours} a machine; {device} a device, {host} of host memory a machine")
        }
    }
}

/// Entries whose names differ in numbers only: name, count, bytes.
fn gathered(ledger: &Ledger) -> Vec<(String, usize, usize)> {
    let mut rows: Vec<(String, usize, usize)> = Vec::new();
    for entry in &ledger.entries {
        let star = |part: &str| if part.parse::<usize>().is_ok() { "*".to_string() } else { part.to_string() };
        let name = entry.name.split('.').map(star).collect::<Vec<_>>().join(".");
        match rows.iter_mut().find(|row| row.0 == name) {
            Some(row) => (row.1, row.2) = (row.1 + 1, row.2 + entry.bytes),
            None => rows.push((name, 1, entry.bytes)),
        }
    }
    rows
}

fn describe_plan(plan: &Plan, args: &PlanArgs) -> Result<()> {
    let Ledgers { device, host } = &plan.ledgers;
    say!("\neach rank reserves, with {}:", plan.sizes.describe())?;
    for (place, ledger) in [("device", device), ("host", host)] {
        for (name, count, bytes) in gathered(ledger) {
            let count = if count > 1 { format!("{count} ×") } else { String::new() };
            say!("  {place:<7} {name:<34} {count:>5} {:>10}", format_bytes(bytes))?;
        }
    }
    let outside = if args.device == PlannedDevice::Cuda { OUTSIDE } else { 0 };
    if outside > 0 {
        say!("  {:<7} {:<40} {:>10}", "device", "context, kernels, cuBLASLt (about)", format_bytes(outside))?;
    }
    for (place, total) in [("device", device.total() + outside), ("host", host.total())] {
        say!("  {place:<7} {:<40} {:>10} ({total} bytes)", "total", format_bytes(total))?;
    }
    say!("\nin use, of what is reserved from the first step to the last:")?;
    say!("  {:<22} {:>10} {:>10}", "phase", "device", "host")?;
    for phase in PHASES {
        let used = |ledger: &Ledger| {
            let groups = ledger.by_group();
            groups.iter().filter(|(group, _)| phase.uses(group)).map(|(_, bytes)| bytes).sum::<usize>()
        };
        say!("  {:<22} {:>10} {:>10}", phase.name, format_bytes(used(device) + outside), format_bytes(used(host)))?;
    }
    Ok(())
}

/// A part of a run, and the groups of buffers that it uses beside those that hold the state.
struct Phase {
    name: &'static str,
    groups: &'static [&'static str],
}

const PHASES: [Phase; 4] = [
    Phase {
        name: "forward and backward",
        groups: &[
            "gradients",
            "contributions",
            "wire",
            "gathered",
            "activations",
            "offloaded",
            "inputs",
            "classifier",
            "backward",
            "staging",
        ],
    },
    Phase { name: "update", groups: &["gradients", "staging"] },
    Phase { name: "evaluation", groups: &["gathered", "activations", "inputs", "classifier"] },
    Phase { name: "checkpoint", groups: &[] },
];

impl Phase {
    fn uses(&self, group: &str) -> bool {
        ["weights", "optimizer", "tables"].contains(&group) || self.groups.contains(&group)
    }
}

fn describe_disk(plan: &Plan, config: &Config, demand: &Demand) -> Result<()> {
    let model = Layout::new(demand.architecture).parameter_count() * 4;
    let (each, keep) = (plan.checkpoint, config.train.keep);
    let most = each.saturating_mul(keep.saturating_add(1)).saturating_add(model);
    say!(
        "\ndisk: {} a checkpoint, of which {keep} are kept and one is being written; with the model up to {}",
        format_bytes(each),
        format_bytes(most)
    )
}

/// For each degree of recomputation the fastest choice that fits, or why none does.
fn describe_policies(demand: &Demand, budget: Budget, work: &Work, chosen: Option<&Plan>) -> Result<()> {
    let candidates = demand.candidates(budget, work)?;
    say!("\nplaces that give the same numbers (tokens/s estimated for H200s), for each degree of recomputation:")?;
    for (keep, _) in RECOMPUTE {
        let lacks = |candidate: &&Candidate| budget.excess(&candidate.plan.ledgers).iter().sum::<usize>();
        let of_this = || candidates.iter().filter(|candidate| candidate.plan.sizes.keep == keep);
        let best = of_this().find(|candidate| lacks(candidate) == 0).or(of_this().min_by_key(lacks));
        let Some(candidate) = best else { continue };
        let [device, host] = budget.excess(&candidate.plan.ledgers).map(format_bytes);
        let verdict = match budget.excess(&candidate.plan.ledgers) {
            [0, 0] if chosen.is_some_and(|plan| plan.sizes.describe() == candidate.plan.sizes.describe()) => {
                "fits, and is configured".to_string()
            }
            [0, 0] => "fits".to_string(),
            [_, 0] => format!("lacks {device} of device memory at least"),
            [0, _] => format!("lacks {host} of host memory at least"),
            _ => format!("lacks {device} of device and {host} of host memory at least"),
        };
        say!("  {:>7.0} tokens/s  {}: {verdict}", candidate.rate, candidate.plan.sizes.describe())?;
    }
    Ok(())
}

fn describe_time(demand: &Demand, plan: &Plan, datasets: &[&Dataset], work: &Work) -> Result<()> {
    let times = times(demand.architecture, &plan.sizes, work);
    let rate = times.tokens_per_s(work);
    say!(
        "\nestimated for H200s (not measured): {rate:.0} tokens/s; a micro-batch of {:.0} tokens computes for {:.2} s",
        work.tokens,
        times.compute
    )?;
    say!(
        "  beside it: {:.2} s on the host's bus, {:.2} s between ranks; an update takes {:.2} s",
        times.host,
        times.exchange,
        times.update
    )?;
    match datasets.first() {
        None => say!("  the data is not there: {:.1} h for 10 million tokens", 1e7 / rate / 3600.0),
        Some(data) => {
            let Config { train, optimizer, .. } = demand.config;
            let steps = Steps::new(data.examples.len(), train, optimizer);
            let tokens: usize = data.examples.iter().map(|e| e.tokens.len()).sum();
            let all = tokens as f64 / steps.per_epoch as f64 * steps.total as f64;
            say!("  {} steps, {:.1} million tokens: {:.1} h", steps.total, all / 1e6, all / rate / 3600.0)
        }
    }
}
