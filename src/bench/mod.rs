//! Kernels against the roofline of the machine they run on, and the self-test. Verify, then time: a version that is wrong has
//! no time.

pub mod ceilings;
pub mod report;
pub mod rms_norm;
pub mod selftest;
pub mod timing;

use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::error::{Error, Result};
use report::Measurement;

/// What a benchmark gives: a line a version and shape.
type Results = Result<Vec<Measurement>>;

/// One benchmark by the name that the command line takes.
pub struct Bench {
    pub name: &'static str,
    pub about: &'static str,
    /// Verifies and times on a GPU.
    pub time: fn(&Driver) -> Results,
    /// Verifies small shapes on any launcher; times there would mean nothing.
    pub verify: Option<fn(&dyn Launcher) -> Results>,
}

pub const BENCHES: [Bench; 2] = [
    Bench {
        name: "ceilings",
        about: "device copy (bytes read and written) and an 8192 x 8192 x 8192 bf16 product through cuBLASLt",
        time: ceilings::time,
        verify: None,
    },
    Bench {
        name: "rmsnorm",
        about: "every version of fused residual + RMSNorm, forward and backward, at Qwen2.5 widths",
        time: rms_norm::time,
        verify: Some(rms_norm::verify),
    },
];

/// The benchmarks of these names, or all of them, in the order of [`BENCHES`].
pub fn select(names: &[String]) -> Result<Vec<&'static Bench>> {
    let known = |name: &str| BENCHES.iter().any(|bench| bench.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let list: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        return Err(Error::usage(format!("there is no benchmark {unknown:?}")).help(format!("known: {}", list.join(", "))));
    }
    Ok(BENCHES.iter().filter(|bench| names.is_empty() || names.iter().any(|name| name == bench.name)).collect())
}

/// The commit of this binary: LIMO_COMMIT when it runs, else when it was built.
pub fn commit() -> String {
    let built = option_env!("LIMO_COMMIT").map(String::from);
    std::env::var("LIMO_COMMIT").ok().or(built).filter(|commit| !commit.is_empty()).unwrap_or_else(|| "unknown".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_benchmarks_and_unknown_ones_are_listed() {
        let all = select(&[]).unwrap();
        assert_eq!(all.len(), BENCHES.len());
        let one = select(&["rmsnorm".to_string()]).unwrap();
        assert_eq!(one.iter().map(|bench| bench.name).collect::<Vec<_>>(), ["rmsnorm"]);
        let error = select(&["rms".to_string()]).err().expect("an error").to_string();
        assert!(error.contains("\"rms\"") && error.contains("ceilings, rmsnorm"), "{error}");
    }
}
