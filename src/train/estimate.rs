//! How long a step takes on an H200, by arithmetic: what the products, attention, and the bytes that have to move would need at rates that the best known kernels reach.
//! Nothing here was measured on a GPU; docs/memory.md says what it leaves out.

use super::engine::Sizes;
use crate::config::{ModelConfig, Offload, StateDtype};
use crate::model::{Keep, Layout};
use crate::tensor::DType;

/// Products in bf16 of this size, FLOP/s.
const GEMM: f64 = 720e12;
/// Causal attention with heads of 128, FLOP/s; shorter heads wait for the exponentials.
const ATTENTION_FORWARD: f64 = 660e12;
const ATTENTION_BACKWARD: f64 = 570e12;
const SHORT_HEADS: f64 = 0.75;
/// Device memory, bytes/s: 90 % of a device copy, reads and writes counted.
const MEMORY: f64 = 0.9 * 4.3e12;
/// Between the device and pinned host memory, bytes/s in either direction.
const HOST_BUS: f64 = 50e9;
/// Between the GPUs of a machine, and between machines, bytes/s a GPU.
const NVLINK: f64 = 350e9;
const NETWORK: f64 = 45e9;

/// The work of one optimizer step on one rank.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Micro-batches of each rank.
    pub micro_batches: f64,
    /// Tokens of each.
    pub tokens: f64,
    /// Tokens of a sequence, which attention sees.
    pub sequence: f64,
    pub ranks: f64,
    /// Ranks of a machine.
    pub neighbours: f64,
}

/// Where the time of a step goes, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Of one micro-batch: what the device computes.
    pub compute: f64,
    /// Of one micro-batch: transfers over the host's bus, beside the computation.
    pub host: f64,
    /// Of one micro-batch: what ranks exchange, beside the computation.
    pub exchange: f64,
    /// Of one update.
    pub update: f64,
}

impl Times {
    /// Tokens a second of all ranks.
    pub fn tokens_per_s(&self, work: &Work) -> f64 {
        let micro_batch = self.compute.max(self.host).max(self.exchange);
        let step = work.micro_batches * micro_batch + self.update;
        work.ranks * work.micro_batches * work.tokens / step
    }
}

