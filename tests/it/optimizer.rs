//! AdamW with narrow storage against AdamW in f32, and gradients in bf16 against their exact sums.

use crate::command::limo_engine;
use crate::engine::{Run, emulated, error, require_budget, train};
use crate::ops::{relative_error, values, zeros};
use half::bf16;
use limo_engine::config::{Config, MasterWeights, ModelConfig};
use limo_engine::model::Keep;
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::{Accumulate, AdamW, Master, Moment, Ops};
use limo_engine::tensor::{DType, Tensor};
use limo_engine::train::{Apply, Engine, Sizes};
use limo_engine::zero::Policy;
use std::ops::Range;
use std::path::Path;

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

/// `out` after one sum with `x`, in bf16.
fn accumulated(x: &[f32], x_dtype: DType, out: &[f32], seed: u64, draw: u64, first: u64) -> Vec<bf16> {
    let shape = [x.len()];
    let x = if x_dtype == DType::F32 { Tensor::from_f32(x, &shape) } else { Tensor::from_f32_as_bf16(x, &shape) };
    let mut out = Tensor::from_f32_as_bf16(out, &shape);
    Cpu.accumulate(Accumulate { x: x.view(), out: out.view_mut(), seed, draw, first }).unwrap();
    out.view().bf16().to_vec()
}

/// A sum of bf16 becomes the neighbour towards zero or the one away from it, and the second as often as makes the mean the sum.
#[test]
fn sums_in_bf16_go_to_a_neighbour_and_keep_the_mean() {
    const DRAWS: u64 = 4096;
    let n = 301;
    let (x, out) = (values(n, 1, 0.01, 0.1), values(n, 2, -0.2, 1.0));
    let sum = |i: usize| bf16::from_f32(x[i]).to_f64() + bf16::from_f32(out[i]).to_f64();
    let sums: Vec<f32> = (0..n).map(|i| sum(i) as f32).collect();
    assert!((0..n).all(|i| f64::from(sums[i]) == sum(i)), "sums that f32 holds");
    for dtype in [DType::F32, DType::Bf16] {
        let mut away = vec![0; n];
        for draw in 0..DRAWS {
            for (i, found) in accumulated(&x, dtype, &out, 5, draw, 0).into_iter().enumerate() {
                let cut = (sums[i].to_bits() >> 16) as u16;
                let up = found.to_bits().wrapping_sub(cut);
                assert!(up == 0 || up == 1 && bf16::from_bits(cut).to_f32() != sums[i], "{found} of {:e}", sums[i]);
                away[i] += up;
            }
        }
        // How often each should go away from zero, and by how many deviations it, and all together, differ.
        let (mut difference, mut variance) = (0.0, 0.0);
        for i in 0..n {
            let share = f64::from(sums[i].to_bits() & 0xffff) / 65536.0;
            let (off, of_one) = (f64::from(away[i]) - share * DRAWS as f64, share * (1.0 - share) * DRAWS as f64);
            assert!(off.abs() <= 5.0 * of_one.sqrt(), "{:e} goes away from zero {} times", sums[i], away[i]);
            (difference, variance) = (difference + off, variance + of_one);
        }
        println!("{dtype}: {:.2} deviations off", difference / f64::sqrt(variance));
        assert!(variance > 1e4 && difference.abs() <= 4.0 * variance.sqrt(), "{difference} of {variance}");
    }
}

#[test]
fn a_sum_in_bf16_depends_on_seed_draw_and_place_and_rounds_what_arrives_to_nearest() {
    let n = 40_000; // more than a task of the backend takes
    let (x, out) = (values(n, 1, 0.01, 0.1), values(n, 2, -0.2, 1.0));
    let sum = |seed, draw, first| accumulated(&x, DType::F32, &out, seed, draw, first);
    let whole = sum(1, 2, 64);
    let part = |range: std::ops::Range<usize>| {
        let first = 64 + range.start as u64;
        accumulated(&x[range.clone()], DType::F32, &out[range], 1, 2, first)
    };
    assert!([part(0..302), part(302..n)].concat() == whole, "cut in two");
    assert!(accumulated(&x, DType::Bf16, &out, 1, 2, 64) == whole, "x in bf16");
    for other in [sum(2, 2, 64), sum(1, 3, 64), sum(1, 2, 66)] {
        assert!(other != whole);
    }
}

