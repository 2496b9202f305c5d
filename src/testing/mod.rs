//! What tests, `selftest` and benchmarks share: case tables, random data, guarded buffers, comparison. A case runs on any
//! [`Launcher`](crate::device::Launcher), so the emulator, a GPU and every version of a kernel answer to the same table.

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod buffer;
pub mod classifier;
pub mod compare;
pub mod conformance;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod paged_attention;
pub mod planted;
pub mod random;
pub mod rms_norm;
pub mod rope;
pub mod sampling;
pub mod square_sums;
pub mod swiglu;

use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cuda::ladder::Version;
use buffer::Behind;
use half::bf16;

/// What a version computed, by name, for comparing the bits of two runs.
pub type Outputs = Vec<(&'static str, Vec<f32>)>;

type Run = dyn Fn(&dyn Launcher, Behind) -> Result<Outputs>;

/// One version of a kernel on one case of its table.
pub struct Check {
    /// "rms_norm forward 3"
    pub table: String,
    /// "odd (4 x 113)"
    pub case: String,
    /// It makes more accesses than an emulator that looks at each of them should be given; other cases of the table go through the same code.
    pub heavy: bool,
    run: Box<Run>,
}

impl Check {
    pub fn new(table: String, case: String, run: impl Fn(&dyn Launcher, Behind) -> Result<Outputs> + 'static) -> Self {
        Check { table, case, heavy: false, run: Box::new(run) }
    }

    /// Runs the kernel on poisoned outputs and compares them with the oracle; an error says what is off.
    pub fn run(&self, launcher: &dyn Launcher, behind: Behind) -> Result<Outputs> {
        (self.run)(launcher, behind).map_err(|error| error.context(format!("{}, case \"{}\"", self.table, self.case)))
    }
}

/// Every version of a ladder on every case of a table.
pub fn ladder_checks<Case: Sync>(
    family: &str,
    ladder: &'static [Version],
    cases: &'static [Case],
    describe: fn(&Case) -> String,
    run: fn(&dyn Launcher, &Version, &Case, Behind) -> Result<Outputs>,
) -> Vec<Check> {
    let pairs = ladder.iter().flat_map(|version| cases.iter().map(move |case| (version, case)));
    let check = |(version, case): (&'static Version, &'static Case)| {
        let run = move |launcher: &dyn Launcher, behind| run(launcher, version, case, behind);
        Check::new(format!("{family} {}", version.name), describe(case), run)
    };
    pairs.map(check).collect()
}

/// What bf16 storage keeps of a value.
pub fn round(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

/// The case tables of the kernels of one folder.
pub struct Family {
    pub name: &'static str,
    /// Every version on every case.
    pub checks: fn() -> Vec<Check>,
}

pub const FAMILIES: &[Family] = &[
    Family { name: "rms_norm", checks: rms_norm::checks },
    Family { name: "attention", checks: attention::checks },
    Family { name: "adamw", checks: adamw::checks },
    Family { name: "square_sums", checks: square_sums::checks },
    Family { name: "elementwise", checks: elementwise::checks },
    Family { name: "embedding", checks: embedding::checks },
    Family { name: "rope", checks: rope::checks },
    Family { name: "swiglu", checks: swiglu::checks },
    Family { name: "bias", checks: bias::checks },
    Family { name: "paged_attention", checks: paged_attention::checks },
    Family { name: "sampling", checks: sampling::checks },
    Family { name: "classifier", checks: classifier::checks },
];
