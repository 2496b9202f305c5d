//! AdamW with narrow storage against AdamW in f32.

use crate::ops::{relative_error, values, zeros};
use limo_engine::ops::cpu::Cpu;
use limo_engine::ops::{AdamW, Master, Moment, Ops};
use limo_engine::tensor::{DType, Tensor};

/// Two trainings on the same gradients: after 2000 steps the paths of 8-bit and f32 moments have to agree far better than two seeds of a
/// training would. `spread` is the deviation of the logarithm of the gradients' sizes within a block.
fn path_of_moments(spread: f32, moments: DType) -> Vec<f32> {
    const STEPS: u64 = 2000;
    let n = 8 * 256;
    let (sizes, means) = (values(n, 1, 0.0, spread * 1.2), values(n, 2, 0.0, 0.3));
    let mut param = Tensor::from_f32(&vec![0.0; n], &[n]);
    let [mut m, mut v] = [Tensor::host(moments, &[n]), Tensor::host(moments, &[n])];
    let [mut m_scales, mut v_scales] = [zeros(&[n / 256]), zeros(&[n / 256])];
    for step in 1..=STEPS {
        let noise = values(n, 100 + step, 0.0, 1.2);
        let grad: Vec<f32> = (0..n).map(|i| 1e-4 * sizes[i].exp() * (means[i] + noise[i])).collect();
        let scaled = moments == DType::U8;
        Cpu.adamw(AdamW {
            param: param.view_mut(),
            master: Master::None,
            grad: Tensor::from_f32(&grad, &[n]).view(),
            m: Moment { values: m.view_mut(), scales: scaled.then(|| m_scales.view_mut()) },
            v: Moment { values: v.view_mut(), scales: scaled.then(|| v_scales.view_mut()) },
            step,
            lr: 1e-5,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_scale: 1.0,
            seed: 7,
            first: 0,
        })
        .unwrap();
    }
    param.view().f32().to_vec()
}

#[test]
fn narrow_moments_follow_the_path_of_f32() {
    for (spread, bf16_limit, int8_limit) in [(0.5, 0.02, 0.1), (1.5, 0.02, 0.1), (2.5, 0.02, 0.1)] {
        let exact = path_of_moments(spread, DType::F32);
        let [bf16, int8] = [DType::Bf16, DType::U8].map(|dtype| relative_error(&path_of_moments(spread, dtype), &exact));
        println!("spread {spread}: path of bf16 moments off by {bf16:.4}, of 8-bit moments by {int8:.4}");
        assert!(bf16 <= bf16_limit && int8 <= int8_limit, "spread {spread}: bf16 {bf16}, 8 bits {int8}");
    }
}

/// An update of 0.1 % of a unit in the last place must not be lost: in the mean it arrives.
#[test]
fn stochastic_rounding_keeps_updates_too_small_for_bf16() {
    let (n, steps) = (4096, 400);
    let mut param = Tensor::from_f32_as_bf16(&vec![1.0; n], &[n]);
    let [mut m, mut v] = [zeros(&[n]), zeros(&[n])];
    let grad = Tensor::from_f32(&vec![1.0; n], &[n]);
    for step in 1..=steps {
        Cpu.adamw(AdamW {
            param: param.view_mut(),
            master: Master::None,
            grad: grad.view(),
            m: Moment::plain(m.view_mut()),
            v: Moment::plain(v.view_mut()),
            step,
            lr: 4e-6, // an ulp below 1 is 2⁻⁸ = 3.9e-3
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_scale: 1.0,
            seed: 3,
            first: 0,
        })
        .unwrap();
    }
    let mean = param.view().bf16().iter().map(|p| p.to_f64()).sum::<f64>() / n as f64;
    let moved = (1.0 - mean) / (4e-6 * steps as f64);
    println!("arrived: {moved:.4} of the updates");
    assert!((moved - 1.0).abs() <= 0.1, "{moved}");
}

#[test]
fn a_master_comes_back_from_its_halves() {
    let uppers = [0x0000, 0x0001, 0x007f, 0x3f80, 0x3f81, 0x7f7f, 0x8000, 0x8001, 0xbf80, 0xff7f];
    for (upper, lower) in uppers.into_iter().flat_map(|upper| (0..=u16::MAX).map(move |lower| (upper, lower))) {
        let master = f32::from_bits(upper << 16 | u32::from(lower));
        let (param, remainder) = Master::split(master);
        assert_eq!(Master::join(param, remainder).to_bits(), master.to_bits());
        // bf16 rounds ties to even, this away from zero: both are half an ulp away.
        let nearest = half::bf16::from_f32(master);
        assert!(param == nearest || lower == 0x8000 && param.to_bits() == nearest.to_bits() + 1, "{master:e}");
    }
    for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
        let (param, remainder) = Master::split(infinite);
        assert_eq!((param.to_f32(), Master::join(param, remainder)), (infinite, infinite));
    }
    // GPUs make 0x7fffffff of what is no number: rounded, its upper half would be minus zero.
    for nan in [0x7fff_ffff, 0x7f80_0001, 0xffff_ffff, 0x7fc0_0000] {
        let (param, remainder) = Master::split(f32::from_bits(nan));
        assert!(param.is_nan() && Master::join(param, remainder).is_nan(), "{nan:x}");
    }
}
