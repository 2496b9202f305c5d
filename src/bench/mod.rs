//! Kernels against the roofline of the machine they run on, and the self-test. Verify, then time: a version that is wrong has
//! no time.
//!
//! A family gives its ladders: for each model, a [`Problem`] that any version can be issued on. `limo-engine bench`,
//! `benches/kernels.rs` and `docs/kernels.md` all run over the same ladders.

mod adamw;
mod attention;
pub mod ceilings;
mod classifier;
pub mod dry;
mod embedding;
pub mod models;
mod paged_attention;
pub mod problem;
mod products;
pub mod report;
mod rms_norm;
mod rows;
mod sampling;
pub mod selftest;
pub mod timing;

use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::error::{Error, Kind, Result};
use crate::ops::Gemm;
use crate::ops::cuda::gemm::CublasLt;
use crate::testing::FAMILIES;
use crate::testing::buffer::Behind;
use ceilings::Ceilings;
use dry::{Dry, Noted};
use models::Model;
use problem::{Device, Problem};
use report::{Measurement, Speed};
use serde::Serialize;
use std::collections::HashSet;
use std::ops::Range;

/// What bounds an op on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ceiling {
    /// Memory: the speed of a copy on the device.
    Copy,
    /// Tensor cores: the speed of a large product through cuBLASLt.
    Product,
}

/// Makes the op of a ladder at the shape of a model.
type Pose = dyn for<'a> Fn(Device<'a>, &Model) -> Result<Problem<'a>>;

/// Versions of one op from naive to shipped, which is the last.
pub struct Ladder {
    /// As the case table has it: "rms_norm".
    pub family: &'static str,
    pub ceiling: Ceiling,
    /// Name and idea.
    pub versions: Vec<(String, &'static str)>,
    problem: Box<Pose>,
}

impl Ladder {
    fn new<N: Into<String>>(
        family: &'static str,
        ceiling: Ceiling,
        versions: impl IntoIterator<Item = (N, &'static str)>,
        problem: impl for<'a> Fn(Device<'a>, &Model) -> Result<Problem<'a>> + 'static,
    ) -> Self {
        let versions = versions.into_iter().map(|(name, idea)| (name.into(), idea)).collect();
        Ladder { family, ceiling, versions, problem: Box::new(problem) }
    }

    /// The op at the shape of a model, with its operands reserved and filled.
    pub fn problem<'a>(&self, device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
        (self.problem)(device, model)
    }

    /// Runs a version on every case of its table; returns their number. Products have a table of their own, which
    /// [`ceilings`] runs.
    pub fn verify(&self, launcher: &dyn Launcher, version: usize) -> Result<usize> {
        let families = FAMILIES.iter().filter(|family| family.name == self.family);
        let checks = families.flat_map(|family| (family.checks)()).filter(|check| self.is_table_of(version, &check.table));
        checks.map(|check| check.run(launcher, Behind::Canaries)).try_fold(0, |count, outputs| outputs.map(|_| count + 1))
    }