#[test]
fn a_master_comes_back_from_its_halves() {
    let uppers = [0x0000, 0x0001, 0x007f, 0x3f80, 0x3f81, 0x7f7f, 0x8000, 0x8001, 0xbf80, 0xff7f];
    for (upper, lower) in uppers.into_iter().flat_map(|upper| (0..=u16::MAX).map(move |lower| (upper, lower))) {
        let master = f32::from_bits(upper << 16 | u32::from(lower));
        let (param, remainder) = Master::split(master);
        assert_eq!(Master::join(param, remainder).to_bits(), master.to_bits());
        // bf16 rounds ties to even, this away from zero: both are half an ulp away.
        let nearest = bf16::from_f32(master);
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

const BF16: [&str; 4] = ["--device", "cpu", "--dtype", "bf16"];

fn with(mode: &[&'static str]) -> Vec<&'static str> {
    BF16.into_iter().chain(mode.iter().flat_map(|&setting| ["-s", setting])).collect()
}

/// Bytes of a group of the ledger, as the run prints them.
fn ledger(run: &Run, group: &str) -> f64 {
    let line = run.output.lines().find(|line| line.trim_start().starts_with(group)).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = match words[2] {
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        other => panic!("{other}: {line}"),
    };
    words[1].parse::<f64>().unwrap() * unit
}

/// Ten steps in each mode against those with f32 moments and exact masters: the distance of the weights, as a share of the way that they went.
#[test]
fn narrow_states_and_stochastic_masters_train_alike() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, mode: &[&'static str]| train(folder.path(), name, &with(mode));
    let plain = run("plain", &[]);
    let start = run("start", &["train.max_steps=1", "optimizer.lr=0", "optimizer.weight_decay=0"]);
    let way = error(&start.weights, &plain.weights);
    for (name, mode, limit, saved) in [
        ("bf16", &["optimizer.state=bf16"][..], 0.03, 4.0),
        ("int8", &["optimizer.state=int8"], 0.1, 5.8),
        ("stochastic", &["optimizer.master=stochastic"], 0.2, 2.0),
        ("both", &["optimizer.state=int8", "optimizer.master=stochastic"], 0.3, 7.0),
    ] {
        let narrow = run(name, mode);
        let off = error(&narrow.weights, &plain.weights) / way;
        let parameters = plain.weights.len() as f64;
        let less = (ledger(&plain, "optimizer") - ledger(&narrow, "optimizer")) / parameters;
        println!(
            "{name}: off by {off:.3} of the way, {less:.2} bytes a parameter less, last losses {} and {}",
            narrow.losses[9], plain.losses[9]
        );
        assert!(off > 1e-4 && off <= limit, "{name}: {off}");
        assert!(less >= 0.9 * saved, "{name}: {less}");
        assert!((narrow.losses[9] / plain.losses[9] - 1.0).abs() < 0.02, "{name}");
        assert!(run("again", &[mode, &["output.dtype=float32"]].concat()).weights == narrow.weights, "{name}: a second run");
        std::fs::remove_dir_all(folder.path().join("again")).unwrap();
    }
}

#[test]
fn narrow_modes_in_the_emulator_follow_the_cpu() {
    if !emulated() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mode = ["optimizer.state=int8", "optimizer.master=stochastic", "train.max_steps=5"];
    let flags: Vec<&str> = mode.iter().flat_map(|setting| ["-s", setting]).collect();
    let exact = train(folder.path(), "f32", &["--device", "cpu", "-s", "train.max_steps=5"]);
    let cpu = train(folder.path(), "cpu", &with(&mode));
    let kernels = train(folder.path(), "emulator", &[&["--device", "emulator"][..], &flags].concat());
    require_budget("losses", &kernels.losses, &cpu.losses, &exact.losses);
    require_budget("weights", &kernels.weights, &cpu.weights, &exact.weights);
}

/// Weights of 1 that decay by a tenth of the distance to the next bf16: which of them round down is drawn.
#[test]
fn every_element_draws_for_itself_and_by_the_seed() {
    let config = ModelConfig::from_file(Path::new("configs/tiny/config.json")).unwrap();
    let decayed = |seed: u64| {
        let policy = Policy { master: MasterWeights::Stochastic, ..Policy::plain() };
        let sizes = Sizes { policy, ..Sizes::new(8, 8, Keep::Stream) };
        let mut engine = Engine::solo(Box::new(CpuBf16), &config, &sizes).unwrap();
        let mut ones = |_: &str, _: &[usize], _: Range<usize>, out: &mut [f32]| {
            out.fill(1.0);
            Ok(())
        };
        engine.state.weights.load(&CpuBf16, &mut ones).unwrap();
        let text = "model.path='m'\ndata.train=['d']\noutput.dir='o'\noptimizer.weight_decay=1.0";
        let settings = Config::parse("", text, &[]).unwrap().optimizer;
        engine.update(0.0, Apply { settings: &settings, lr: 0.1 / 256.0, seed }).unwrap();
        ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"].map(
            |name| {
                let mut values = vec![0.0; config.intermediate_size * config.hidden_size];
                engine.state.weights.read(&CpuBf16, name, 0..config.intermediate_size, &mut values).unwrap();
                values
            },
        )
    };
    let [a, b, c] = decayed(1);
    let down = a.iter().filter(|&&w| w < 1.0).count() as f64 / a.len() as f64;
    assert!((down - 0.1).abs() < 0.01, "{down} round down");
    assert!(a != b && b != c && a != c, "layers and matrices draw alike");
    assert!(decayed(1)[0] == a && decayed(2)[0] != a);
}

#[test]
fn f32_weights_are_not_rounded_stochastically() {
    let refused = ["train", "configs/tiny.toml", "--device", "cpu", "-s", "optimizer.master=stochastic"];
    let (code, _, error) = limo_engine(&refused);
    assert!(code == 2 && error.contains("optimizer.master") && error.contains("--dtype bf16"), "{code}: {error}");
}
