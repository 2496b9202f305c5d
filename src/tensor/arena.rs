//! The arena: everything a job needs is reserved at once, cut up in order, and recorded by name.

use super::memory::{ALIGNMENT, Allocator, Region, Space};
use super::{DType, Shape, Tensor};
use crate::error::{Error, Kind, Result};
use std::sync::Arc;

/// Every buffer of an arena by name, in the order it was cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pub entries: Vec<LedgerEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    pub name: String,
    /// Bytes including alignment.
    pub bytes: usize,
}

impl Ledger {
    pub fn total(&self) -> usize {
        self.entries.iter().map(|e| e.bytes).sum()
    }

    /// Bytes per group, a group being the name up to its first '.', in order of appearance.
    pub fn by_group(&self) -> Vec<(String, usize)> {
        let mut groups: Vec<(String, usize)> = Vec::new();
        for entry in &self.entries {
            let group = entry.name.split('.').next().unwrap_or_default();
            match groups.iter_mut().find(|(name, _)| name == group) {
                Some((_, bytes)) => *bytes += entry.bytes,
                None => groups.push((group.to_string(), entry.bytes)),
            }
        }
        groups
    }
}

/// What is reserved on the device and in host memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledgers {
    pub device: Ledger,
    pub host: Ledger,
}

impl Ledgers {
    pub fn total(&self) -> usize {
        self.device.total() + self.host.total()
    }
}

/// Where a job's tensors are cut: most on the device, what is offloaded in host memory.
pub struct Arenas {
    pub device: Arena,
    pub host: Arena,
}

impl Arenas {
    pub fn dry() -> Self {
        Arenas { device: Arena::dry(), host: Arena::dry() }
    }

    /// Runs `build` dry to measure it, reserves exactly that much of both memories and runs it again.
    pub fn build<T>(
        device: &dyn Allocator,
        host: &dyn Allocator,
        build: impl Fn(&mut Arenas) -> Result<T>,
    ) -> Result<(T, Ledgers)> {
        let mut dry = Arenas::dry();
        build(&mut dry)?;
        let Ledgers { device: on_device, host: on_host } = dry.ledgers();
        let mut arenas =
            Arenas { device: Arena::reserve(device, on_device.total())?, host: Arena::reserve(host, on_host.total())? };
        let built = build(&mut arenas)?;
        Ok((built, arenas.ledgers()))
    }

    /// The host's arena for what is offloaded, else the device's.
    pub fn home(&mut self, offloaded: bool) -> &mut Arena {
        if offloaded { &mut self.host } else { &mut self.device }
    }

    pub fn ledgers(&self) -> Ledgers {
        Ledgers { device: self.device.ledger.clone(), host: self.host.ledger.clone() }
    }
}

/// Cuts tensors from one region, first to last; nothing is freed before the arena and all its tensors are gone.
///
/// A *dry* arena reserves nothing and only keeps the ledger: the code that builds an engine is run on a dry arena to
/// measure it, and again on a real one of exactly that size. So the plan cannot differ from the run.
pub struct Arena {
    region: Arc<Region>,
    used: usize,
    ledger: Ledger,
}

impl Arena {
    pub fn dry() -> Self {
        Arena { region: Arc::new(Region::dry()), used: 0, ledger: Ledger::default() }
    }

    /// Reserves `bytes` from `allocator`.
    pub fn reserve(allocator: &dyn Allocator, bytes: usize) -> Result<Self> {
        Ok(Arena { region: allocator.region(bytes)?, used: 0, ledger: Ledger::default() })
    }

    /// Runs `build` dry to measure it, reserves exactly that much and runs it again.
    pub fn build<T>(allocator: &dyn Allocator, build: impl Fn(&mut Arena) -> Result<T>) -> Result<(T, Ledger)> {
        let mut dry = Arena::dry();
        build(&mut dry)?;
        let mut arena = Arena::reserve(allocator, dry.ledger.total())?;
        let built = build(&mut arena)?;
        Ok((built, arena.ledger))
    }

    /// Cuts the next tensor. It starts out as zeros.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let shape = Shape::checked(shape).map_err(|error| error.context(name))?;
        let bytes = (shape.elements() * dtype.size()).next_multiple_of(ALIGNMENT);
        if self.region.bytes - self.used < bytes {
            // A dry arena is as large as the address space; a real one is as large as its dry run was.
            let kind = if self.region.space == Space::Dry { Kind::DoesNotFit } else { Kind::Internal };
            let (size, needed) = (super::format_bytes(self.region.bytes), super::format_bytes(bytes));
            return Err(Error::new(kind, format!("the arena of {size} has no room for {name} {shape} ({needed})")));
        }
        let tensor = Tensor::new(self.region.clone(), self.used, dtype, shape);
        self.used += bytes;
        self.ledger.entries.push(LedgerEntry { name: name.to_string(), bytes });
        Ok(tensor)
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}
