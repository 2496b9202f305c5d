//! Every case table, run from the release binary on one launcher.

use super::report::aligned;
use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::device::emulator::Emulator;
use crate::error::{Error, Result};
use crate::ops::cuda::gemm::CublasLt;
use crate::testing::buffer::Behind;
use crate::testing::conformance::{self, WRAPPERS};
use crate::testing::gemm;
use crate::testing::{Check, FAMILIES, Family};
use serde::Serialize;

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "reason", rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Verdict {
    pub fn of<T>(result: Result<T>) -> Self {
        match result {
            Ok(_) => Verdict::Passed,
            Err(error) => Verdict::Failed(error.to_string()),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The case table, with the version: "rms_norm forward 4".
    pub table: String,
    pub case: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub limo_engine: &'static str,
    pub commit: String,
    pub device: String,
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// PTX wrappers that no GPU has confirmed.
    pub unproven: Vec<String>,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn new(device: String, outcomes: Vec<Outcome>, unproven: Vec<String>) -> Self {
        let count = |wanted: fn(&Verdict) -> bool| outcomes.iter().filter(|outcome| wanted(&outcome.verdict)).count();
        Report {
            limo_engine: env!("CARGO_PKG_VERSION"),
            commit: super::commit(),
            device,
            passed: count(|v| matches!(v, Verdict::Passed)),
            failed: count(|v| matches!(v, Verdict::Failed(_))),
            skipped: count(|v| matches!(v, Verdict::Skipped(_))),
            unproven,
            outcomes,
        }
    }

    /// A line a table with its counts, the reason of everything that did not pass, and the sum.
    pub fn text(&self) -> String {
        let mut tables: Vec<(&str, [usize; 3])> = Vec::new();
        for outcome in &self.outcomes {
            let column = match outcome.verdict {
                Verdict::Passed => 0,
                Verdict::Failed(_) => 1,
                Verdict::Skipped(_) => 2,
            };
            match tables.iter_mut().find(|(name, _)| *name == outcome.table) {
                Some((_, counts)) => counts[column] += 1,
                None => {
                    let mut counts = [0; 3];
                    counts[column] = 1;
                    tables.push((&outcome.table, counts));
                }
            }
        }
        let mut rows = vec![["table", "passed", "failed", "skipped"].map(String::from)];
        rows.extend(tables.iter().map(|(name, [p, f, s])| [name.to_string(), p.to_string(), f.to_string(), s.to_string()]));
        let mut text = aligned(&rows, &[1, 2, 3]);
        let mut skips: Vec<(&str, usize)> = Vec::new();
        for Outcome { table, case, verdict } in &self.outcomes {
            match verdict {
                Verdict::Passed => {}
                Verdict::Failed(reason) if reason.starts_with(table) => text.push_str(&format!("FAILED {reason}\n")),
                Verdict::Failed(reason) => text.push_str(&format!("FAILED {table}, {case}: {reason}\n")),
                Verdict::Skipped(reason) => match skips.iter_mut().find(|(known, _)| known == reason) {
                    Some((_, count)) => *count += 1,
                    None => skips.push((reason, 1)),
                },
            }
        }
        skips.iter().for_each(|(reason, count)| text.push_str(&format!("skipped {count}: {reason}\n")));
        if !self.unproven.is_empty() {
            text.push_str(&format!("unproven, no record from a GPU: {}\n", self.unproven.join(", ")));
        }
        let Report { passed, failed, skipped, device, .. } = self;
        text.push_str(&format!("selftest on {device}: {passed} passed, {failed} failed, {skipped} skipped\n"));
        text
    }
}

/// What the tables run on.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    Gpu(&'a Driver),
    Emulator(&'a Emulator),
    /// No GPU: every case of [`Target::Gpu`] is skipped, for this reason.
    Absent(&'a str),
}

/// The names of all tables: conformance, the kernels by family, products.
pub fn tables() -> Vec<&'static str> {
    let families = FAMILIES.iter().map(|family| family.name);
    ["conformance"].into_iter().chain(families).chain(["products"]).collect()
}

/// Runs the tables of these names, or all.
pub fn run(target: Target, names: &[String]) -> Result<Vec<Outcome>> {
    let known = tables();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::usage(format!("there is no case table {unknown:?}")).help(format!("known: {}", known.join(", "))));
    }
    let outcomes = |name: &str| match name {
        "conformance" => conformance_table(target),
        "products" => product_table(target),
        _ => FAMILIES.iter().filter(|family| family.name == name).flat_map(|family| kernel_tables(target, family)).collect(),
    };
    let chosen = known.iter().filter(|name| names.is_empty() || names.iter().any(|chosen| chosen == **name));
    Ok(chosen.flat_map(|name| outcomes(name)).collect())
}

