//! What a run reserves, known before anything is reserved: the same code that cuts the buffers measures them.

use super::engine::{Engine, Sizes};
use super::estimate::{Times, Work, times};
use crate::comm::Comm;
use crate::config::{Config, GradientDtype, MasterWeights, ModelConfig, Offload, Recompute, StateDtype};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::model::Keep;
use crate::tensor::{DType, Ledgers, format_bytes};
use crate::zero::Policy;
use std::rc::Rc;

/// What one rank reserves.
#[derive(Debug, Clone)]
pub struct Plan {
    pub sizes: Sizes,
    /// Of engine and sampler.
    pub ledgers: Ledgers,
    /// Bytes of a checkpoint's tensors, of all ranks.
    pub checkpoint: usize,
}

/// What a plan is made for, besides the configuration.
pub struct Demand<'a> {
    pub config: &'a Config,
    pub architecture: &'a ModelConfig,
    /// For people.
    pub device: String,
    /// Of weights and activations.
    pub storage: DType,
    /// Micro-batches are padded to a multiple of this many tokens.
    pub multiple: usize,
    pub comm: Rc<dyn Comm>,
    /// Tokens of the longest row.
    pub longest: usize,
    /// The most tokens that are packed together.
    pub packed: usize,
    /// Positions and memory that samples need.
    pub samples: (usize, Ledgers),
}

/// Bytes that one rank may reserve; `usize::MAX` where that is not known.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    /// Device and host are the same memory.
    One(usize),
    Two {
        device: usize,
        host: usize,
    },
}

impl Budget {
    pub fn fits(&self, ledgers: &Ledgers) -> bool {
        self.excess(ledgers) == [0, 0]
    }

    /// Bytes of device and host memory that are missing.
    pub fn excess(&self, ledgers: &Ledgers) -> [usize; 2] {
        match *self {
            Budget::One(bytes) => [ledgers.total().saturating_sub(bytes), 0],
            Budget::Two { device, host } => {
                [ledgers.device.total().saturating_sub(device), ledgers.host.total().saturating_sub(host)]
            }
        }
    }
}

/// Policies of recomputation by their names, the fastest first.
pub const RECOMPUTE: [(Keep, &str); 3] = [(Keep::All, "none"), (Keep::Attention, "mlp"), (Keep::Stream, "block")];

/// A choice of where things are and what is computed again: none of it changes the numbers, but for the order of sums that tiles bring.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub plan: Plan,
    pub times: Times,
    /// Tokens a second of all ranks, estimated.
    pub rate: f64,
}

/// Each with all before it: what costs the least time comes first.
const OFFLOADS: [Offload; 6] =
    [Offload::Residuals, Offload::Vocabulary, Offload::Gradients, Offload::Remainder, Offload::Optimizer, Offload::Weights];

