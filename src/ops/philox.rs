//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random numbers without a state. A draw is a function of a
//! counter and a key, so any thread of any device computes the draw of any element. `kernels/common/philox.cuh` is its twin.

/// 128 random bits.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let first = u64::from(c0) * 0xd251_1f53;
        let second = u64::from(c2) * 0xcd9e_8d57;
        (c0, c1, c2, c3) = ((second >> 32) as u32 ^ c1 ^ k0, second as u32, (first >> 32) as u32 ^ c3 ^ k1, first as u32);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3]
}

/// The 64 random bits of element `index` and those of the next, at `step`: an optimizer step, or which sum it is; `index` is even.
#[inline(always)]
pub fn pair_bits(seed: u64, step: u64, index: u64) -> [u64; 2] {
    let pair = index / 2;
    let low_high = |x: u64| [x as u32, (x >> 32) as u32];
    let ([p0, p1], [s0, s1]) = (low_high(pair), low_high(step));
    let [a, b, c, d] = philox4x32([p0, p1, s0, s1], low_high(seed));
    [u64::from(b) << 32 | u64::from(a), u64::from(d) << 32 | u64::from(c)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that the authors publish with Random123 (kat_vectors, "philox4x32 10").
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn every_part_of_the_name_of_an_element_counts() {
        let base = pair_bits(1, 2, 4);
        for other in [(2, 2, 4), (1 << 40, 2, 4), (1, 3, 4), (1, 2 | 1 << 40, 4), (1, 2, 6), (1, 2, 4 | 1 << 40)] {
            assert_ne!(pair_bits(other.0, other.1, other.2), base);
        }
        assert_ne!(base[0], base[1]);
    }
}
