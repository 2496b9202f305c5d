"""Golden fixtures of the model: what transformers computes in float32, for tests/it/golden.rs.

    python tools/golden/model.py        (torch and transformers; rewrites tests/fixtures/golden/models)

Small Qwen2 models with nothing trivial in them: random biases and norm weights, grouped queries, vocabulary rows that no
token uses. Every sequence runs alone, without packing or padding, so that packing is tested against the truth.
"""

import json
import math
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, get_scheduler

OUT = Path(__file__).resolve().parents[2] / "tests/fixtures/golden/models"
STEPS = 8
BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.999), 1e-8, 0.1, 1.0
NEW_TOKENS = 24

# `spelling` is that of config.json: as transformers writes it today, or as the released Qwen2 and Qwen2.5 folders have it.
MODELS = {
    "tied": dict(
        seed=11, used=83, lr=1e-4, schedule="cosine", warmup=0, normalize="sequences", shard=None, spelling="new",
        config=dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                    vocab_size=96, rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=True),
    ),
    "untied": dict(
        seed=12, used=71, lr=5e-5, schedule="cosine", warmup=2, normalize="tokens", shard="96KB", spelling="new",
        config=dict(hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                    vocab_size=80, rms_norm_eps=1e-5, rope_theta=1000000.0, tie_word_embeddings=False),
    ),
    "gqa1": dict(
        seed=13, used=60, lr=1e-4, schedule="linear", warmup=3, normalize="tokens", shard=None, spelling="new",
        config=dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                    vocab_size=64, rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=True),
    ),
    "gqa6_old": dict(
        seed=14, used=64, lr=1e-4, schedule="constant", warmup=2, normalize="sequences", shard=None, spelling="old",
        config=dict(hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=1,
                    vocab_size=72, rms_norm_eps=1e-5, rope_theta=1000000.0, tie_word_embeddings=False),
    ),
    "gqa7": dict(
        seed=15, used=55, lr=2e-4, schedule="linear", warmup=0, normalize="sequences", shard=None, spelling="new",
        config=dict(hidden_size=42, intermediate_size=33, num_hidden_layers=2, num_attention_heads=7, num_key_value_heads=1,
                    vocab_size=57, rms_norm_eps=1e-6, rope_theta=500000.0, tie_word_embeddings=True),
    ),
    "gqa7_old_sharded": dict(
        seed=16, used=66, lr=1e-4, schedule="cosine", warmup=1, normalize="tokens", shard="24KB", spelling="old",
        config=dict(hidden_size=28, intermediate_size=36, num_hidden_layers=2, num_attention_heads=14, num_key_value_heads=2, head_dim=4,
                    vocab_size=70, rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=True),
    ),
    "dim128": dict(
        seed=17, used=50, lr=1e-4, schedule="constant", warmup=0, normalize="tokens", shard=None, spelling="new",
        config=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
                    vocab_size=56, rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=False),
    ),
    "dim128_sharded": dict(
        seed=18, used=50, lr=1e-4, schedule="cosine", warmup=0, normalize="sequences", shard="64KB", spelling="old",
        config=dict(hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=1, head_dim=128,
                    vocab_size=50, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False),
    ),
}


def build(seed, config):
    """A model with every parameter random and none of them symmetric."""
    config = dict(config)
    rope = dict(rope_type="default", rope_theta=config.pop("rope_theta"))
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(max_position_embeddings=128, rope_parameters=rope, use_sliding_window=False,
                                         dtype="float32", attn_implementation="eager", **config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0.1, 0.5)
            elif "norm" in name:
                p.normal_(1.0, 0.3)
            elif "embed" in name or "lm_head" in name:
                p.normal_(0.0, 0.4)
            else:
                p.normal_(0.0, 1.5 / math.sqrt(p.shape[1]))
    return model.float().eval()


def spell_as_released(path):
    """config.json with the keys of the released Qwen2 and Qwen2.5 folders."""
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= dict(sliding_window=131072, max_window_layers=config["num_hidden_layers"], use_mrope=False, transformers_version="4.43.1")
    del config["layer_types"], config["pad_token_id"]
    path.write_text(json.dumps(config, indent=2) + "\n")