impl Demand<'_> {
    /// Tokens of a micro-batch: no more than the data needs.
    pub fn micro_tokens(&self) -> usize {
        let train = &self.config.train;
        if train.packing { train.micro_tokens.min(self.packed) } else { self.longest }
    }

    fn allowed(&self) -> std::ops::Range<usize> {
        match self.config.memory.recompute {
            Recompute::Auto if self.config.memory.offload.contains(&Offload::Activations) => 0..2,
            Recompute::Auto => 0..3,
            Recompute::None => 0..1,
            Recompute::Mlp => 1..2,
            Recompute::Block => 2..3,
        }
    }

    fn sizes(&self, keep: Keep, micro_tokens: usize) -> Sizes {
        let policy = Policy::new(&self.config.optimizer, &self.config.memory);
        let positions = self.longest.max(self.samples.0);
        Sizes { micro_tokens, positions, keep, mlp_tiles: self.config.memory.mlp_tiles, policy }
    }

    fn measure(&self, sizes: Sizes) -> Result<Plan> {
        let (storage, multiple) = (self.storage, self.multiple);
        let (mut ledgers, checkpoint) = Engine::plan(storage, multiple, self.comm.clone(), self.architecture, &sizes)?;
        ledgers.device.entries.extend(self.samples.1.device.entries.iter().cloned());
        ledgers.host.entries.extend(self.samples.1.host.entries.iter().cloned());
        Ok(Plan { sizes, ledgers, checkpoint })
    }

    /// The configured plan with a given recomputation.
    pub fn with(&self, keep: Keep) -> Result<Plan> {
        self.measure(self.sizes(keep, self.micro_tokens()))
    }

    /// The fastest plan that the configuration allows and that fits.
    ///
    /// Errors: does not fit, with what would.
    pub fn choose(&self, budget: Budget) -> Result<Plan> {
        for (keep, _) in &RECOMPUTE[self.allowed()] {
            let plan = self.with(*keep)?;
            if budget.fits(&plan.ledgers) {
                return Ok(plan);
            }
        }
        let smallest = self.with(RECOMPUTE[self.allowed().end - 1].0)?;
        Err(self.does_not_fit(&smallest, budget).help(self.remedy(budget)?))
    }

    fn does_not_fit(&self, plan: &Plan, budget: Budget) -> Error {
        let Ledgers { device: on_device, host: on_host } = &plan.ledgers;
        let place = &self.device;
        Error::does_not_fit(match budget {
            Budget::One(bytes) => {
                let total = plan.ledgers.total();
                let [needed, there] = [total, bytes].map(format_bytes);
                format!("this needs {needed} of memory ({total} bytes), {there} are available on {place}")
            }
            Budget::Two { device, host } => {
                let [needed, there] = [on_device.total(), device].map(format_bytes);
                let [pinned, ram] = [on_host.total(), host].map(format_bytes);
                let ram = if host == usize::MAX { "any" } else { &ram };
                format!(
                    "this needs {needed} of device memory and {pinned} of host memory, {there} and {ram} are available on {place}"
                )
            }
        })
    }

    /// Every choice that gives the configured numbers, the fastest first. Offloading helps where the device has a memory of its own.
    pub fn candidates(&self, budget: Budget, work: &Work) -> Result<Vec<Candidate>> {
        let offloads = if matches!(budget, Budget::One(_)) { 0 } else { OFFLOADS.len() };
        let memory = &self.config.memory;
        let mut all = Vec::new();
        for (keep, _) in RECOMPUTE {
            for mlp_tiles in [memory.mlp_tiles, memory.mlp_tiles.max(4)] {
                for count in 0..=offloads {
                    let mut sizes = Sizes { mlp_tiles, ..self.sizes(keep, work.tokens as usize) };
                    let offload = &mut sizes.policy.offload;
                    offload.retain(|&what| what != Offload::Activations || keep != Keep::Stream);
                    let possible = OFFLOADS[..count].iter().filter(|&&what| self.possible(what));
                    let more: Vec<Offload> = possible.copied().filter(|what| !offload.contains(what)).collect();
                    offload.extend(more);
                    let times = times(self.architecture, &sizes, work);
                    let rate = times.tokens_per_s(work);
                    all.push(Candidate { plan: self.measure(sizes)?, times, rate });
                }
            }
        }
        // Of equals the first, which moves least.
        all.sort_by(|a, b| b.rate.total_cmp(&a.rate));
        all.dedup_by(|b, a| a.plan.sizes.describe() == b.plan.sizes.describe());
        Ok(all)
    }

    /// Whether there is anything of a kind to move.
    fn possible(&self, what: Offload) -> bool {
        match what {
            Offload::Gradients => !self.config.memory.gradient_release,
            Offload::Remainder => self.storage == DType::Bf16 && self.config.optimizer.master == MasterWeights::Exact,
            _ => true,
        }
    }

    /// What would fit: other places and more recomputation; then shorter micro-batches, each as long as the longest row at least; then numbers of fewer bits.
    fn remedy(&self, budget: Budget) -> Result<String> {
        let longest = self.longest;
        let halves = std::iter::successors(Some(self.micro_tokens()), |&n| (n > longest).then_some((n / 2).max(longest)));
        for tokens in halves {
            let sequence = longest as f64;
            let world = self.comm.world() as f64;
            let work = Work { micro_batches: 1.0, tokens: tokens as f64, sequence, ranks: world, neighbours: world };
            let candidates = self.candidates(budget, &work)?;
            if let Some(fits) = candidates.iter().find(|candidate| budget.fits(&candidate.plan.ledgers)) {
                let Ledgers { device, host } = &fits.plan.ledgers;
                let shorter =
                    if tokens < self.micro_tokens() { format!(", train.micro_tokens = {tokens}") } else { String::new() };
                let needs = match host.total() {
                    0 => format_bytes(device.total()),
                    bytes => {
                        format!("{} of device memory and {} of host memory", format_bytes(device.total()), format_bytes(bytes))
                    }
                };
                return Ok(format!("{}{shorter} needs {needs}", fits.plan.sizes.describe()));
            }
        }
        let optimizer = &self.config.optimizer;
        let narrower = [
            (optimizer.gradients != GradientDtype::Bf16, "optimizer.gradients = \"bf16\""),
            (optimizer.state != StateDtype::Int8, "optimizer.state = \"int8\""),
            (self.storage == DType::Bf16 && optimizer.master == MasterWeights::Exact, "optimizer.master = \"stochastic\""),
        ];
        let narrower: Vec<&str> = narrower.iter().filter(|(helps, _)| *helps).map(|(_, key)| *key).collect();
        Ok(match narrower.is_empty() {
            true => "use more ranks, a smaller model or a larger device, or lower data.max_tokens".to_string(),
            false => {
                format!("store less ({}), use more ranks or a smaller model, or lower data.max_tokens", narrower.join(", "))
            }
        })
    }
}

impl Sizes {
    /// The keys that give it, as a configuration has them.
    pub fn describe(&self) -> String {
        let name = RECOMPUTE.iter().find(|(keep, _)| *keep == self.keep).map_or("none", |(_, name)| name);
        let mut keys = format!("memory.recompute = \"{name}\"");
        if self.mlp_tiles > 1 {
            keys += &format!(", memory.mlp_tiles = {}", self.mlp_tiles);
        }
        if !self.policy.offload.is_empty() {
            let words: Vec<String> = self.policy.offload.iter().map(|what| format!("\"{}\"", what.word())).collect();
            keys += &format!(", memory.offload = [{}]", words.join(", "));
        }
        keys
    }
}

/// The most tokens that are packed together: the longest rows of a step, or an evaluation, which is packed as a whole.
pub fn most_packed(config: &Config, data: &[&Dataset]) -> usize {
    let together = |index: usize| if index == 0 { config.train.batch } else { usize::MAX };
    let packed = data.iter().enumerate().map(|(index, dataset)| {
        let mut lengths: Vec<usize> = dataset.examples.iter().map(|e| e.tokens.len()).collect();
        lengths.sort_unstable_by_key(|&length| std::cmp::Reverse(length));
        lengths.iter().take(together(index)).sum()
    });
    packed.max().unwrap_or(1)
}
