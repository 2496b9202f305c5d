//! Sampling against transformers' `generate` in float32 (tools/golden/sampling.py): the greedy answers to hundreds of prompts of 1 to 2,000 tokens.

use limo_engine::config::ModelConfig;
use limo_engine::data::{Example, MicroBatch, pack};
use limo_engine::device::emulator::Emulator;
use limo_engine::io::TensorFiles;
use limo_engine::model::{Qwen2, ResidentWeights, checkpoint_reader};
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::cuda::Cuda;
use limo_engine::ops::{Narrowing, Ops};
use limo_engine::sample::{Capacity, Engine, Finished, LoadedModel, Scorer, Settings, StopRules};
use limo_engine::tensor::Arenas;
use safetensors::SafeTensors;
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden");
const MODELS: [&str; 8] = ["tied", "untied", "gqa1", "gqa6_old", "gqa7", "gqa7_old_sharded", "dim128", "dim128_sharded"];
/// The golden models' files allow 128 positions; rotary embeddings do not depend on that number.
const POSITIONS: usize = 2048;
/// Of a gap between two logits below which float32 decides which is larger, and of log-probabilities.
const TOLERANCE: f32 = 1e-4;

/// What transformers answers: each token, the gap between the two largest logits there, and the token's natural log-probability.
struct Answer {
    tokens: Vec<i32>,
    gaps: Vec<f32>,
    /// Among the ids in use.
    drawn: Vec<f32>,
    /// Over the whole vocabulary.
    scored: Vec<f32>,
}

/// A model, prompts, and what transformers answers.
struct Golden {
    name: &'static str,
    config: ModelConfig,
    checkpoint: TensorFiles,
    /// Ids from here on pad the vocabulary.
    used: usize,
    prompts: Vec<Vec<i32>>,
    answers: Vec<Answer>,
}

impl Golden {
    fn load(name: &'static str) -> Golden {
        let folder = Path::new(FIXTURES).join("models").join(name);
        let mut config = ModelConfig::from_file(&folder.join("config.json")).unwrap();
        config.max_position_embeddings = POSITIONS;
        let bytes = std::fs::read(Path::new(FIXTURES).join("sampling.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |key: &str| -> Vec<[u8; 4]> {
            file.tensor(key).unwrap().data().chunks(4).map(|bytes| bytes.try_into().unwrap()).collect()
        };
        let lengths: Vec<usize> = numbers("lengths").into_iter().map(|n| i32::from_le_bytes(n) as usize).collect();
        let used = i32::from_le_bytes(numbers(&format!("{name}.used"))[0]) as usize;
        let tokens = file.tensor(&format!("{name}.tokens")).unwrap();
        let width = tokens.shape()[1];
        let rows = |key: &str| -> Vec<Vec<f32>> {
            let values: Vec<f32> = numbers(&format!("{name}.{key}")).into_iter().map(f32::from_le_bytes).collect();
            values.chunks(width).map(Vec::from).collect()
        };
        let [gaps, drawn, scored] = ["gaps", "drawn", "scored"].map(rows);
        let answer = |(row, tokens): (usize, &[u8])| Answer {
            tokens: tokens.iter().map(|&t| t as i32).collect(),
            gaps: gaps[row].clone(),
            drawn: drawn[row].clone(),
            scored: scored[row].clone(),
        };
        Golden {
            name,
            config,
            checkpoint: TensorFiles::open(&folder).unwrap(),
            used,
            prompts: (0u64..).zip(lengths).map(|(prompt, length)| prompt_tokens(prompt, length, used)).collect(),
            answers: tokens.data().chunks(width).enumerate().map(answer).collect(),
        }
    }

    /// The engine's greedy answers to these prompts.
    fn answer(&self, ops: &dyn Ops, prompts: &[usize]) -> Vec<Finished> {
        let ((mut model, mut weights), _) = Arenas::build(ops.allocator(), ops.host_allocator(), |arenas| {
            let model = Qwen2::new(&mut arenas.device, &self.config, POSITIONS)?;
            let weights = ResidentWeights::new(&mut arenas.device, model.layout.clone(), ops.dtype())?;
            Ok((model, weights))
        })
        .unwrap();
        model.upload_tables(ops).unwrap();
        weights.load(ops, &mut *checkpoint_reader(&self.checkpoint, &model.layout).unwrap()).unwrap();
        let settings = Settings {
            narrowing: Narrowing { temperature: 0.0, ..Narrowing::NONE },
            stop: StopRules { ids: &Default::default(), text: None, repetition: false },
            log_probabilities: true,
            vocabulary: self.used,
        };
        let asked: Vec<Vec<i32>> = prompts.iter().map(|&prompt| self.prompts[prompt].clone()).collect();
        // Long prompts are cut into chunks; there is room for a few of the longest.
        let capacity = Capacity { batch: 16, chunk: 384, pages: 80, host_pages: 8, positions: POSITIONS };
        let mut engine = Engine::new(ops, &self.config, capacity).unwrap();
        let on = LoadedModel { ops, model: &model, weights: &weights };
        engine.answer(on, &settings, &asked, self.answers[0].tokens.len(), &|| Ok(())).unwrap()
    }

    /// Holds an answer to transformers' up to the first token that differs, where the two largest logits must lie closer together than `tolerance`: how far
    /// each log-probability before it is off, at most `tolerance`.
    fn compare(&self, prompt: usize, answer: &Finished, tolerance: f32) -> Vec<f32> {
        let (expected, what) = (&self.answers[prompt], format!("{}, prompt {prompt}", self.name));
        assert_eq!([answer.tokens.len(), answer.log_probabilities.len()], [expected.tokens.len(); 2], "{what}");
        let same = answer.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
        if let Some(gap) = expected.gaps.get(same) {
            assert!(*gap < tolerance, "{what}, token {same}: not the likeliest, by {gap}; {tolerance} is unsure");
        }
        let pairs = answer.log_probabilities.iter().zip(&expected.drawn).take(same);
        let errors: Vec<f32> = pairs.map(|(a, b)| (a - b).abs()).collect();
        for (token, error) in errors.iter().enumerate() {
            assert!(*error <= tolerance, "{what}, token {token}: a log-probability is off by {error}");
        }
        errors
    }

    /// A prompt with transformers' answer, every token of which is supervised.
    fn sequence(&self, prompt: usize) -> MicroBatch {
        let (prompt, answer) = (&self.prompts[prompt], &self.answers[prompt].tokens);
        let tokens = [&prompt[..], answer].concat();
        let supervised = (0..tokens.len()).map(|position| position >= prompt.len()).collect();
        pack(&[&Example { id: String::new(), tokens, supervised }], POSITIONS, false).unwrap().remove(0)
    }

    fn scorer(&self, ops: &dyn Ops) -> Scorer {
        Scorer::load(ops, &self.config, &self.checkpoint, POSITIONS, POSITIONS).unwrap()
    }

    /// The largest difference of a logit between f32 and bf16 storage on the CPU: of each prompt, over the tokens of transformers' answer.
    fn bf16_errors(&self, prompts: &[usize]) -> Vec<f32> {
        let logits = |ops: &dyn Ops| -> Vec<Vec<f32>> {
            let mut scorer = self.scorer(ops);
            let of_prompt = |&prompt: &usize| {
                let (first, count) = (self.prompts[prompt].len() - 1, self.answers[prompt].tokens.len());
                let mut out = vec![f32::NAN; count * self.config.vocab_size];
                scorer.forward(ops, &self.sequence(prompt)).unwrap();
                scorer.logits(ops, first..first + count, &mut out).unwrap();
                out
            };
            prompts.iter().map(of_prompt).collect()
        };
        let largest = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        logits(&Cpu).iter().zip(&logits(&CpuBf16)).map(largest).collect()
    }
}

/// SplitMix64's finaliser over the numbers of prompt and position, modulo the ids in use.
fn prompt_tokens(prompt: u64, length: usize, used: usize) -> Vec<i32> {
    let token = |position: u64| {
        let mut x = ((prompt << 32) + position).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % used as u64) as i32
    };
    (0..length as u64).map(token).collect()
}

