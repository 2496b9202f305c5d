//! Sampling against transformers' `generate` in float32 (tools/golden/sampling.py): the greedy answers to hundreds of prompts of 1 to 2,000 tokens.

use limo_engine::config::ModelConfig;
use limo_engine::data::{Example, pack};
use limo_engine::device::emulator::Emulator;
use limo_engine::io::TensorFiles;
use limo_engine::model::{Qwen2, ResidentWeights, checkpoint_reader};
use limo_engine::ops::Ops;
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::cuda::Cuda;
use limo_engine::sample::{Greedy, Limits, Scorer};
use limo_engine::tensor::Arenas;
use safetensors::SafeTensors;
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden");
const MODELS: [&str; 8] = ["tied", "untied", "gqa1", "gqa6_old", "gqa7", "gqa7_old_sharded", "dim128", "dim128_sharded"];
/// The golden models' files allow 128 positions; rotary embeddings do not depend on that number.
const POSITIONS: usize = 2048;
/// Of a gap between two logits below which float32 decides which is larger, and of log-probabilities.
const TOLERANCE: f32 = 1e-4;

/// Tokens and natural log-probabilities.
struct Answer {
    tokens: Vec<i32>,
    log_probabilities: Vec<f32>,
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
    /// Between the two largest logits at each token of each answer.
    gaps: Vec<Vec<f32>>,
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
        let answers = tokens.data().chunks(width).zip(rows("log_probabilities"));
        Golden {
            name,
            config,
            checkpoint: TensorFiles::open(&folder).unwrap(),
            used,
            prompts: (0u64..).zip(lengths).map(|(prompt, length)| prompt_tokens(prompt, length, used)).collect(),
            answers: answers
                .map(|(tokens, log_probabilities)| Answer {
                    tokens: tokens.iter().map(|&t| t as i32).collect(),
                    log_probabilities,
                })
                .collect(),
            gaps: rows("gaps"),
        }
    }

    /// The engine's greedy answers to these prompts.
    fn answer(&self, ops: &dyn Ops, prompts: &[usize]) -> Vec<Answer> {
        let ((mut model, mut weights), _) = Arenas::build(ops.allocator(), ops.host_allocator(), |arenas| {
            let model = Qwen2::new(&mut arenas.device, &self.config, POSITIONS)?;
            let weights = ResidentWeights::new(&mut arenas.device, model.layout.clone(), ops.dtype())?;
            Ok((model, weights))
        })
        .unwrap();
        model.upload_tables(ops).unwrap();
        weights.load(ops, &mut *checkpoint_reader(&self.checkpoint, &model.layout).unwrap()).unwrap();
        let asked: Vec<Vec<i32>> = prompts.iter().map(|&prompt| self.prompts[prompt].clone()).collect();
        let longest = asked.iter().map(Vec::len).max().unwrap();
        let new = self.answers[0].tokens.len();
        let mut greedy = Greedy::new(ops, &self.config, 5, longest + new).unwrap();
        let limits = Limits { max_tokens: new, stop: &Default::default(), vocabulary: self.used };
        let generated = greedy.generate(ops, &model, &weights, &asked, limits, &|| Ok(())).unwrap();
        let mut scorer = Scorer::load(ops, &self.config, &self.checkpoint, POSITIONS, POSITIONS).unwrap();
        generated
            .into_iter()
            .zip(asked)
            .map(|(answer, prompt)| {
                let batch = &pack(&[&example(&prompt, &answer.tokens)], POSITIONS, false).unwrap()[0];
                let scores = scorer.log_probabilities(ops, batch).unwrap();
                Answer { log_probabilities: scores[prompt.len() - 1..][..new].to_vec(), tokens: answer.tokens }
            })
            .collect()
    }

    /// Holds an answer to transformers' up to the first token that differs, where the two largest logits must lie closer together than `tolerance`: how far
    /// each log-probability before it is off, at most `tolerance`.
    fn compare(&self, prompt: usize, answer: &Answer, tolerance: f32) -> Vec<f32> {
        let (expected, what) = (&self.answers[prompt], format!("{}, prompt {prompt}", self.name));
        assert_eq!([answer.tokens.len(), answer.log_probabilities.len()], [expected.tokens.len(); 2], "{what}");
        let same = answer.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
        if let Some(gap) = self.gaps[prompt].get(same) {
            assert!(*gap < tolerance, "{what}, token {same}: not the likeliest, by {gap}; {tolerance} is unsure");
        }
        let pairs = answer.log_probabilities.iter().zip(&expected.log_probabilities).take(same);
        let errors: Vec<f32> = pairs.map(|(a, b)| (a - b).abs()).collect();
        for (token, error) in errors.iter().enumerate() {
            assert!(*error <= tolerance, "{what}, token {token}: a log-probability is off by {error}");
        }
        errors
    }

    /// The largest difference of a logit between f32 and bf16 storage on the CPU: of each prompt, over the tokens of transformers' answer.
    fn bf16_errors(&self, prompts: &[usize]) -> Vec<f32> {
        let logits = |ops: &dyn Ops| -> Vec<Vec<f32>> {
            let mut scorer = Scorer::load(ops, &self.config, &self.checkpoint, POSITIONS, POSITIONS).unwrap();
            let of_prompt = |&prompt: &usize| {
                let (prompt, answer) = (&self.prompts[prompt], &self.answers[prompt].tokens);
                let mut out = vec![f32::NAN; answer.len() * self.config.vocab_size];
                scorer.forward(ops, &pack(&[&example(prompt, answer)], POSITIONS, false).unwrap()[0]).unwrap();
                scorer.logits(ops, prompt.len() - 1..prompt.len() - 1 + answer.len(), &mut out).unwrap();
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

/// Prompt and answer as one sequence, every token of the answer supervised.
fn example(prompt: &[i32], answer: &[i32]) -> Example {
    let tokens = [prompt, answer].concat();
    let supervised = (0..tokens.len()).map(|position| position >= prompt.len()).collect();
    Example { id: String::new(), tokens, supervised }
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
