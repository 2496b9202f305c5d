//! The case table of matrix products through cuBLASLt.

use super::buffer::{Behind, Buffer};
use super::compare::within_budget;
use super::random::Random;
use crate::device::driver::Driver;
use crate::error::Result;
use crate::ops::cuda::gemm::CublasLt;
use crate::ops::{Gemm, Operand};
use crate::tensor::DType;
use half::bf16;

/// c[M, N] (+)= a[M, K] · b[K, N] (+ bias[N]) of normal values in bf16.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a_transposed: bool,
    pub b_transposed: bool,
    pub bias: bool,
    pub accumulate: bool,
    pub output: DType,
}

/// A linear layer's forward product; no two extents are equal, so none can stand for another.
const FORWARD: Case = Case {
    name: "linear",
    m: 48,
    n: 72,
    k: 264,
    a_transposed: false,
    b_transposed: true,
    bias: false,
    accumulate: false,
    output: DType::Bf16,
};

pub const CASES: [Case; 10] = [
    FORWARD,
    Case { name: "linear with bias", bias: true, ..FORWARD },
    Case { name: "linear with bias, added to", bias: true, accumulate: true, ..FORWARD },
    Case { name: "logits in f32", output: DType::F32, ..FORWARD },
    Case { name: "input gradient", b_transposed: false, ..FORWARD },
    Case { name: "input gradient, added to", b_transposed: false, accumulate: true, ..FORWARD },
    Case {
        name: "weight gradient in f32",
        a_transposed: true,
        b_transposed: false,
        accumulate: true,
        output: DType::F32,
        ..FORWARD
    },
    Case { name: "both transposed", a_transposed: true, ..FORWARD },
    Case { name: "one row", m: 1, n: 128, k: 896, ..FORWARD },
    Case { name: "Qwen2.5 0.5B, fused query, key, value", m: 136, n: 1152, k: 896, bias: true, ..FORWARD },
];

/// Of the norm and of the largest value: what another order of f32 sums may add to the budget.
const ATOL: f64 = 1e-6;

/// Runs a case and compares it with sums in f64; an error says what is off.
pub fn check(driver: &Driver, cublaslt: &CublasLt, case: &Case) -> Result<()> {
    let Case { m, n, k, .. } = *case;
    let mut random = Random::new((m * 31 + n * 17 + k) as u64);
    let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| bf16::from_f64(random.normal()).to_f32()).collect() };
    // As the product reads them: [M, K], [K, N], [N], [M, N].
    let (a, b, bias, before) = (normal(m * k), normal(k * n), normal(n), normal(m * n));

    let stored = |name, values: &[f32], rows: usize, columns: usize, transposed: bool| {
        let (shape, values) = match transposed {
            false => ([rows, columns], values.to_vec()),
            true => ([columns, rows], (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect()),
        };
        Buffer::new(driver, Behind::Canaries, name, DType::Bf16, &shape, &values)
    };
    let (a_buffer, b_buffer) = (stored("a", &a, m, k, case.a_transposed)?, stored("b", &b, k, n, case.b_transposed)?);
    let bias_buffer = Buffer::new(driver, Behind::Canaries, "bias", DType::Bf16, &[n], &bias)?;
    let mut c_buffer = match case.accumulate {
        true => Buffer::new(driver, Behind::Canaries, "c", case.output, &[m, n], &before)?,
        false => Buffer::poisoned(driver, Behind::Canaries, "c", case.output, &[m, n])?,
    };
    let op = Gemm {
        a: Operand { view: a_buffer.view(), transposed: case.a_transposed },
        b: Operand { view: b_buffer.view(), transposed: case.b_transposed },
        bias: case.bias.then(|| bias_buffer.view()),
        c: c_buffer.view_mut(),
        accumulate: case.accumulate,
        algorithm_rows: None,
    };
    cublaslt.gemm(driver, op)?;

    let rounded = |value: f32| if case.output == DType::Bf16 { bf16::from_f32(value).to_f32() } else { value };
    let (mut naive, mut oracle) = (Vec::new(), Vec::new());
    for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
        let terms = || (0..k).map(|l| (a[row * k + l], b[l * n + column]));
        let added = [(case.accumulate, before[row * n + column]), (case.bias, bias[column])];
        let added = || added.iter().filter(|(present, _)| *present).map(|(_, value)| *value);
        naive.push(rounded(terms().map(|(a, b)| a * b).sum::<f32>() + added().sum::<f32>()));
        oracle.push(terms().map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>() + added().map(f64::from).sum::<f64>());
    }
    within_budget(case.name, &c_buffer.read()?, &naive, &oracle, ATOL)
}
