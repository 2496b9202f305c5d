//! Gradient norm and AdamW.

use super::math::{sum_of, vectorised};
use super::moments::{self, Kind};
use crate::error::Result;
use crate::ops::philox::pair_bits;
use crate::ops::{Accumulate, AdamW, AdamWFactors, Master, Moment, SQUARE_SUMS_CHUNK, SquareSums};
use crate::tensor::{DType, View, ViewMut};
use half::bf16;
use rayon::prelude::*;

pub fn accumulate(op: Accumulate) -> Result<()> {
    op.check()?;
    let Accumulate { x, out, seed, draw, first } = op;
    if out.dtype() == DType::F32 {
        let chunks = out.f32().par_chunks_mut(CHUNK).zip(x.f32().par_chunks(CHUNK));
        chunks.for_each(|(out, x)| out.iter_mut().zip(x).for_each(|(out, x)| *out += x));
        return Ok(());
    }
    let chunks = out.bf16().par_chunks_mut(CHUNK).zip(grad_chunks(x)).enumerate();
    chunks.for_each(|(chunk, (out, x))| {
        let mut sums = [0.0f32; BLOCK];
        let mut bits = [0u16; BLOCK];
        for begin in (0..out.len()).step_by(BLOCK) {
            let range = begin..out.len().min(begin + BLOCK);
            let n = range.len();
            for i in (0..n).step_by(2) {
                let pair = pair_bits(seed, draw, first + (chunk * CHUNK + begin + i) as u64);
                (bits[i], bits[i + 1]) = (pair[0] as u16, pair[1] as u16);
            }
            x.load(range.clone(), &mut sums[..n]);
            let out = &mut out[range];
            sums.iter_mut().zip(&*out).for_each(|(sum, out)| *sum = bf16::from_f32(*sum).to_f32() + out.to_f32());
            moments::round(&sums[..n], &bits, out);
        }
    });
    Ok(())
}

pub fn square_sums(op: SquareSums) -> Result<()> {
    op.check()?;
    let chunks = op.x.f32().par_chunks(SQUARE_SUMS_CHUNK);
    op.sums.f32().par_iter_mut().zip(chunks).for_each(|(sum, x)| {
        *sum = vectorised(|| sum_of(x.len(), |i| x[i] * x[i]));
    });
    Ok(())
}

/// Elements of a task.
const CHUNK: usize = 64 * BLOCK;
/// Elements that are brought to f32 at a time where storage is narrower.
const BLOCK: usize = Moment::BLOCK;

pub fn adamw(op: AdamW) -> Result<()> {
    op.check()?;
    let update = Update { factors: op.factors(), grad_scale: op.grad_scale, seed: op.seed, step: op.step };
    let params = param_chunks(op.param, op.master);
    let moments = moment_chunks(op.m).into_par_iter().zip(moment_chunks(op.v));
    let chunks = params.into_par_iter().zip(grad_chunks(op.grad)).zip(moments).enumerate();
    chunks.for_each(|(chunk, ((mut param, grad), (mut m, mut v)))| match (&mut param, grad, &mut m, &mut v) {
        (Param::F32(param), Grad::F32(grad), Stored::F32(m), Stored::F32(v)) => update.run(param, grad, m, v),
        (param, grad, m, v) => update.run_narrow(op.first + (chunk * CHUNK) as u64, param, grad, m, v),
    });
    Ok(())
}

/// A task's part of the weights.
enum Param<'a> {
    F32(&'a mut [f32]),
    Exact(&'a mut [bf16], &'a mut [u16]),
    Stochastic(&'a mut [bf16]),
}

/// A task's part of the gradient.
enum Grad<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A task's part of a moment.
enum Stored<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    EightBits(&'a mut [u8], &'a mut [f32]),
}

fn param_chunks<'a>(param: ViewMut<'a>, master: Master<'a>) -> Vec<Param<'a>> {
    match (param.dtype(), master) {
        (DType::F32, _) => param.f32().chunks_mut(CHUNK).map(Param::F32).collect(),
        (_, Master::None) => param.bf16().chunks_mut(CHUNK).map(Param::Stochastic).collect(),
        (_, Master::Remainder(remainder)) => {
            let remainder: &mut [u16] = bytemuck::cast_slice_mut(remainder.raw_bytes());
            let chunks = param.bf16().chunks_mut(CHUNK).zip(remainder.chunks_mut(CHUNK));
            chunks.map(|(param, remainder)| Param::Exact(param, remainder)).collect()
        }
    }
}

