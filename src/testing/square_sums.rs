//! The case table of partial sums of squares.

use super::buffer::{Behind, Buffer};
use super::compare::within_budget;
use super::random::Random;
use super::{Check, Outputs, ladder_checks};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::cuda::ladder::Version;
use crate::ops::cuda::square_sums::{self as kernels, SQUARE_SUMS};
use crate::ops::{SQUARE_SUMS_CHUNK, SquareSums};
use crate::tensor::DType;

/// One problem: normal values of `mean` and `scale`.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// N
    pub count: usize,
    pub mean: f64,
    pub scale: f64,
    /// Takes the place of the last element.
    pub planted: Option<f32>,
}

const PLAIN: Case = Case { name: "", count: SQUARE_SUMS_CHUNK, mean: 0.0, scale: 1.0, planted: None };

pub const CASES: [Case; 11] = [
    Case { name: "one element", count: 1, ..PLAIN },
    Case { name: "three elements", count: 3, ..PLAIN },
    Case { name: "one short of a partial sum", count: SQUARE_SUMS_CHUNK - 1, ..PLAIN },
    Case { name: "one partial sum", ..PLAIN },
    Case { name: "one past a partial sum", count: SQUARE_SUMS_CHUNK + 1, ..PLAIN },
    Case { name: "odd", count: 10 * SQUARE_SUMS_CHUNK + 1234, ..PLAIN },
    Case { name: "non-zero mean", count: 5000, mean: 10.0, ..PLAIN },
    Case { name: "large magnitude", count: 5001, scale: 1e15, ..PLAIN },
    Case { name: "tiny magnitude", count: 5002, scale: 1e-15, ..PLAIN },
    Case { name: "NaN stays", count: 5003, planted: Some(f32::NAN), ..PLAIN },
    Case { name: "infinity stays", count: 5004, planted: Some(f32::NEG_INFINITY), ..PLAIN },
];

/// Of the norm and of the largest value: f32 sums of 4096 squares in another order than the naive program's.
const ATOL: f64 = 1e-6;

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    ladder_checks("square_sums", &SQUARE_SUMS, &CASES, |case| format!("{} ({})", case.name, case.count), run)
}

fn run(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let mut random = Random::new(case.count as u64);
    let mut x: Vec<f32> = (0..case.count).map(|_| (case.mean + case.scale * random.normal()) as f32).collect();
    if let Some(planted) = case.planted {
        x[case.count - 1] = planted;
    }
    let partials = case.count.div_ceil(SQUARE_SUMS_CHUNK);
    let x_buffer = Buffer::new(launcher, behind, "x", DType::F32, &[case.count], &x)?;
    let mut sums_buffer = Buffer::poisoned(launcher, behind, "sums", DType::F32, &[partials])?;
    kernels::square_sums(launcher, version, SquareSums { x: x_buffer.view(), sums: sums_buffer.view_mut() })?;
    launcher.synchronize()?;
    let mut sums = sums_buffer.read()?;

    if let Some(planted) = case.planted {
        let last = sums.pop().expect("a partial sum");
        if !(last.is_nan() && planted.is_nan() || last == f32::INFINITY && planted.is_infinite()) {
            return Err(Error::internal(format!("{planted} in the last element became {last}")));
        }
        x.truncate((partials - 1) * SQUARE_SUMS_CHUNK);
    }
    let naive: Vec<f32> = x.chunks(SQUARE_SUMS_CHUNK).map(|x| x.iter().map(|x| x * x).sum()).collect();
    let oracle: Vec<f64> = x.chunks(SQUARE_SUMS_CHUNK).map(|x| x.iter().map(|&x| f64::from(x).powi(2)).sum()).collect();
    within_budget("sums", &sums, &naive, &oracle, ATOL)?;
    Ok(vec![("sums", sums)])
}
