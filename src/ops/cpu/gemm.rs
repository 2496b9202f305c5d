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
    let beta = if accumulate || op.bias.is_some() { 1.0 } else { 0.0 };
    // SAFETY: `check` compared the extents with the views, which are dense; c is borrowed exclusively.
    unsafe { product((m, n, k), a, b, 1.0, c, beta, Parallelism::Rayon(0)) };
    Ok(())
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
