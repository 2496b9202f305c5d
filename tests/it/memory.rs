//! Every way to save memory against the plain run: the same bits where it only moves data, within its tolerance where it stores less.

use crate::engine::emulated;
use limo_engine::config::{Config, GradientDtype, MasterWeights, ModelConfig, Normalize, Offload, StateDtype};
use limo_engine::data::{Example, MicroBatch, pack};
use limo_engine::device::emulator::Emulator;
use limo_engine::model::{Block, Keep, Role, WeightSource, random_reader};
use limo_engine::ops::Ops;
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::cuda::Cuda;
use limo_engine::train::{Apply, Engine, Sizes};
use limo_engine::zero::Policy;
use serde_json::Value;
use std::path::Path;

const OFFLOADS: [Offload; 7] = [
    Offload::Residuals,
    Offload::Activations,
    Offload::Gradients,
    Offload::Optimizer,
    Offload::Vocabulary,
    Offload::Remainder,
    Offload::Weights,
];

/// Five layers, whose blocks are staged in several pieces; heads of 64, as the kernels want them.
fn model(tied: bool) -> ModelConfig {
    let json = format!(
        r#"{{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 200, "max_position_embeddings": 512, "tie_word_embeddings": {tied}}}"#
    );
    let Value::Object(json) = serde_json::from_str(&json).unwrap() else { panic!() };
    ModelConfig::from_json(&json, Path::new("config.json")).unwrap()
}

/// The rows of a step; with `count` micro-batches of at most 40 tokens.
fn batches(step: usize, count: usize) -> Vec<MicroBatch> {
    let example = |row: usize| Example {
        id: row.to_string(),
        tokens: (0..20 + 3 * row).map(|t| ((t * t + 7 * (row + step) + 3 * t) % 190) as i32).collect(),
        supervised: (0..20 + 3 * row).map(|t| t >= 5).collect(),
    };
    let examples: Vec<Example> = (0..count).map(example).collect();
    let batches = pack(&examples.iter().collect::<Vec<_>>(), 40, true).unwrap();
    assert_eq!(batches.len(), count);
    batches
}

struct Mode {
    policy: Policy,
    keep: Keep,
    mlp_tiles: usize,
    clip: f64,
    tied: bool,
    micro_batches: usize,
}

impl Mode {
    fn plain() -> Mode {
        let policy = Policy { piece: 4096, ..Policy::plain() };
        Mode { policy, keep: Keep::All, mlp_tiles: 1, clip: 1.0, tied: false, micro_batches: 3 }
    }

    fn offloading(what: &[Offload]) -> Mode {
        Mode { policy: Policy { offload: what.to_vec(), ..Mode::plain().policy }, ..Mode::plain() }
    }
}

#[derive(Debug, PartialEq)]
struct Run {
    losses: Vec<f64>,
    norms: Vec<f64>,
    before: Vec<f32>,
    after: Vec<f32>,
}

fn run(ops: impl Ops + 'static, steps: usize, mode: &Mode) -> Run {
    let config = model(mode.tied);
    let sizes = Sizes { mlp_tiles: mode.mlp_tiles, policy: mode.policy.clone(), ..Sizes::new(40, 64, mode.keep) };
    let mut engine = Engine::solo(Box::new(ops), &config, &sizes).unwrap();
    engine.state.weights.load(engine.ops.as_ref(), &mut *random_reader(3, 0.1)).unwrap();
    let text =
        format!("model.path='m'\ndata.train=['d']\noutput.dir='o'\noptimizer.weight_decay=0.1\noptimizer.clip={:?}", mode.clip);
    let settings = Config::parse("", &text, &[]).unwrap().optimizer;
    let weights = |engine: &Engine| {
        let mut all = Vec::new();
        for (name, shape) in engine.state.model.layout.tensors() {
            let mut values = vec![0.0; shape.iter().product()];
            engine.state.weights.read(engine.ops.as_ref(), name, 0..shape[0], &mut values).unwrap();
            all.extend(values);
        }
        all
    };
    let before = weights(&engine);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let (batches, apply) = (batches(step, mode.micro_batches), Apply { settings: &settings, lr: 1e-3, seed: 9 });
        let (rows, stop) = (mode.micro_batches, &|| Ok(()));
        let (loss, norm) = if mode.policy.gradient_release {
            engine.apply_released(&batches, rows, Normalize::Tokens, apply, stop).unwrap()
        } else {
            let loss = engine.accumulate(&batches, rows, Normalize::Tokens, 9, stop).unwrap();
            let norm = engine.gradient_norm().unwrap();
            engine.update(norm, apply).unwrap();
            (loss, norm)
        };
        losses.push(loss.value);
        norms.push(norm);
        // An evaluation sees the new weights, and leaves nothing behind.
        losses.push(engine.evaluate(&batches[..1], rows, stop).unwrap().value);
    }
    Run { losses, norms, before, after: weights(&engine) }
}

