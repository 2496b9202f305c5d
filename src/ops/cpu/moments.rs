//! Stochastic rounding to bf16 and to 8 bits: a value becomes one of its two neighbours, with the probabilities that keep its mean. The contracts
//! are in [`Moment`](crate::ops::Moment) and [`AdamW`](crate::ops::AdamW); `kernels/common/stochastic.cuh` and
//! `kernels/adamw/eight_bits.cuh` compute the same bits.

use half::bf16;

/// Adding 16 random bits below the upper half of an f32 and cutting there rounds up as often as the lower half is large. A value that
/// bf16 holds stays as it is. NaN becomes 0x7fc0.
pub fn round(values: &[f32], bits: &[u16], out: &mut [bf16]) {
    for ((out, &value), &random) in out.iter_mut().zip(values).zip(bits) {
        let rounded = if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() + u32::from(random) };
        *out = bf16::from_bits((rounded >> 16) as u16);
    }
}

/// The two moments of AdamW in 8 bits.
#[derive(Clone, Copy)]
pub enum Kind {
    /// m: a sign, 4 bits of exponent, 3 of mantissa.
    Mean,
    /// v, never below zero: 5 bits of exponent, 3 of mantissa. Above zero it never becomes zero, where the next update would divide by eps.
    Square,
}

/// Mantissa bits of an f32 that a code lacks.
const CUT: u32 = 20;

impl Kind {
    /// The largest code of a magnitude.
    fn largest(self) -> u32 {
        match self {
            Kind::Mean => 0x7f,
            Kind::Square => 0xff,
        }
    }

    /// An f32 whose upper bits are a code is this much too small: its exponent counts from −127.
    fn lift(self) -> f32 {
        match self {
            Kind::Mean => f32::from_bits((127 + 112) << 23),
            Kind::Square => f32::from_bits((127 + 96) << 23),
        }
    }

    pub fn decode(self, code: u8, scale: f32) -> f32 {
        let magnitude = u32::from(code) & self.largest();
        let sign = (u32::from(code) & !self.largest()) << 24;
        f32::from_bits(f32::to_bits(f32::from_bits(magnitude << CUT) * self.lift() * scale) | sign)
    }

    /// Fills a block's codes and returns its scale.
    pub fn encode(self, values: &[f32], bits: &[u16], codes: &mut [u8]) -> f32 {
        let scale = scale_of(values);
        let (inverse, lower) = (1.0 / scale, 1.0 / self.lift());
        for ((code, &value), &random) in codes.iter_mut().zip(values).zip(bits) {
            let small = value.abs() * inverse * lower;
            // 20 random bits of 16: their mean is the middle.
            let random = u32::from(random) << 4 | 8;
            let magnitude = (((small.to_bits() & 0x7fff_ffff) + random) >> CUT).min(self.largest());
            *code = match self {
                Kind::Mean => magnitude as u8 | if value < 0.0 { 0x80 } else { 0 },
                Kind::Square => (magnitude as u8).max(u8::from(value > 0.0)),
            };
        }
        scale
    }
}