fn grad_chunks(grad: View<'_>) -> Vec<Grad<'_>> {
    match grad.dtype() {
        DType::F32 => grad.f32().chunks(CHUNK).map(Grad::F32).collect(),
        _ => grad.bf16().chunks(CHUNK).map(Grad::Bf16).collect(),
    }
}

fn moment_chunks(moment: Moment<'_>) -> Vec<Stored<'_>> {
    match (moment.values.dtype(), moment.scales) {
        (DType::F32, _) => moment.values.f32().chunks_mut(CHUNK).map(Stored::F32).collect(),
        (_, None) => moment.values.bf16().chunks_mut(CHUNK).map(Stored::Bf16).collect(),
        (_, Some(scales)) => {
            let chunks = moment.values.raw_bytes().chunks_mut(CHUNK).zip(scales.f32().chunks_mut(CHUNK / BLOCK));
            chunks.map(|(values, scales)| Stored::EightBits(values, scales)).collect()
        }
    }
}

struct Update {
    factors: AdamWFactors,
    grad_scale: f32,
    seed: u64,
    step: u64,
}

impl Update {
    /// The update in f32.
    fn run(&self, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        let AdamWFactors { decay, step_size, v_root, beta2, rest1, rest2, eps } = self.factors;
        let scale = self.grad_scale;
        vectorised(|| {
            for i in 0..param.len() {
                let g = grad[i] * scale;
                // m + (1 − β₁)(g − m), as torch's lerp.
                m[i] += rest1 * (g - m[i]);
                v[i] = v[i] * beta2 + rest2 * g * g;
                let denominator = v[i].sqrt() / v_root + eps;
                param[i] = param[i] * decay - step_size * (m[i] / denominator);
            }
        })
    }

    /// The same around storage of fewer bits, a block at a time. `first` is the number of the chunk's first element.
    fn run_narrow(&self, first: u64, param: &mut Param, grad: Grad, m: &mut Stored, v: &mut Stored) {
        let [mut p32, mut g32, mut m32, mut v32] = [[0.0f32; BLOCK]; 4];
        let mut bits = [[0u16; BLOCK]; 3];
        let exact = matches!((&*param, &*m, &*v), (Param::F32(_) | Param::Exact(..), Stored::F32(_), Stored::F32(_)));
        for begin in (0..grad.len()).step_by(BLOCK) {
            let range = begin..grad.len().min(begin + BLOCK);
            let n = range.len();
            if !exact {
                self.draw(first + begin as u64, &mut bits);
            }
            param.load(range.clone(), &mut p32[..n]);
            grad.load(range.clone(), &mut g32[..n]);
            m.load(Kind::Mean, range.clone(), &mut m32[..n]);
            v.load(Kind::Square, range.clone(), &mut v32[..n]);
            self.run(&mut p32[..n], &g32[..n], &mut m32[..n], &mut v32[..n]);
            param.store(range.clone(), &p32[..n], &bits[0]);
            m.store(Kind::Mean, range.clone(), &m32[..n], &bits[1]);
            v.store(Kind::Square, range, &v32[..n], &bits[2]);
        }
    }

    /// What parameter, m and v of a block are rounded with; `first` is the number of its first element.
    fn draw(&self, first: u64, bits: &mut [[u16; BLOCK]; 3]) {
        vectorised(|| {
            for i in (0..BLOCK).step_by(2) {
                let pair = pair_bits(self.seed, self.step, first + i as u64);
                for (of_value, bits) in bits.iter_mut().enumerate() {
                    bits[i] = (pair[0] >> (16 * of_value)) as u16;
                    bits[i + 1] = (pair[1] >> (16 * of_value)) as u16;
                }
            }
        })
    }
}

type Range = std::ops::Range<usize>;

impl Param<'_> {
    fn load(&self, range: Range, out: &mut [f32]) {
        match self {
            Param::F32(param) => out.copy_from_slice(&param[range]),
            Param::Stochastic(param) => out.iter_mut().zip(&param[range]).for_each(|(out, p)| *out = p.to_f32()),
            Param::Exact(param, remainder) => {
                let stored = param[range.clone()].iter().zip(&remainder[range]);
                out.iter_mut().zip(stored).for_each(|(out, (&p, &r))| *out = Master::join(p, r));
            }
        }
    }

    fn store(&mut self, range: Range, values: &[f32], bits: &[u16]) {
        match self {
            Param::F32(param) => param[range].copy_from_slice(values),
            Param::Stochastic(param) => moments::round(values, bits, &mut param[range]),
            Param::Exact(param, remainder) => {
                let stored = param[range.clone()].iter_mut().zip(&mut remainder[range]);
                stored.zip(values).for_each(|((p, r), &value)| (*p, *r) = Master::split(value));
            }
        }
    }
}

impl Grad<'_> {
    fn len(&self) -> usize {
        match self {
            Grad::F32(grad) => grad.len(),
            Grad::Bf16(grad) => grad.len(),
        }
    }

    fn load(&self, range: Range, out: &mut [f32]) {
        match self {
            Grad::F32(grad) => out.copy_from_slice(&grad[range]),
            Grad::Bf16(grad) => out.iter_mut().zip(&grad[range]).for_each(|(out, g)| *out = g.to_f32()),
        }
    }
}

impl Stored<'_> {
    fn load(&self, kind: Kind, range: Range, out: &mut [f32]) {
        match self {
            Stored::F32(values) => out.copy_from_slice(&values[range]),
            Stored::Bf16(values) => out.iter_mut().zip(&values[range]).for_each(|(out, x)| *out = x.to_f32()),
            Stored::EightBits(codes, scales) => {
                let scale = scales[range.start / BLOCK];
                out.iter_mut().zip(&codes[range]).for_each(|(out, &code)| *out = kind.decode(code, scale));
            }
        }
    }

    fn store(&mut self, kind: Kind, range: Range, values: &[f32], bits: &[u16]) {
        match self {
            Stored::F32(stored) => stored[range].copy_from_slice(values),
            Stored::Bf16(stored) => moments::round(values, bits, &mut stored[range]),
            Stored::EightBits(codes, scales) => {
                let block = range.start / BLOCK;
                scales[block] = kind.encode(values, bits, &mut codes[range]);
            }
        }
    }
}
