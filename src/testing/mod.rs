//! What tests, `selftest` and benchmarks share: case tables, random data, guarded buffers, comparison. A case runs on any
//! [`Launcher`](crate::device::Launcher), so the emulator, a GPU and every version of a kernel answer to the same table.

pub mod buffer;
pub mod compare;
pub mod conformance;
pub mod gemm;
pub mod planted;
pub mod random;
pub mod rms_norm;

use crate::device::Launcher;
use crate::error::Result;
use buffer::Behind;

/// What a version computed, by name, for comparing the bits of two runs.
pub type Outputs = Vec<(&'static str, Vec<f32>)>;

type Run = dyn Fn(&dyn Launcher, Behind) -> Result<Outputs>;

/// One version of a kernel on one case of its table.
pub struct Check {
    /// "rms_norm forward 3"
    pub table: String,
    /// "odd (4 x 113)"
    pub case: String,
    run: Box<Run>,
}

impl Check {
    pub fn new(table: String, case: String, run: impl Fn(&dyn Launcher, Behind) -> Result<Outputs> + 'static) -> Self {
        Check { table, case, run: Box::new(run) }
    }

    /// Runs the kernel on poisoned outputs and compares them with the oracle; an error says what is off.
    pub fn run(&self, launcher: &dyn Launcher, behind: Behind) -> Result<Outputs> {
        (self.run)(launcher, behind).map_err(|error| error.context(format!("{}, case \"{}\"", self.table, self.case)))
    }
}

/// The case tables of the kernels of one folder.
pub struct Family {
    pub name: &'static str,
    /// Every version on every case.
    pub checks: fn() -> Vec<Check>,
}

pub const FAMILIES: [Family; 1] = [Family { name: "rms_norm", checks: rms_norm::checks }];