def batch(used):
    """Sequences of odd lengths. A supervised token is predicted from the one before it; one mask has a hole in it."""
    supervised = [
        [0] * 4 + [1] * 9,
        [0] * 2 + [1] * 3,
        [0] * 5 + [1] * 4 + [0] * 6 + [1] * 8,
        [0] * 10 + [1] * 1,
    ]
    return [(torch.randint(used, (len(mask),)), torch.tensor(mask)) for mask in supervised]


def losses(model, sequences):
    """(token mean, mean of per-sequence token means)"""
    sums, counts = [], []
    for tokens, mask in sequences:
        logits = model(tokens[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        sums.append((nll * mask[1:]).sum())
        counts.append(mask[1:].sum())
    sums, counts = torch.stack(sums), torch.stack(counts)
    return dict(tokens=sums.sum() / counts.sum(), sequences=(sums / counts).mean())


def gradients(model, sequences, normalize):
    model.zero_grad()
    losses(model, sequences)[normalize].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def train(model, sequences, spec):
    parameters = dict(model.named_parameters())
    groups = [dict(params=[p for p in parameters.values() if p.dim() >= 2], weight_decay=WEIGHT_DECAY),
              dict(params=[p for p in parameters.values() if p.dim() < 2], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=spec["lr"], betas=BETAS, eps=EPS)
    name = "constant_with_warmup" if spec["schedule"] == "constant" else spec["schedule"]
    schedule = get_scheduler(name, optimizer, num_warmup_steps=spec["warmup"], num_training_steps=STEPS)
    trace = []
    for step in range(STEPS):
        lr = schedule.get_last_lr()[0]
        optimizer.zero_grad()
        loss = losses(model, sequences)[spec["normalize"]]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimizer.step()
        schedule.step()
        trace.append(dict(loss=loss.item(), grad_norm=norm.item(), lr=lr))
    return trace


@torch.no_grad()
def greedy(model, used):
    """Greedy continuations over the used ids, with the gap between the best two logits at every step."""
    rows = []
    for length in (1, 2, 3, 5, 7, 8, 12, 17):
        prompt = torch.randint(used, (length,)).tolist()
        tokens, gaps = list(prompt), []
        for _ in range(NEW_TOKENS):
            best = model(torch.tensor([tokens])).logits[0, -1, :used].topk(2)
            tokens.append(best.indices[0].item())
            gaps.append((best.values[0] - best.values[1]).item())
        rows.append(dict(prompt=prompt, tokens=tokens[length:], gaps=gaps))
    return rows


def write(name, spec):
    model = build(spec["seed"], spec["config"])
    sequences = batch(spec["used"])
    folder = OUT / name
    (folder / "expected").mkdir(parents=True)
    model.save_pretrained(folder, **(dict(max_shard_size=spec["shard"]) if spec["shard"] else {}))
    (folder / "generation_config.json").unlink()
    if spec["spelling"] == "old":
        spell_as_released(folder / "config.json")

    with torch.no_grad():
        loss = {key: value.item() for key, value in losses(model, sequences).items()}
        tensors = {f"logits.{i}": model(tokens[None]).logits[0].clone() for i, (tokens, _) in enumerate(sequences)}
    norms = {}
    for normalize in ("tokens", "sequences"):
        grads = gradients(model, sequences, normalize)
        norms[normalize] = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
        tensors |= {f"grad.{normalize}.{key}": g for key, g in grads.items()}
    generations = greedy(model, spec["used"])
    trace = train(model, sequences, spec)
    tensors |= {f"after.{key}": p.detach() for key, p in model.named_parameters()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "expected/model.safetensors")

    facts = dict(
        made_by=dict(torch=torch.__version__, transformers=transformers.__version__),
        used_vocabulary=spec["used"],
        sequences=[dict(tokens=t.tolist(), supervised=m.tolist()) for t, m in sequences],
        loss=loss,
        grad_norm=norms,
        training=dict(normalize=spec["normalize"], lr=spec["lr"], schedule=spec["schedule"], warmup_steps=spec["warmup"], steps=STEPS,
                      betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, clip=CLIP, trace=trace),
        generations=generations,
    )
    text = json.dumps(facts, indent=1)
    (folder / "expected/expected.json").write_text(text + "\n")
    print(name, loss, norms, [round(t["grad_norm"], 3) for t in trace], "smallest gap", min(min(g["gaps"]) for g in generations))


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    for name, spec in MODELS.items():
        write(name, spec)


if __name__ == "__main__":
    main()
