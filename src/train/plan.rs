//! What a run reserves, known before anything is reserved: the same code that cuts the buffers measures them.

use super::engine::{Engine, Sizes};
use crate::comm::Comm;
use crate::config::{Config, ModelConfig, Recompute};
use crate::error::{Error, Result};
use crate::model::Keep;
use crate::ops::Ops;
use crate::tensor::{Ledger, Ledgers, format_bytes};
use crate::zero::Policy;
use std::rc::Rc;

/// What one rank reserves.
#[derive(Debug, Clone)]
pub struct Plan {
    pub sizes: Sizes,
    /// Of engine and sampler.
    pub ledgers: Ledgers,
}

/// What a plan is made for, besides the configuration.
pub struct Demand<'a> {
    pub config: &'a Config,
    pub architecture: &'a ModelConfig,
    pub ops: &'a dyn Ops,
    pub comm: Rc<dyn Comm>,
    /// Tokens of the longest row.
    pub longest: usize,
    /// The most tokens that are packed together.
    pub packed: usize,
    /// Positions and device memory that samples need.
    pub samples: (usize, Ledger),
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
        match *self {
            Budget::One(bytes) => ledgers.total() <= bytes,
            Budget::Two { device, host } => ledgers.device.total() <= device && ledgers.host.total() <= host,
        }
    }
}

/// Policies of recomputation by their names, the fastest first.
pub const RECOMPUTE: [(Keep, &str); 3] = [(Keep::All, "none"), (Keep::Attention, "mlp"), (Keep::Stream, "block")];

impl Demand<'_> {
    /// Tokens of a micro-batch: no more than the data needs.
    fn micro_tokens(&self) -> usize {
        let train = &self.config.train;
        if train.packing { train.micro_tokens.min(self.packed) } else { self.longest }
    }

    fn allowed(&self) -> std::ops::Range<usize> {
        match self.config.memory.recompute {
            Recompute::Auto => 0..3,
            Recompute::None => 0..1,
            Recompute::Mlp => 1..2,
            Recompute::Block => 2..3,
        }
    }

    /// The plan with a given recomputation.
    pub fn with(&self, keep: Keep, micro_tokens: usize) -> Result<Plan> {
        let policy = Policy::new(&self.config.optimizer, &self.config.memory);
        let (sample_positions, sample_ledger) = &self.samples;
        let (positions, mlp_tiles) = (self.longest.max(*sample_positions), self.config.memory.mlp_tiles);
        let sizes = Sizes { micro_tokens, positions, keep, mlp_tiles, policy };
        let mut ledgers = Engine::plan(self.ops, self.comm.clone(), self.architecture, &sizes)?;
        ledgers.device.entries.extend(sample_ledger.entries.iter().cloned());
        Ok(Plan { sizes, ledgers })
    }

    /// The fastest plan that the configuration allows and that fits.
    ///
    /// Errors: does not fit, with what would.
    pub fn choose(&self, budget: Budget) -> Result<Plan> {
        let micro_tokens = self.micro_tokens();
        for (keep, _) in &RECOMPUTE[self.allowed()] {
            let plan = self.with(*keep, micro_tokens)?;
            if budget.fits(&plan.ledgers) {
                return Ok(plan);
            }
        }
        let smallest = self.with(RECOMPUTE[self.allowed().end - 1].0, micro_tokens)?;
        Err(self.does_not_fit(&smallest, budget).help(self.remedy(budget)?))
    }

    fn does_not_fit(&self, plan: &Plan, budget: Budget) -> Error {
        let Ledgers { device: on_device, host: on_host } = &plan.ledgers;
        let where_ = self.ops.device();
        Error::does_not_fit(match budget {
            Budget::One(bytes) => {
                let total = plan.ledgers.total();
                let [needed, there] = [total, bytes].map(format_bytes);
                format!("this needs {needed} of memory ({total} bytes), {there} are available on {where_}")
            }
            Budget::Two { device, host } => {
                let [d, h, device, host] = [on_device.total(), on_host.total(), device, host].map(format_bytes);
                format!("this needs {d} of device memory and {h} of host memory, {device} and {host} are available on {where_}")
            }
        })
    }

    /// What would fit: more recomputation, then shorter micro-batches, each as long as the longest row at least.
    fn remedy(&self, budget: Budget) -> Result<String> {
        let longest = self.longest;
        let halves = std::iter::successors(Some(self.micro_tokens()), |&n| (n > longest).then_some((n / 2).max(longest)));
        for tokens in halves {
            for (keep, name) in &RECOMPUTE[self.allowed().start..] {
                let plan = self.with(*keep, tokens)?;
                if budget.fits(&plan.ledgers) {
                    let total = format_bytes(plan.ledgers.total());
                    return Ok(format!("memory.recompute = \"{name}\" with train.micro_tokens = {tokens} needs {total}"));
                }
            }
        }
        Ok("use a smaller model or a larger device, or lower data.max_tokens".to_string())
    }
}