    /// "rms_norm forward 3" is the table of that version, "elementwise fill f32 with 1e-1" one of the version "fill f32"; a family without versions
    /// has a table of its own name.
    fn is_table_of(&self, version: usize, table: &str) -> bool {
        let name = format!("{} {}", self.family, self.versions[version].0);
        table == self.family || table.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    fn line(&self, version: usize, model: &'static str, shape: String, speed: Option<Speed>) -> Measurement {
        let (name, idea) = &self.versions[version];
        let ships = version + 1 == self.versions.len();
        Measurement { bench: self.family, model, version: name.clone(), idea, ships, shape, speed }
    }
}

/// One benchmark by the name that the command line takes.
pub struct Bench {
    pub name: &'static str,
    pub about: &'static str,
    pub ladders: fn() -> Vec<Ladder>,
}

pub const BENCHES: &[Bench] = &[
    Bench { name: "ceilings", about: "the copy and the product that all others are a share of", ladders: Vec::new },
    Bench {
        name: "products",
        about: "every matrix product of a layer and of the head, through cuBLASLt",
        ladders: products::ladders,
    },
    Bench { name: "rms_norm", about: "fused residual addition and RMSNorm", ladders: rms_norm::ladders },
    Bench { name: "attention", about: "causal attention over packed sequences", ladders: attention::ladders },
    Bench { name: "adamw", about: "one pass over weights, gradients and moments", ladders: adamw::ladders },
    Bench { name: "square_sums", about: "the partial sums of the gradient norm", ladders: adamw::square_sums_ladders },
    Bench { name: "elementwise", about: "fill, add, accumulate, cast", ladders: rows::elementwise_ladders },
    Bench { name: "embedding", about: "rows of a table, and their gradient", ladders: embedding::ladders },
    Bench { name: "rope", about: "rotary positions", ladders: rows::rope_ladders },
    Bench { name: "swiglu", about: "the gated activation", ladders: rows::swiglu_ladders },
    Bench { name: "bias", about: "the gradient of a bias", ladders: rows::bias_ladders },
    Bench {
        name: "paged_attention",
        about: "RoPE into pages, a token a sequence over its pages, chunks of prompts",
        ladders: paged_attention::ladders,
    },
    Bench { name: "sampling", about: "drawing tokens from logits, and feeding them back", ladders: sampling::ladders },
    Bench { name: "classifier", about: "chunked linear + cross-entropy with its gradients", ladders: classifier::ladders },
];

/// The benchmarks of these names, or all of them, in the order of [`BENCHES`]. "rmsnorm" and "rms-norm" are "rms_norm".
pub fn select(names: &[String]) -> Result<Vec<&'static Bench>> {
    let plain = |name: &str| name.replace(['_', '-'], "");
    let known = |name: &str| BENCHES.iter().any(|bench| plain(bench.name) == plain(name));
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let list: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        return Err(Error::usage(format!("there is no benchmark {unknown:?}")).help(format!("known: {}", list.join(", "))));
    }
    let chosen = |bench: &&Bench| names.is_empty() || names.iter().any(|name| plain(name) == plain(bench.name));
    Ok(BENCHES.iter().filter(chosen).collect())
}

/// What is asked for.
pub struct Chosen {
    pub benches: Vec<&'static Bench>,
    pub models: Vec<&'static Model>,
    /// Only the versions that ship.
    pub shipped: bool,
}

impl Chosen {
    fn ladders(&self) -> Vec<Ladder> {
        self.benches.iter().flat_map(|bench| (bench.ladders)()).collect()
    }

    /// Indices of the versions of a ladder.
    fn versions(&self, ladder: &Ladder) -> Range<usize> {
        let count = ladder.versions.len();
        if self.shipped { count - 1..count } else { 0..count }
    }
}

/// Takes each line as soon as it is known.
type Tell<'a> = &'a mut dyn FnMut(Measurement) -> Result<()>;

/// Verifies every version, then times it at the shapes of `models`.
pub fn time(driver: &Driver, chosen: &Chosen, tell: Tell) -> Result<()> {
    let cublaslt = CublasLt::new(driver);
    let gemm = |op: Gemm| match &cublaslt {
        Ok(cublaslt) => cublaslt.gemm(driver, op),
        Err(error) => Err(error.clone()),
    };
    let device = Device { launcher: driver, gemm: &gemm };
    let ladders = chosen.ladders();
    // Without cuBLASLt only what is bound by memory can be told as a share.
    let needed = ladders.is_empty() || ladders.iter().any(|ladder| ladder.ceiling == Ceiling::Product);
    let product = if needed { Some(cublaslt.as_ref().map_err(Error::clone)?) } else { None };
    let ceilings = Ceilings::measure(driver, product, tell)?;
    let mut verified = HashSet::new();
    for ladder in &ladders {
        let versions = chosen.versions(ladder);
        for version in versions.clone() {
            // Ladders of other shapes may share their versions.
            if verified.insert((ladder.family, &ladder.versions[version].0)) {
                ladder.verify(driver, version)?;
            }
        }
        for model in &chosen.models {
            time_problem(device, ladder, versions.clone(), model, &ceilings, tell)?;
        }
    }
    Ok(())
}

/// A problem that does not fit this GPU is told without a speed.
fn time_problem(
    device: Device,
    ladder: &Ladder,
    mut versions: Range<usize>,
    model: &'static Model,
    ceilings: &Ceilings,
    tell: Tell,
) -> Result<()> {
    let mut problem = match ladder.problem(device, model) {
        Err(error) if error.kind == Kind::DoesNotFit => {
            let line = |version| ladder.line(version, model.name, "does not fit this GPU".to_string(), None);
            return versions.try_for_each(|version| tell(line(version)));
        }
        problem => problem?,
    };
    for version in versions {
        let timing = timing::time(device.launcher, |i| problem.issue(version, i))?;
        let speed = Speed::new(timing, problem.cost).against(ladder.ceiling, ceilings);
        tell(ladder.line(version, model.name, problem.shape.clone(), Some(speed)))?;
    }
    Ok(())
}