/// The times of a step of `work`, with bf16 storage.
pub fn times(config: &ModelConfig, sizes: &Sizes, work: &Work) -> Times {
    let layout = Layout::new(config);
    let layers = config.num_hidden_layers as f64;
    let (d, f, v) = (config.hidden_size as f64, config.intermediate_size as f64, config.vocab_size as f64);
    let (query, kv) =
        ((config.num_attention_heads * config.head_dim) as f64, (config.num_key_value_heads * config.head_dim) as f64);
    let fused = query + 2.0 * kv;
    let policy = &sizes.policy;
    let (t, ranks) = (work.tokens, work.ranks);
    let parameters = layout.blocks.iter().map(|block| block.elements).sum::<usize>() as f64;
    let (layer_parameters, vocabulary) = (parameters - (1.0 + f64::from(!layout.tied)) * v * d, v * d);

    // Products: 2 FLOP a weight and token forward, 4 backward; what is computed again once more.
    let attention_weights = layers * d * (fused + query);
    let mlp_weights = layers * 3.0 * d * f;
    let again = match sizes.keep {
        Keep::All | Keep::Nothing => 0.0,
        // The down projection's output is not needed again.
        Keep::Attention => mlp_weights * 2.0 / 3.0,
        Keep::Stream => attention_weights + mlp_weights * 2.0 / 3.0,
    };
    let products = t * (6.0 * (attention_weights + mlp_weights + vocabulary) + 2.0 * again) / GEMM;
    let scores = 2.0 * layers * query * work.sequence * t;
    let forward_again = if sizes.keep == Keep::Stream { 2.0 } else { 1.0 };
    let rate = if config.head_dim < 128 { SHORT_HEADS } else { 1.0 };
    let attention = (forward_again * scores / ATTENTION_FORWARD + 2.5 * scores / ATTENTION_BACKWARD) / rate;

    // Bytes of everything else, in bf16: norms with their residual, rotations, activations, forward (again) and backward.
    let forward = 2.0 * (2.0 * 4.0 * d + 2.0 * (query + kv) + 3.0 * f);
    let backward = 2.0 * (2.0 * 5.0 * d + 2.0 * (query + kv) + 5.0 * f + 3.0 * query);
    let passes = match sizes.keep {
        Keep::All | Keep::Nothing => 1.0,
        Keep::Attention => 1.5,
        Keep::Stream => 2.0,
    };
    let logits = 2.0 * 4.0 * v * t;
    // A contribution is cleared, written and read in f32, and the sum read and written.
    let gradient = policy.gradient_bytes();
    let sums = if policy.gradient_release { 0.0 } else { 2.0 * gradient / ranks };
    let contributions = parameters * (12.0 + sums);
    let moved = layers * t * (passes * forward + backward) + logits + contributions;
    let compute = products + attention + moved / MEMORY;

    // Over the host's bus: what is offloaded comes down once and up once a micro-batch, weights up twice.
    let kept = match sizes.keep {
        Keep::Stream | Keep::Nothing => 0.0,
        Keep::Attention => 2.0 * (2.0 * d + fused + query),
        Keep::All => 2.0 * (3.0 * d + fused + query + 3.0 * f),
    };
    let once = |what, bytes: f64| if policy.offloads(what) { bytes } else { 0.0 };
    let host = 2.0 * once(Offload::Residuals, layers * t * 2.0 * d)
        + 2.0 * once(Offload::Activations, layers * t * kept)
        + 2.0 * once(Offload::Gradients, parameters * gradient / ranks)
        + 2.0 * once(Offload::Weights, parameters * 2.0 / ranks);
    // Weights are gathered twice, gradients sent once.
    let others = (ranks - 1.0) / ranks;
    let wire = if ranks > work.neighbours { NETWORK } else { NVLINK };
    let exchange = parameters * others * (2.0 * 2.0 + gradient) / wire;

    // An update reads and writes every number of its state once.
    let state = |vocabulary: bool| match policy.state {
        StateDtype::Fp32 => 8.0,
        StateDtype::Int8 if !vocabulary => 2.0,
        StateDtype::Bf16 | StateDtype::Int8 => 4.0,
    };
    let exact = if sizes.exact(DType::Bf16) { 2.0 } else { 0.0 };
    let vocabularies = parameters - layer_parameters;
    let moments = layer_parameters * state(false) + vocabularies * state(true);
    let numbers = 2.0 * (moments + parameters * (2.0 + exact)) + parameters * gradient;
    let staged = 2.0
        * (once(Offload::Optimizer, moments)
            + once(Offload::Vocabulary, if policy.offloads(Offload::Optimizer) { 0.0 } else { vocabularies * state(true) })
            + once(Offload::Remainder, parameters * exact)
            + once(Offload::Weights, parameters * 2.0))
        // The norm reads the sums once before.
        + 2.0 * once(Offload::Gradients, parameters * gradient);
    let update = (numbers / MEMORY).max(staged / HOST_BUS) / ranks;
    Times { compute, host: host / HOST_BUS, exchange, update }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GradientDtype, MasterWeights};
    use crate::zero::Policy;
    use std::path::Path;

    /// The ceilings that the same rates give when they are worked out by hand, tokens a second at 16k (32B with gate and up computed again).
    #[test]
    fn ceilings() {
        for (name, low, high) in [
            ("0.5b", 89e3, 93e3),
            ("1.5b", 40e3, 42e3),
            ("3b", 21.6e3, 22.7e3),
            ("7b", 11.3e3, 11.9e3),
            ("14b", 5.5e3, 5.8e3),
            ("32b", 2.39e3, 2.52e3),
        ] {
            let config = ModelConfig::from_file(Path::new(&format!("configs/models/qwen2.5-{name}.json"))).unwrap();
            let keep = if name == "32b" { Keep::Attention } else { Keep::All };
            let sizes = Sizes::new(16384, 16384, keep);
            let work = Work { micro_batches: 24.0, tokens: 16384.0, sequence: 16384.0, ranks: 1.0, neighbours: 1.0 };
            let rate = times(&config, &sizes, &work).tokens_per_s(&work);
            println!("{name}: {rate:.0} tokens/s");
            assert!((0.96 * low..1.04 * high).contains(&rate), "{name}: {rate:.0}");
        }
    }

    #[test]
    fn what_is_moved_costs_time_only_where_it_does_not_hide() {
        let config = ModelConfig::from_file(Path::new("configs/models/qwen2.5-32b.json")).unwrap();
        let work = Work { micro_batches: 24.0, tokens: 16384.0, sequence: 16384.0, ranks: 1.0, neighbours: 1.0 };
        let rate = |offload: &[Offload]| {
            let policy = Policy {
                state: StateDtype::Int8,
                master: MasterWeights::Stochastic,
                gradients: GradientDtype::Bf16,
                offload: offload.to_vec(),
                ..Policy::plain()
            };
            let sizes = Sizes { policy, ..Sizes::new(16384, 16384, Keep::Stream) };
            times(&config, &sizes, &work).tokens_per_s(&work)
        };
        let (stays, hides) = (rate(&[]), rate(&[Offload::Gradients, Offload::Residuals]));
        assert!(hides < stays && hides > 0.95 * stays, "{hides:.0} of {stays:.0}");
        let shows = rate(&[Offload::Gradients, Offload::Residuals, Offload::Weights, Offload::Optimizer]);
        assert!(shows < 0.99 * hides, "{shows:.0} of {hides:.0}");
    }
}
