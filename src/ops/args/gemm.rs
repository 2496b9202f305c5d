//! Matrix products. Every product of the engine goes through one descriptor.

use super::{Cost, expect, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// One factor of a product, read as stored or transposed.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub view: View<'a>,
    pub transposed: bool,
}

impl<'a> Operand<'a> {
    pub fn plain(view: View<'a>) -> Self {
        Operand { view, transposed: false }
    }
    pub fn transposed(view: View<'a>) -> Self {
        Operand { view, transposed: true }
    }
    /// (rows, columns) as the product reads it.
    fn extent(&self) -> (usize, usize) {
        let (rows, columns) = (self.view.shape()[0], self.view.shape().row_elements());
        if self.transposed { (columns, rows) } else { (rows, columns) }
    }
}

/// c[M, N] (+)= a[M, K] · b[K, N] (+ bias[N]), accumulated in f32.
pub struct Gemm<'a> {
    /// [M, K], or [K, M] read transposed.
    pub a: Operand<'a>,
    /// [K, N], or [N, K] read transposed.
    pub b: Operand<'a>,
    /// [N], added to every row.
    pub bias: Option<View<'a>>,
    /// [M, N]
    pub c: ViewMut<'a>,
    /// Adds to c instead of overwriting it.
    pub accumulate: bool,
    /// Rows that a library's algorithm is chosen for, if not this product's own M. Products that are alike but for M then run the same algorithm, and a row has
    /// the same bits in all of them.
    pub algorithm_rows: Option<usize>,
}

/// The extents and storage of one product, all a library needs to choose an algorithm. Leading dimensions are in elements of
/// row-major storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GemmDesc {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a_transposed: bool,
    pub b_transposed: bool,
    pub bias: bool,
    pub accumulate: bool,
    pub input: DType,
    pub output: DType,
    pub algorithm_rows: Option<usize>,
}

impl<'a> Gemm<'a> {
    /// The forward product of a linear layer: y[T, out] = x[T, in] · weight[out, in]ᵀ (+ bias[out]).
    pub fn linear(x: View<'a>, weight: View<'a>, bias: Option<View<'a>>, y: ViewMut<'a>) -> Self {
        Gemm { a: Operand::plain(x), b: Operand::transposed(weight), bias, c: y, accumulate: false, algorithm_rows: None }
    }
    /// Its input gradient: dx[T, in] = dy[T, out] · weight[out, in].
    pub fn linear_input_gradient(dy: View<'a>, weight: View<'a>, dx: ViewMut<'a>) -> Self {
        Gemm { a: Operand::plain(dy), b: Operand::plain(weight), bias: None, c: dx, accumulate: false, algorithm_rows: None }
    }
    /// Its weight gradient: dweight[out, in] += dy[T, out]ᵀ · x[T, in].
    pub fn linear_weight_gradient(dy: View<'a>, x: View<'a>, dweight: ViewMut<'a>) -> Self {
        Gemm {
            a: Operand::transposed(dy),
            b: Operand::plain(x),
            bias: None,
            c: dweight,
            accumulate: true,
            algorithm_rows: None,
        }
    }
    pub fn chosen_for(self, algorithm_rows: Option<usize>) -> Self {
        Gemm { algorithm_rows, ..self }
    }

    pub fn desc(&self) -> GemmDesc {
        let ((m, k), (_, n)) = (self.a.extent(), self.b.extent());
        GemmDesc {
            m,
            n,
            k,
            a_transposed: self.a.transposed,
            b_transposed: self.b.transposed,
            bias: self.bias.is_some(),
            accumulate: self.accumulate,
            input: self.a.view.dtype(),
            output: self.c.dtype(),
            algorithm_rows: self.algorithm_rows,
        }
    }

    pub fn check(&self) -> Result<()> {
        const OP: &str = "gemm";
        let GemmDesc { m, n, k, input, .. } = self.desc();
        expect(OP, self.b.extent().0 == k, || {
            format!("a is [{m}, {k}] and b is {:?}: the inner extents differ", self.b.extent())
        })?;
        expect_shape(OP, "c", self.c.shape(), &[m, n])?;
        expect_dtype(OP, "b", self.b.view.dtype(), input)?;
        if let Some(bias) = &self.bias {
            expect_shape(OP, "bias", bias.shape(), &[n])?;
            expect_dtype(OP, "bias", bias.dtype(), input)?;
        }
        Ok(())
    }

    pub fn cost(&self) -> Cost {
        let GemmDesc { m, n, k, accumulate, .. } = self.desc();
        let inputs = self.a.view.bytes() + self.b.view.bytes();
        let outputs = self.c.bytes() * if accumulate { 2 } else { 1 };
        Cost { flops: 2.0 * m as f64 * n as f64 * k as f64, bytes: (inputs + outputs) as f64 }
    }
}

/// dbias[N] += Σ_T dy[T, N] in f32.
///
/// Deterministic: a backend adds the rows in one fixed order. Kernels deal them to [`BiasBackward::PARTIALS`] partial sums, whatever the
/// device, which are added in order; the CPU backend adds all rows in order and leaves `partials` alone.
pub struct BiasBackward<'a> {
    /// [T, N]
    pub dy: View<'a>,
    /// [N] f32, added to.
    pub dbias: ViewMut<'a>,
    /// [PARTIALS, N] f32 scratch, overwritten.
    pub partials: ViewMut<'a>,
}

impl BiasBackward<'_> {
    /// The number of partial sums: a constant, so that no result depends on the number of processors.
    pub const PARTIALS: usize = 64;

    pub fn check(&self) -> Result<()> {
        const OP: &str = "bias_backward";
        let n = self.dy.shape().row_elements();
        expect_shape(OP, "dbias", self.dbias.shape(), &[n])?;
        expect_shape(OP, "partials", self.partials.shape(), &[Self::PARTIALS, n])?;
        expect_dtype(OP, "dbias", self.dbias.dtype(), DType::F32)?;
        expect_dtype(OP, "partials", self.partials.dtype(), DType::F32)
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: self.dy.elements() as f64, bytes: (self.dy.bytes() + 2 * self.dbias.bytes()) as f64 }
    }
}
