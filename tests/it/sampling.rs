//! The engine of sampling: what a sample is depends on nothing but its prompt, its key and the settings.

use limo_engine::config::ModelConfig;
use limo_engine::device::emulator::Emulator;
use limo_engine::model::{Qwen2, ResidentWeights, random_reader};
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::cuda::Cuda;
use limo_engine::ops::{Narrowing, Ops};
use limo_engine::sample::{Capacity, Engine, FinishReason, Finished, LoadedModel, Request, Settings, Stats, StopRules, Times};
use limo_engine::tensor::Arenas;
use limo_engine::testing::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

struct Model {
    ops: Box<dyn Ops>,
    qwen2: Qwen2,
    weights: ResidentWeights,
    /// Ids that leave 3 when divided by this end a sample.
    stops: i32,
}

/// Random weights, large enough that the distributions are far from flat.
fn model(ops: Box<dyn Ops>, config: &str, stops: i32) -> Model {
    let json = serde_json::from_str(config).unwrap();
    let config = ModelConfig::from_json(&json, Path::new("config.json")).unwrap();
    let build = |arenas: &mut Arenas| {
        let qwen2 = Qwen2::new(&mut arenas.device, &config, 1024)?;
        let weights = ResidentWeights::new(&mut arenas.device, qwen2.layout.clone(), ops.dtype())?;
        Ok((qwen2, weights))
    };
    let ((mut qwen2, mut weights), _) = Arenas::build(ops.allocator(), ops.host_allocator(), build).unwrap();
    qwen2.upload_tables(ops.as_ref()).unwrap();
    weights.load(ops.as_ref(), &mut *random_reader(7, 0.15)).unwrap();
    Model { ops, qwen2, weights, stops }
}

const SMALL: &str = r#"{"model_type": "qwen2", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 211, "tie_word_embeddings": true}"#;
/// Heads that the kernels know.
const KERNELS: &str = r#"{"model_type": "qwen2", "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 200, "tie_word_embeddings": true}"#;

/// Prompts of 1 to `longest` tokens with 1 to 5 samples each, of which those with even numbers end early.
fn requests(count: u64, longest: usize, new: usize, vocabulary: usize) -> Vec<Request> {
    let mut random = Random::new(count);
    let edges = [1, 2, 64, 65, 66, 129];
    let mut request = |prompt: u64| {
        let length = edges.get(prompt as usize).copied().unwrap_or_else(|| 1 + random.below(longest)).min(longest);
        let tokens = (0..length).map(|_| random.below(vocabulary) as i32).collect();
        let samples =
            (0..1 + random.below(5) as u32).map(|sample| (sample, (prompt << 32) | (u64::from(sample) + 1))).collect();
        Request { prompt, tokens, samples, max_tokens: 1 + random.below(new) }
    };
    (0..count).map(&mut request).collect()
}

type Answers = BTreeMap<(u64, u32), (Vec<i32>, Vec<u32>, FinishReason)>;

const SETTINGS: Narrowing = Narrowing { temperature: 1.2, top_k: 50, top_p: 0.95, min_p: 0.001, repetition_penalty: 1.1 };

fn sample(model: &Model, capacity: Capacity, requests: &[Request], narrowing: Narrowing) -> (Answers, Stats) {
    let mut engine = Engine::new(model.ops.as_ref(), &model.qwen2.config, capacity).unwrap();
    let ids = (0..model.qwen2.config.vocab_size as i32).filter(|id| id % model.stops == 3).collect::<BTreeSet<_>>();
    let settings = Settings {
        narrowing,
        stop: StopRules { ids: &ids, text: None, repetition: false },
        log_probabilities: true,
        vocabulary: model.qwen2.config.vocab_size - 3,
    };
    let mut waiting = requests.iter().cloned();
    let mut answers = Answers::new();
    let mut last = None;
    let mut sink = |finished: Finished| {
        let Finished { prompt, sample, tokens, log_probabilities, reason } = finished;
        assert_eq!(tokens.len(), log_probabilities.len());
        let bits = log_probabilities.iter().map(|value| value.to_bits()).collect();
        assert!(answers.insert((prompt, sample), (tokens, bits, reason)).is_none(), "a sample ended twice");
        Ok(())
    };
    let mut watch = |stats: &Stats, _: &Times| {
        last = Some(*stats);
        Ok(())
    };
    let Model { ops, qwen2, weights, .. } = model;
    let mut next = || Ok(waiting.next());
    let on = LoadedModel { ops: ops.as_ref(), model: qwen2, weights };
    engine.run(on, &settings, &mut next, &mut sink, &mut watch).unwrap();
    (answers, last.unwrap())
}