/// The power of two that makes the block's largest magnitude 1 to 1.875 after rounding up, at least 2⁻¹²⁶; NaN for what has no such power.
fn scale_of(values: &[f32]) -> f32 {
    const SMALLEST: u32 = 1 << 23;
    const LIMIT: f32 = f32::from_bits((127 + 127) << 23);
    let largest =
        values.iter().fold(0.0f32, |largest, x| if x.abs() <= largest || largest.is_nan() { largest } else { x.abs() });
    // false for NaN too
    if largest < LIMIT {
        let exponent = (largest.to_bits() + (1 << CUT) - 1) & 0x7f80_0000;
        f32::from_bits(exponent.max(SMALLEST))
    } else {
        f32::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All values of a code at scale 1, rising.
    fn codes(kind: Kind) -> Vec<f32> {
        (0..=kind.largest() as u8).map(|code| kind.decode(code, 1.0)).collect()
    }

    #[test]
    fn codes_are_small_floats() {
        for (kind, top) in [(Kind::Mean, -14), (Kind::Square, -30)] {
            let codes = codes(kind);
            assert_eq!((codes[0], codes[codes.len() - 1]), (0.0, 1.875));
            assert_eq!(codes[1], 2f32.powi(top - 3));
            assert_eq!(codes[8], 2f32.powi(top));
            assert!(codes.windows(2).all(|w| w[0] < w[1]));
        }
        assert_eq!(Kind::Mean.decode(0xff, 4.0), -7.5);
    }

    #[test]
    fn every_code_comes_back_at_every_scale() {
        for kind in [Kind::Mean, Kind::Square] {
            for exponent in [-126, -1, 0, 17, 126] {
                let scale = 2f32.powi(exponent);
                let values: Vec<f32> = (0..=255u8).map(|code| kind.decode(code, scale)).collect();
                let mut codes = [0u8; 256];
                for random in [0, 0x7fff, u16::MAX] {
                    assert_eq!(kind.encode(&values, &[random; 256], &mut codes), scale);
                    for (value, &code) in values.iter().zip(&codes) {
                        assert_eq!(kind.decode(code, scale), *value, "exponent {exponent}");
                    }
                }
            }
        }
    }

    /// Every 16-bit draw once: the mean is the value, and only its two neighbours occur.
    #[test]
    fn rounding_keeps_the_mean_and_goes_to_a_neighbour() {
        for kind in [Kind::Mean, Kind::Square] {
            let codes = codes(kind);
            for value in [1.0f32, 1.0001, 1.06, 1.8749, 0.3, 1e-3, 2e-4, 1.3e-5] {
                let (mut total, mut seen) = (0.0f64, std::collections::BTreeSet::new());
                for random in 0..=u16::MAX {
                    let mut code = [0u8; 2];
                    let scale = kind.encode(&[1.5, value], &[0, random], &mut code);
                    seen.insert(code[1]);
                    total += f64::from(kind.decode(code[1], scale));
                }
                let above = codes.partition_point(|&c| c < value);
                let neighbours = if codes[above] == value { above..=above } else { above - 1..=above };
                assert!(seen.iter().all(|&code| neighbours.contains(&code.into())), "{value}");
                let spacing = f64::from(codes[above] - codes[above - 1]);
                assert!((total / 65536.0 - f64::from(value)).abs() <= spacing / 65536.0, "{value}: {}", total / 65536.0);
            }
        }
    }

    #[test]
    fn squares_never_vanish_and_what_is_not_finite_stays_visible() {
        let mut codes = [7u8; 3];
        assert_eq!(Kind::Square.encode(&[1.0, 1e-38, 0.0], &[0; 3], &mut codes), 1.0);
        assert_eq!(codes[1..], [1, 0]);
        assert_eq!(Kind::Square.encode(&[1e-41, 0.0, 0.0], &[0; 3], &mut codes), f32::MIN_POSITIVE);
        assert!(codes[0] > 0 && codes[1] == 0);
        for bad in [f32::NAN, f32::INFINITY, 2f32.powi(127)] {
            for kind in [Kind::Mean, Kind::Square] {
                assert!(kind.encode(&[1.0, bad, 0.0], &[0; 3], &mut codes).is_nan());
                assert!(codes.iter().all(|&code| kind.decode(code, f32::NAN).is_nan()));
            }
        }
    }

    #[test]
    fn bf16_rounding_keeps_the_mean_and_goes_to_a_neighbour() {
        for value in [1.0f32, 1.003, -2.75, 1e-20, -3e-39] {
            let mut total = 0.0f64;
            for random in 0..=u16::MAX {
                let mut out = [bf16::ZERO];
                round(&[value], &[random], &mut out);
                let cut = f32::from_bits(value.to_bits() & 0xffff_0000);
                let next = f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000);
                assert!(out[0].to_f32() == cut || out[0].to_f32() == next && value != cut);
                total += f64::from(out[0].to_f32());
            }
            assert!((total / 65536.0 / f64::from(value) - 1.0).abs() < 1e-7, "{value}");
        }
        let mut out = [bf16::ZERO; 3];
        round(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &[u16::MAX; 3], &mut out);
        assert_eq!(out.map(bf16::to_bits), [0x7fc0, 0x7f80, 0xff80]);
    }
}