const STEPS: usize = 20;

/// The distance of final weights, as a share of the way that training took them.
fn distance(a: &Run, b: &Run) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let apart = norm(&mut a.after.iter().zip(&b.after).map(|(a, b)| f64::from(a - b)));
    apart / norm(&mut b.after.iter().zip(&b.before).map(|(a, b)| f64::from(a - b)))
}

#[test]
fn what_only_moves_data_changes_no_bits() {
    for keep in [Keep::All, Keep::Attention, Keep::Stream] {
        for tied in [false, true] {
            let plain = run(CpuBf16, STEPS, &Mode { keep, tied, ..Mode::plain() });
            assert!(plain.losses.iter().all(|loss| loss.is_finite()) && plain.losses[2 * STEPS - 2] < plain.losses[0]);
            let everything = Mode { keep, tied, ..Mode::offloading(&OFFLOADS) };
            assert!(run(CpuBf16, STEPS, &everything) == plain, "{keep:?}, all offloaded, tied {tied}");
        }
    }
    let plain = run(CpuBf16, STEPS, &Mode::plain());
    for what in OFFLOADS {
        assert!(run(CpuBf16, STEPS, &Mode::offloading(&[what])) == plain, "{what:?}");
    }
    let whole = Policy { piece: 1 << 24, ..Mode::offloading(&OFFLOADS).policy };
    assert!(run(CpuBf16, STEPS, &Mode { policy: whole, ..Mode::plain() }) == plain, "one piece");
    let narrow = Policy {
        state: StateDtype::Int8,
        master: MasterWeights::Stochastic,
        gradients: GradientDtype::Bf16,
        ..Mode::plain().policy
    };
    let stays = run(CpuBf16, STEPS, &Mode { policy: narrow.clone(), ..Mode::plain() });
    let moves = Policy { offload: OFFLOADS.to_vec(), ..narrow };
    assert!(run(CpuBf16, STEPS, &Mode { policy: moves, ..Mode::plain() }) == stays, "8-bit moments, bf16 gradients");
}

#[test]
fn released_gradients_are_those_that_would_be_summed() {
    for gradients in [GradientDtype::Fp32, GradientDtype::Bf16] {
        for tied in [false, true] {
            let policy = Policy { gradients, ..Mode::plain().policy };
            let mode = || Mode { clip: 0.0, micro_batches: 1, tied, policy: policy.clone(), ..Mode::plain() };
            let plain = run(CpuBf16, STEPS, &mode());
            let released = Policy { gradient_release: true, ..policy.clone() };
            assert!(run(CpuBf16, STEPS, &Mode { policy: released.clone(), ..mode() }) == plain, "{gradients:?}, tied {tied}");
            let offload = vec![Offload::Optimizer, Offload::Remainder, Offload::Weights, Offload::Residuals];
            let moved = Policy { offload, ..released };
            assert!(run(CpuBf16, STEPS, &Mode { policy: moved, ..mode() }) == plain, "{gradients:?}, tied {tied}, offloaded");
        }
    }
}

