//! Vector loops. Each public function dispatches once to the widest instruction set of the machine and is written so that the
//! compiler vectorises it: reductions keep `LANES` independent sums, which are added in a fixed order, so results do
//! not depend on the number of threads.

use std::marker::PhantomData;
use std::sync::LazyLock;

const LANES: usize = 16;

static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `body`, compiled for this machine's widest vectors.
#[inline(always)]
pub fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    ARCH.dispatch(body)
}

/// Σ f(i) over 0..n, in a fixed order.
#[inline(always)]
pub fn sum_of(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let full = n / LANES * LANES;
    for base in (0..full).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(base + lane);
        }
    }
    let mut total = lanes.iter().sum::<f32>();
    for i in full..n {
        total += f(i);
    }
    total
}

/// The largest of `x`; NaN if any element is NaN.
#[inline(always)]
pub fn max_of(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (m, &v) in lanes.iter_mut().zip(chunk) {
            *m = larger(*m, v);
        }
    }
    let tail = chunks.remainder().iter().copied();
    lanes.into_iter().chain(tail).fold(f32::NEG_INFINITY, larger)
}

/// The larger of two; NaN if either is, which f32::max would drop.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if b <= a || a.is_nan() { a } else { b }
}

/// eˣ within 2 ulp for results in the normal range; 0 below x = −87.3, ∞ above 88.7, NaN for NaN.
///
/// Cody–Waite reduction to |r| ≤ ln 2 / 2 and a degree-6 polynomial (Cephes' expf), without branches, so that loops over it vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the high part has few bits, so that n · LN2_HI is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ rounds to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-104.0, 104.0);
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HI - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * r * r + r + 1.0;
    // 2ⁿ as two factors, each in the exponent's range.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) << 23) as u32);
    let result = p * power(half) * power(n.wrapping_sub(half));
    // Below the normal range the polynomial would return denormals of little precision.
    let result = if x < -87.336_54 { 0.0 } else { result };
    let result = if x > 88.722_83 { f32::INFINITY } else { result };
    if x.is_nan() { x } else { result }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// A mutable slice that parallel tasks share, each writing its own part.
pub struct Shared<'a, T> {
    pointer: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `pointer` and `slice`, whose callers promise disjointness.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Shared { pointer: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The address of element `at`.
    pub fn pointer(&self, at: usize) -> *mut T {
        assert!(at < self.len);
        // SAFETY: within the slice.
        unsafe { self.pointer.add(at) }
    }

    /// # Safety
    /// No other task may touch `at..at + len` while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: within the slice; the caller promises that nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = (x as f64).exp();
            let ulp = (f32::from_bits((exact as f32).to_bits() + 1) - exact as f32) as f64;
            let error = ((exp(x) as f64 - exact) / ulp).abs();
            assert!(error <= 2.0, "exp({x}) is off by {error} ulp");
            worst = worst.max(error);
        }
        assert!(worst > 0.1, "the comparison compares nothing");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_keep_nan_and_tails() {
        let x: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum_of(37, |i| x[i]), 666.0);
        assert_eq!(max_of(&x), 36.0);
        for at in [0, 15, 16, 33, 36] {
            let mut x = x.clone();
            x[at] = f32::NAN;
            assert!(max_of(&x).is_nan(), "NaN at {at} was lost");
        }
    }
}
