"""Golden continuations: what transformers' `generate` answers greedily in float32, for tests/it/sampling_golden.rs.

    python tools/golden/sampling.py        (torch and transformers; rewrites tests/fixtures/golden/sampling.safetensors)

The models are those of model.py, as they lie in tests/fixtures/golden/models. Each prompt runs alone, without padding, with a cache. Their config.json
allows 128 positions; rotary embeddings do not depend on that number, so it is raised here, and in the test, to hold the longest prompt.
"""

from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

from model import MODELS

FIXTURES = Path(__file__).resolve().parents[2] / "tests/fixtures/golden"
# Prompts of every model: short ones, and both sides of multiples of 64, the tokens of a cache page.
LENGTHS = [*range(1, 17), 20, 24, 31, 33, 40, 48, 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 255, 256, 257, 383, 500, 640, 1000, 1500, 1999, 2000]
NEW_TOKENS = 28
POSITIONS = 2048
WORD = 2**64 - 1


def token(prompt, position, used):
    """Token `position` of prompt `prompt`, as the test computes it: SplitMix64's finaliser over the two numbers, modulo the ids in use."""
    x = ((prompt << 32) + position) * 0x9E3779B97F4A7C15 & WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return (x ^ (x >> 31)) % used


@torch.inference_mode()
def continuations(name, spec):
    """Tokens [prompts, NEW_TOKENS], the gap between the best two logits at each, and the natural log-probability of the best: among the ids in use, which
    answers are drawn from, and over the whole vocabulary, as a loss has it."""
    used = spec["used"]
    model = Qwen2ForCausalLM.from_pretrained(FIXTURES / "models" / name, dtype=torch.float32, attn_implementation="eager",
                                             max_position_embeddings=POSITIONS)
    rows = []
    for prompt, length in enumerate(LENGTHS):
        ids = torch.tensor([[token(prompt, position, used) for position in range(length)]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, max_new_tokens=NEW_TOKENS, eos_token_id=None,
                             pad_token_id=0, suppress_tokens=list(range(used, model.config.vocab_size)), return_dict_in_generate=True, output_logits=True)
        answer, logits = out.sequences[0, length:], torch.cat(out.logits).double()
        assert len(answer) == NEW_TOKENS
        best = logits[:, :used].topk(2)
        assert torch.equal(best.indices[:, 0], answer)
        drawn, scored = (best.values[:, 0] - those.logsumexp(-1) for those in (logits[:, :used], logits))
        rows.append((answer, best.values[:, 0] - best.values[:, 1], drawn, scored))
    tokens, gaps, drawn, scored = (torch.stack(column) for column in zip(*rows))
    print(f"{name}: {len(LENGTHS)} prompts, smallest gap {gaps.min():.1e}, {len(tokens.unique())} of {used} ids, distinct in a row: "
          f"{sum(len(row.unique()) for row in tokens) / len(tokens):.1f}")
    return {f"{name}.tokens": tokens.to(torch.uint8), f"{name}.gaps": gaps.float(), f"{name}.drawn": drawn.float(), f"{name}.scored": scored.float(),
            f"{name}.used": torch.tensor([used], dtype=torch.int32)}


def main():
    torch.set_num_threads(1)
    tensors = {"lengths": torch.tensor(LENGTHS, dtype=torch.int32)}
    for name, spec in MODELS.items():
        tensors |= continuations(name, spec)
    made_by = dict(torch=torch.__version__, transformers=transformers.__version__)
    save_file(tensors, FIXTURES / "sampling.safetensors", metadata=made_by)


if __name__ == "__main__":
    main()