/// Tolerances are twice what was seen: 20 updates of 1e-3.
#[test]
fn what_stores_less_stays_near() {
    let exact = run(Cpu, STEPS, &Mode::plain());
    let plain = run(CpuBf16, STEPS, &Mode::plain());
    println!("bf16 storage: {:.1e}", distance(&plain, &exact));
    // Tiles change the order of the sums of the weights' gradients alone, by 1e-7. One rounding of a weight to bf16 that this turns spreads to all others.
    let tiled = |keep| Mode { mlp_tiles: 3, keep, ..Mode::plain() };
    for keep in [Keep::All, Keep::Attention] {
        let distance = distance(&run(Cpu, STEPS, &tiled(keep)), &exact);
        assert!(distance > 0.0 && distance <= 1e-4, "mlp_tiles = 3, {keep:?}, in f32: {distance:.1e} of the way");
    }
    let policy = |change: fn(&mut Policy)| {
        let mut policy = Mode::plain().policy;
        change(&mut policy);
        Mode { policy, ..Mode::plain() }
    };
    let modes: [(&str, Mode, f64); 7] = [
        ("mlp_tiles = 3", tiled(Keep::All), 0.03),
        ("mlp_tiles = 3, recompute = mlp", tiled(Keep::Attention), 0.03),
        ("state = bf16", policy(|p| p.state = StateDtype::Bf16), 0.05),
        ("state = int8", policy(|p| p.state = StateDtype::Int8), 0.1),
        ("master = stochastic", policy(|p| p.master = MasterWeights::Stochastic), 0.3),
        ("gradients = bf16", policy(|p| p.gradients = GradientDtype::Bf16), 0.1),
        (
            "all of them",
            policy(|p| {
                (p.state, p.master, p.gradients) = (StateDtype::Int8, MasterWeights::Stochastic, GradientDtype::Bf16);
            }),
            0.4,
        ),
    ];
    for (name, mode, limit) in modes {
        let run = run(CpuBf16, STEPS, &mode);
        let distance = distance(&run, &plain);
        println!("{name}: {distance:.1e}");
        assert!(distance > 0.0 && distance <= limit, "{name}: {distance:.1e} of the way, {limit:.1e} allowed");
    }
}

/// Copies on the second queue, in other orders.
#[test]
fn a_device_overlaps_copies_without_changing_bits() {
    if !emulated() {
        return;
    }
    let steps = 2;
    let device = |seed| Cuda::emulated(Emulator::plain(seed).unwrap());
    let two = |mode: Mode| Mode { micro_batches: 2, ..mode };
    let plain = run(device(0), steps, &two(Mode::plain()));
    assert!(plain.losses.iter().all(|loss| loss.is_finite()));
    for (seed, keep) in [(0, Keep::All), (3, Keep::All), (5, Keep::Stream)] {
        let mode = two(Mode { keep, ..Mode::offloading(&OFFLOADS) });
        assert!(run(device(seed), steps, &mode) == plain, "seed {seed}, {keep:?}");
    }
    let policy = Policy { gradient_release: true, offload: vec![Offload::Optimizer, Offload::Weights], ..Mode::plain().policy };
    let one = || Mode { clip: 0.0, micro_batches: 1, ..Mode::plain() };
    let kept = run(device(0), steps, &one());
    assert!(run(device(7), steps, &Mode { policy, ..one() }) == kept, "released");
}

/// Slots hold two layers: a third one waits until a guard is gone, and nobody waits for that in silence.
#[test]
fn a_block_in_use_is_not_overwritten() {
    let policy = Mode::offloading(&[Offload::Weights]).policy;
    let sizes = Sizes { policy, ..Sizes::new(40, 64, Keep::Stream) };
    let mut engine = Engine::solo(Box::new(Cpu), &model(false), &sizes).unwrap();
    engine.state.weights.load(&Cpu, &mut *random_reader(3, 0.1)).unwrap();
    let weights = &engine.state.weights;
    let (first, third) = (Block::Layer(0), Block::Layer(2));
    let guard = weights.acquire(&Cpu, first).unwrap();
    let bias = guard.get(Role::AttentionNorm).f32().to_vec();
    let refused = [weights.prefetch(&Cpu, third), weights.acquire(&Cpu, third).map(|_| ()), weights.change(1)];
    for error in refused.map(|refused| refused.unwrap_err()) {
        assert!(error.message.contains("layers.0") && error.message.contains("in use"), "{error}");
    }
    assert_eq!(guard.get(Role::AttentionNorm).f32(), bias);
    weights.prefetch(&Cpu, Block::Layer(1)).unwrap();
    drop(guard);
    weights.acquire(&Cpu, third).unwrap();
    weights.change(1).unwrap();
}