#[test]
fn greedy_answers_in_float32() {
    let (mut prompts, mut same, mut tokens) = (0, 0, 0);
    for golden in MODELS.map(Golden::load) {
        let all: Vec<usize> = (0..golden.prompts.len()).collect();
        for (prompt, answer) in golden.answer(&Cpu, &all).iter().enumerate() {
            same += golden.compare(prompt, answer, TOLERANCE).len();
            tokens += answer.tokens.len();
        }
        prompts += all.len();
    }
    println!("{prompts} prompts: {same} of {tokens} tokens before the first that differs");
    assert!(prompts >= 300 && same * 100 >= tokens * 99);
}

/// What `score` computes of the same answers, prompt and answer at once.
#[test]
fn scores_in_float32() {
    for golden in MODELS.map(Golden::load) {
        let mut scorer = golden.scorer(&Cpu);
        for (prompt, answer) in golden.answers.iter().enumerate() {
            let scores = scorer.log_probabilities(&Cpu, &golden.sequence(prompt)).unwrap();
            for (token, (got, expected)) in scores[golden.prompts[prompt].len() - 1..].iter().zip(&answer.scored).enumerate() {
                let error = (got - expected).abs();
                assert!(error <= TOLERANCE, "{}, prompt {prompt}, token {token}: off by {error}", golden.name);
            }
        }
    }
}

/// The rule: where bf16 storage moves a logit of an answer by at most e on the CPU, another order of summation may move it by 2e; both a gap between two
/// logits and a log-probability move by at most twice that. On average the emulator is as exact as the CPU: within a factor of 2.
#[test]
fn greedy_answers_in_bf16_and_in_the_emulator() {
    let golden = Golden::load("dim128");
    let short: Vec<usize> = (0..golden.prompts.len()).filter(|&prompt| golden.prompts[prompt].len() <= 130).collect();
    let tolerances: Vec<f32> = golden.bf16_errors(&short).iter().map(|error| 4.0 * error).collect();
    let mean_error = |ops: &dyn Ops| {
        let answers = golden.answer(ops, &short);
        let checked = short.iter().zip(&answers).zip(&tolerances);
        let errors: Vec<f32> =
            checked.flat_map(|((&prompt, answer), &tolerance)| golden.compare(prompt, answer, tolerance)).collect();
        let mean = errors.iter().sum::<f32>() / errors.len() as f32;
        println!("{}: {} tokens before the first that differs, mean error {mean}", ops.device(), errors.len());
        assert!(errors.len() >= 200);
        mean
    };
    let exact = mean_error(&CpuBf16);
    match Emulator::plain(1) {
        Ok(emulator) => {
            let error = mean_error(&Cuda::emulated(emulator));
            assert!(error <= 2.0 * exact + 1e-4, "{error}, on the CPU {exact}");
        }
        Err(error) => println!("skipped 1: {error}"),
    }
}