/// Verifies every version on a launcher that is not worth timing.
pub fn verify(launcher: &dyn Launcher, chosen: &Chosen, tell: Tell) -> Result<()> {
    for ladder in chosen.ladders() {
        for version in chosen.versions(&ladder) {
            match ladder.verify(launcher, version)? {
                0 => {}
                cases => tell(ladder.line(version, "-", format!("{cases} cases"), None))?,
            }
        }
    }
    Ok(())
}

/// What one version launches at one shape.
#[derive(Debug, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    pub line: Measurement,
    pub launches: Vec<Noted>,
}

/// The launches of every version at every shape, found without a GPU.
pub fn list(chosen: &Chosen) -> Result<Vec<Listed>> {
    let dry = Dry::default();
    let device = Device { launcher: &dry, gemm: &|op| op.check() };
    let mut listed = Vec::new();
    for ladder in chosen.ladders() {
        for model in &chosen.models {
            let mut problem = ladder.problem(device, model)?;
            for version in chosen.versions(&ladder) {
                dry.take();
                problem.issue(version, 0)?;
                let line = ladder.line(version, model.name, problem.shape.clone(), None);
                listed.push(Listed { line, launches: dry.take() });
            }
        }
    }
    Ok(listed)
}

/// The commit of this binary: LIMO_COMMIT when it runs, else when it was built.
pub fn commit() -> String {
    let built = option_env!("LIMO_COMMIT").map(String::from);
    std::env::var("LIMO_COMMIT").ok().or(built).filter(|commit| !commit.is_empty()).unwrap_or_else(|| "unknown".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::MODELS;

    #[test]
    fn names_select_benchmarks_and_unknown_ones_are_listed() {
        assert_eq!(select(&[]).unwrap().len(), BENCHES.len());
        for name in ["rms_norm", "rmsnorm"] {
            let one = select(&[name.to_string()]).unwrap();
            assert_eq!(one.iter().map(|bench| bench.name).collect::<Vec<_>>(), ["rms_norm"]);
        }
        let error = select(&["rms".to_string()]).err().expect("an error").to_string();
        assert!(error.contains("\"rms\"") && error.contains("ceilings, products, rms_norm"), "{error}");
    }

    #[test]
    fn every_version_is_verified_and_benchmarked() {
        let tables: Vec<String> = FAMILIES.iter().flat_map(|family| (family.checks)()).map(|check| check.table).collect();
        let ladders: Vec<Ladder> = BENCHES.iter().flat_map(|bench| (bench.ladders)()).collect();
        for ladder in ladders.iter().filter(|ladder| ladder.family != "products") {
            for (version, (name, _)) in ladder.versions.iter().enumerate() {
                let verified = tables.iter().any(|table| ladder.is_table_of(version, table));
                assert!(verified, "no case of {} {name}", ladder.family);
            }
        }
        for table in &tables {
            let mut benchmarked = ladders.iter().flat_map(|ladder| (0..ladder.versions.len()).map(move |v| (ladder, v)));
            assert!(benchmarked.any(|(ladder, version)| ladder.is_table_of(version, table)), "no benchmark of {table}");
        }
    }

    /// At full size: the wrappers accept every shape, and no launch is one that an H200 would refuse.
    #[test]
    fn every_problem_is_issued_without_a_gpu() {
        let everything = Chosen { benches: select(&[]).unwrap(), models: MODELS.iter().collect(), shipped: false };
        let listed = list(&everything).unwrap();
        assert!(listed.len() >= 30, "{} lines", listed.len());
        for Listed { line, launches } in &listed {
            assert!(line.bench == "products" || !launches.is_empty(), "{line:?} launches nothing");
            for Noted { kernel, grid, threads, shared_bytes } in launches {
                assert!(grid[0] > 0 && grid[0] <= i32::MAX as u32, "{kernel}: {grid:?}");
                assert!(grid[1..].iter().all(|&extent| (1..=65_535).contains(&extent)), "{kernel}: {grid:?}");
                assert!((32..=1024).contains(threads) && threads % 32 == 0, "{kernel}: {threads} threads");
                // As on an H200; where a block has less, wrappers take an earlier version.
                assert!(*shared_bytes <= 227 << 10, "{kernel}: {shared_bytes} bytes of shared memory");
            }
        }
    }
}