/// Under other batches, chunks, caches and orders; `base` has room for everything.
fn same_under_all(model: &Model, base: Capacity, requests: Vec<Request>, others: &[Capacity]) {
    let (expected, stats) = sample(model, base, &requests, SETTINGS);
    assert_eq!(expected.len(), requests.iter().map(|request| request.samples.len()).sum::<usize>());
    assert_eq!(stats.preemptions, 0);
    let reasons: Vec<_> = expected.values().map(|(.., reason)| *reason).collect();
    assert!(reasons.contains(&FinishReason::Stop) && reasons.contains(&FinishReason::Length));
    let mut random = Random::new(9);
    let (mut preemptions, mut replays) = (0, 0);
    for &capacity in others {
        let mut shuffled = requests.clone();
        random.shuffle(&mut shuffled);
        let (answers, stats) = sample(model, capacity, &shuffled, SETTINGS);
        println!("{capacity:?}: {} preemptions, {} replays", stats.preemptions, stats.replays);
        preemptions += stats.preemptions;
        replays += stats.replays;
        for (name, answer) in &expected {
            assert_eq!(Some(answer), answers.get(name), "{name:?} within {capacity:?}");
        }
        assert_eq!((stats.used, stats.host_used), (0, 0), "pages are left");
    }
    assert!(preemptions > replays && replays > 0, "{preemptions} preemptions, {replays} replays");
}

const ROOM: Capacity = Capacity { batch: 200, chunk: 512, pages: 700, host_pages: 0, positions: 400 };

fn others() -> [Capacity; 6] {
    [
        Capacity { batch: 1, ..ROOM },
        Capacity { batch: 3, chunk: 7, ..ROOM },
        Capacity { batch: 64, chunk: 1, ..ROOM },
        Capacity { batch: 64, chunk: 64, pages: 12, host_pages: 40, ..ROOM },
        Capacity { batch: 64, chunk: 65, pages: 9, host_pages: 3, ..ROOM },
        Capacity { batch: 20, chunk: 2000, pages: 8, host_pages: 0, ..ROOM },
    ]
}

#[test]
fn answers_do_not_depend_on_batch_chunk_cache_or_order() {
    same_under_all(&model(Box::new(Cpu), SMALL, 100), ROOM, requests(24, 200, 120, 200), &others());
}

#[test]
fn nor_do_they_in_bf16() {
    same_under_all(&model(Box::new(CpuBf16), SMALL, 100), ROOM, requests(12, 140, 80, 200), &others());
}

#[test]
fn nor_do_they_on_the_emulator() {
    let Ok(emulator) = Emulator::plain(3) else {
        eprintln!("skipped: 1 test, the emulator needs a C++ compiler");
        return;
    };
    let base = Capacity { batch: 16, chunk: 300, pages: 60, host_pages: 0, positions: 160 };
    let others = [
        Capacity { batch: 1, chunk: 33, ..base },
        Capacity { batch: 8, chunk: 64, pages: 6, host_pages: 9, ..base },
        Capacity { batch: 8, chunk: 100, pages: 5, host_pages: 1, ..base },
    ];
    same_under_all(&model(Box::new(Cuda::emulated(emulator)), KERNELS, 15), base, requests(5, 130, 20, 190), &others);
}

/// A job cut into parts, by prompts and by samples, gives the parts of its answers.
#[test]
fn a_part_of_a_job_gives_its_part_of_the_answers() {
    let model = model(Box::new(Cpu), SMALL, 100);
    let requests = requests(24, 200, 40, 200);
    let (whole, _) = sample(&model, ROOM, &requests, SETTINGS);
    let mut parts = Answers::new();
    for part in 0..3 {
        let mut of_part = requests.clone();
        for request in &mut of_part {
            request.samples.retain(|(sample, key)| (*key as usize + *sample as usize) % 3 == part);
        }
        of_part.retain(|request| !request.samples.is_empty());
        parts.extend(sample(&model, Capacity { batch: 5 + part, ..ROOM }, &of_part, SETTINGS).0);
    }
    assert!(parts == whole);
}

/// Another key is another sample, and the same key is the same one.
#[test]
fn keys_are_what_tells_samples_apart() {
    let model = model(Box::new(Cpu), SMALL, 100);
    let keys = [5, 6, 5, 5 << 32, 1 << 63];
    let samples = keys.iter().zip(0..).map(|(&key, sample)| (sample, key)).collect();
    let request = Request { prompt: 0, tokens: vec![1, 2, 3], samples, max_tokens: 30 };
    let (answers, _) = sample(&model, ROOM, &[request], Narrowing::NONE);
    let tokens = |sample| &answers[&(0, sample)].0;
    assert_eq!(tokens(0), tokens(2));
    let different: BTreeSet<_> = [0, 1, 3, 4].map(tokens).into();
    assert_eq!(different.len(), 4);
}
