//! Matrix products through the gemm crate.

use super::math::vectorised;
use crate::error::Result;
use crate::ops::{BiasBackward, Gemm, GemmDesc};
use gemm::Parallelism;
use rayon::prelude::*;

pub fn gemm(op: Gemm) -> Result<()> {
    op.check()?;
    let GemmDesc { m, n, k, accumulate, .. } = op.desc();
    let c = op.c.f32();
    if let Some(bias) = op.bias {
        let bias = bias.f32();
        for row in c.chunks_exact_mut(n) {
            if accumulate {
                row.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
            } else {
                row.copy_from_slice(bias);
            }
        }
    }
    let strides = |transposed: bool, rows: usize, columns: usize| if transposed { (1, rows) } else { (columns, 1) };
    let a = Matrix::new(op.a.view.f32(), strides(op.a.transposed, m, k));
    let b = Matrix::new(op.b.view.f32(), strides(op.b.transposed, k, n));
    let c = MatrixMut { pointer: c.as_mut_ptr(), strides: (n, 1) };
    let mut beta = if accumulate || op.bias.is_some() { 1.0 } else { 0.0 };
    let piece = if n <= SMALL { SMALL_DEPTH } else { k.max(1) };
    for begin in (0..k).step_by(piece) {
        let from = |x: Matrix, stride: usize| Matrix { pointer: x.pointer.wrapping_add(begin * stride), ..x };
        let (a, b) = (from(a, a.strides.1), from(b, b.strides.0));
        // SAFETY: `check` compared the extents with the views, which are dense; c is borrowed exclusively.
        unsafe { product((m, n, piece.min(k - begin)), a, b, 1.0, c, beta, Parallelism::Rayon(0)) };
        beta = 1.0;
    }
    Ok(())
}

/// The crate cuts the sums of products with at most this many rows and columns every [`SMALL_DEPTH`] terms, those of others elsewhere. Narrow products are
/// cut there always, so that a row's bits do not depend on the number of rows.
const SMALL: usize = 64;
const SMALL_DEPTH: usize = 512;

/// From this many rows on, a row of a product with at least `columns` columns has the same bits whatever rows are beside it: the crate computes up to 256 results by
/// kernels of another order, and a single row by yet others.
pub fn steady_rows(columns: usize) -> usize {
    (256 / columns.max(1) + 1).max(2)
}

/// Elements at `pointer[row · strides.0 + column · strides.1]`.
#[derive(Clone, Copy)]
pub struct Matrix {
    pub pointer: *const f32,
    pub strides: (usize, usize),
}

impl Matrix {
    pub fn new(data: &[f32], strides: (usize, usize)) -> Self {
        Matrix { pointer: data.as_ptr(), strides }
    }
    pub fn transposed(self) -> Self {
        Matrix { strides: (self.strides.1, self.strides.0), ..self }
    }
}

#[derive(Clone, Copy)]
pub struct MatrixMut {
    pub pointer: *mut f32,
    pub strides: (usize, usize),
}

/// c[m, n] = alpha · a[m, k] · b[k, n] + beta · c, where c is not read if beta = 0.
///
/// # Safety
/// Every element that the extents and strides name must be valid, and c's touched by nobody else.
pub unsafe fn product(
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    alpha: f32,
    c: MatrixMut,
    beta: f32,
    parallelism: Parallelism,
) {
    let (cs, rs) = (c.strides.1 as isize, c.strides.0 as isize);
    // SAFETY: the caller's promise. (This crate's alpha scales the destination, its beta the product.)
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.pointer,
            cs,
            rs,
            beta != 0.0,
            a.pointer,
            a.strides.1 as isize,
            a.strides.0 as isize,
            b.pointer,
            b.strides.1 as isize,
            b.strides.0 as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        )
    }
}

pub fn bias_backward(op: BiasBackward) -> Result<()> {
    op.check()?;
    let n = op.dbias.elements();
    let dy = op.dy.f32();
    const COLUMNS: usize = 64;
    op.dbias.f32().par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, dbias)| {
        vectorised(|| {
            let mut sums = [0.0f32; COLUMNS];
            for row in dy.chunks_exact(n) {
                let row = &row[chunk * COLUMNS..][..dbias.len()];
                sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
            }
            dbias.iter_mut().zip(&sums).for_each(|(out, sum)| *out += sum);
        })
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::steady_rows;
    use crate::ops::cpu::Cpu;
    use crate::ops::{Gemm, Ops};
    use crate::tensor::{DType, Tensor};

    /// What sampling relies on.
    #[test]
    fn a_row_has_the_same_bits_whatever_is_beside_it() {
        const MOST: usize = 515;
        let numbers = |count: usize, factor: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * factor + 17) % 1009) as f32 / 511.3 - 0.93).collect()
        };
        for (k, n) in [
            (64, 64),
            (700, 64),
            (3000, 24),
            (64, 192),
            (48, 120),
            (896, 1152),
            (4864, 896),
            (896, 4864),
            (100, 2001),
            (2048, 300),
        ] {
            let (x, w, bias) = (numbers(MOST * k, 7919), numbers(n * k, 104_729), numbers(n, 31));
            let [w, bias] = [Tensor::from_f32(&w, &[n, k]), Tensor::from_f32(&bias, &[n])];
            let product = |rows: usize| {
                let mut y = Tensor::host(DType::F32, &[rows, n]);
                let x = Tensor::from_f32(&x[(MOST - rows) * k..], &[rows, k]);
                Cpu.gemm(Gemm::linear(x.view(), w.view(), Some(bias.view()), y.view_mut())).unwrap();
                y.view().f32().to_vec()
            };
            let whole = product(MOST);
            let fewest = steady_rows(n);
            for rows in [fewest, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 33, 48, 64, 65, 100, 128, 129, 200, 256, 300, 512]
                .into_iter()
                .filter(|&rows| rows >= fewest)
            {
                let part = product(rows);
                let same = part.iter().zip(&whole[(MOST - rows) * n..]).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
                assert_eq!(same, rows * n, "{rows} rows of [{k}, {n}]");
            }
        }
    }
}