/// The verdict on one case of kernels, which any launcher runs. The checked emulator watches the ends of buffers itself.
fn judge<T>(target: Target, check: impl FnOnce(&dyn Launcher, Behind) -> Result<T>) -> Verdict {
    match target {
        Target::Gpu(driver) => Verdict::of(check(driver, Behind::Canaries)),
        Target::Emulator(emulator) => Verdict::of(check(emulator, Behind::Nothing)),
        Target::Absent(reason) => Verdict::Skipped(reason.to_string()),
    }
}

/// Every PTX wrapper against its reference, and against what GPUs were recorded to write.
fn conformance_table(target: Target) -> Vec<Outcome> {
    let outcome = |table: &str, case: String, verdict| Outcome { table: table.to_string(), case, verdict };
    let mut outcomes: Vec<Outcome> = WRAPPERS
        .iter()
        .map(|wrapper| {
            let verdict = judge(target, |launcher, _| conformance::check(launcher, wrapper));
            outcome("conformance", wrapper.name.to_string(), verdict)
        })
        .collect();
    match conformance::records() {
        Err(error) => outcomes.push(outcome("conformance records", "reading".to_string(), Verdict::Failed(error.to_string()))),
        Ok(records) => outcomes.extend(records.iter().map(|record| {
            let verdict = judge(target, |launcher, _| conformance::check_record(launcher, record));
            outcome("conformance records", format!("{}, driver {}", record.gpu, record.driver), verdict)
        })),
    }
    outcomes
}

/// Every version of a family's kernels over every case.
fn kernel_tables(target: Target, family: &Family) -> Vec<Outcome> {
    let outcome = |check: Check| {
        let verdict = judge(target, |launcher, behind| check.run(launcher, behind));
        Outcome { table: check.table, case: check.case, verdict }
    };
    (family.checks)().into_iter().map(outcome).collect()
}

/// Products through cuBLASLt, which exist on a GPU only.
fn product_table(target: Target) -> Vec<Outcome> {
    let outcome = |case: &gemm::Case, verdict| Outcome {
        table: "products".to_string(),
        case: format!("{} ({} x {} x {})", case.name, case.m, case.n, case.k),
        verdict,
    };
    let all = |verdict: Verdict| gemm::CASES.iter().map(|case| outcome(case, verdict.clone())).collect();
    match target {
        Target::Emulator(_) => Vec::new(),
        Target::Absent(reason) => all(Verdict::Skipped(reason.to_string())),
        Target::Gpu(driver) => match CublasLt::new(driver) {
            Err(error) => all(Verdict::Failed(error.to_string())),
            Ok(cublaslt) => {
                gemm::CASES.iter().map(|case| outcome(case, Verdict::of(gemm::check(driver, &cublaslt, case)))).collect()
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_each_table_and_tells_every_reason() {
        let outcome = |table: &str, case: &str, verdict| Outcome { table: table.to_string(), case: case.to_string(), verdict };
        let outcomes = vec![
            outcome("rms_norm forward 1", "odd", Verdict::Passed),
            outcome("rms_norm forward 1", "zeros", Verdict::Failed("y: relative error 3.000e-1".to_string())),
            outcome("rms_norm backward 1", "odd", Verdict::Skipped("no GPU is visible".to_string())),
            outcome("rms_norm backward 1", "zeros", Verdict::Skipped("no GPU is visible".to_string())),
        ];
        let report = Report::new("a device".to_string(), outcomes, vec!["ldmatrix".to_string()]);
        let expected = "\
table                passed  failed  skipped
rms_norm forward 1        1       1        0
rms_norm backward 1       0       0        2
FAILED rms_norm forward 1, zeros: y: relative error 3.000e-1
skipped 2: no GPU is visible
unproven, no record from a GPU: ldmatrix
selftest on a device: 1 passed, 1 failed, 2 skipped
";
        assert_eq!(report.text(), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["outcomes"][1]["verdict"], "failed");
        assert_eq!(json["outcomes"][2]["reason"], "no GPU is visible");
    }

    #[test]
    fn without_a_gpu_every_case_of_every_table_is_skipped() {
        let outcomes = run(Target::Absent("no GPU"), &[]).unwrap();
        let kernels: usize = FAMILIES.iter().map(|family| (family.checks)().len()).sum();
        let cases = WRAPPERS.len() + kernels + gemm::CASES.len();
        assert_eq!(outcomes.len(), cases + conformance::records().unwrap().len());
        assert!(outcomes.iter().all(|outcome| outcome.verdict == Verdict::Skipped("no GPU".to_string())));
    }

    #[test]
    fn tables_are_chosen_by_name_and_unknown_ones_are_listed() {
        let outcomes = run(Target::Absent("no GPU"), &["products".to_string()]).unwrap();
        assert_eq!(outcomes.len(), gemm::CASES.len());
        let error = run(Target::Absent("no GPU"), &["gemm".to_string()]).expect_err("an error").to_string();
        assert!(error.contains("\"gemm\"") && error.contains(&tables().join(", ")), "{error}");
    }
}
