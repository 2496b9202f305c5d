//! Random initial weights from a counter-based generator: element i of a tensor depends on (seed, name, i) alone.

use rayon::prelude::*;

/// SplitMix64's output function (Steele, Lea & Flood 2014): a bijection of 64-bit integers with good avalanche.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Normal deviates of deviation `std` by the Box–Muller transform: those of elements `first`, `first` + 1 and so on.
pub fn normal(seed: u64, name: &str, std: f32, first: usize, out: &mut [f32]) {
    let hash = blake3::hash(name.as_bytes());
    let stream = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default());
    let key = mix(seed.wrapping_add(GOLDEN_GAMMA)) ^ stream;
    let uniform = |counter: u64| {
        let bits = mix(key.wrapping_add(counter.wrapping_mul(GOLDEN_GAMMA))) >> 11;
        // (0, 1]: the logarithm below needs a positive argument.
        (bits + 1) as f64 / (1u64 << 53) as f64
    };
    let deviates = |pair: u64| {
        let radius = (-2.0 * uniform(2 * pair).ln()).sqrt() * std as f64;
        let angle = std::f64::consts::TAU * uniform(2 * pair + 1);
        [radius * angle.cos(), radius * angle.sin()]
    };
    // An odd first element is the second of its pair.
    let (odd, pairs) = out.split_at_mut((first % 2).min(out.len()));
    odd.iter_mut().for_each(|out| *out = deviates(first as u64 / 2)[1] as f32);
    let chunks = pairs.par_chunks_mut(2).enumerate().with_min_len(1 << 12);
    chunks.for_each(|(pair, chunk)| {
        let deviates = deviates((first as u64).div_ceil(2) + pair as u64);
        chunk.iter_mut().zip(deviates).for_each(|(out, z)| *out = z as f32);
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn moments_and_streams() {
        let draw = |seed, name| {
            let mut x = vec![0.0f32; 100_001];
            super::normal(seed, name, 0.5, 0, &mut x);
            x
        };
        let x = draw(1, "a");
        let mean = x.iter().map(|&x| x as f64).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let kurtosis = x.iter().map(|&x| (x as f64 - mean).powi(4)).sum::<f64>() / x.len() as f64 / variance.powi(2);
        assert!(
            mean.abs() < 0.01 && (variance - 0.25).abs() < 0.005 && (kurtosis - 3.0).abs() < 0.1,
            "{mean} {variance} {kurtosis}"
        );
        assert_eq!(x, draw(1, "a"));
        for (first, count) in [(0, 7), (1, 1), (1, 6), (2, 5), (77, 4)] {
            let mut part = vec![0.0f32; count];
            super::normal(1, "a", 0.5, first, &mut part);
            assert_eq!(part, x[first..first + count]);
        }
        for other in [draw(2, "a"), draw(1, "b")] {
            let correlation = x.iter().zip(&other).map(|(&a, &b)| (a * b) as f64).sum::<f64>() / x.len() as f64 / variance;
            assert!(correlation.abs() < 0.02, "streams are correlated: {correlation}");
        }
    }
}
