#!/usr/bin/env python3
"""A model folder of random weights whose answers end at geometric lengths, and prompts for it: what sampling is timed with.

    python tools/compare/sampling_model.py FOLDER [--config configs/models/qwen2.5-7b.json] [--mean 120] [--prompts 64] [--device cuda --dtype bfloat16]

Writes FOLDER (config, weights, tokenizer) and FOLDER/prompts.jsonl. The first element of the residual stream is the same for every token and no layer
changes it; the row of <|im_end|> in the output matrix reads that element alone. So the token that ends an answer has nearly the same probability at every position,
set on random tokens to 1 / MEAN. All other tokens are drawn from a distribution that the rest of the model computes. The tokenizer is that of
configs/tiny with entries that no text becomes, as many as the model has rows. Needs torch and transformers.
"""

import argparse
import json
import math
import random
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "configs/tiny"
SMALL = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=4096,
             hidden_size=512, intermediate_size=1408, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2, vocab_size=8192)
END, PAD = 450, 448


def write_tokenizer(folder, vocabulary):
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    # Special tokens keep their ids only if the vocabulary has them, once it goes on behind them.
    vocab |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocab |= {f"<unused {id}>": id for id in range(len(vocab), vocabulary)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(TOKENIZER / "tokenizer_config.json", folder)


def write_prompts(path, count, questions=None):
    """Each of 1 to 10 questions of configs/tiny, or of as many as asked for."""
    draw = random.Random(7)
    pool = [json.loads(line)["question"] for line in (TOKENIZER / "train.jsonl").read_text().splitlines()]
    rows = (dict(id=str(i), prompt=" ".join(draw.choices(pool, k=questions or draw.randint(1, 10)))) for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(folder, config, mean, device, dtype):
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**dict(config, tie_word_embeddings=False, eos_token_id=END, pad_token_id=PAD, bos_token_id=None, initializer_range=0.02,
                                use_sliding_window=False, dtype=dtype))
    torch.manual_seed(1)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device), torch.no_grad():
        model = Qwen2ForCausalLM(config).eval()
        head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
        head.normal_(0, 1 / math.sqrt(config.hidden_size))
        embedding.normal_(0, 1)
        embedding[:, 0] = 2
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        head[:, 0] = 0
        head[END] = 0
        states = model.model(torch.randint(PAD, (8, 64))).last_hidden_state.reshape(-1, config.hidden_size).float()
        others = (states @ head.float().T).logsumexp(-1)
        low, high = 0.0, 100.0
        for _ in range(50):
            weight = (low + high) / 2
            ends = torch.sigmoid(weight * states[:, 0] - others).mean()
            low, high = (low, weight) if ends > 1 / mean else (weight, high)
        head[END, 0] = weight
    torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=[END, PAD], pad_token_id=PAD)
    model.save_pretrained(folder)
    write_tokenizer(folder, config.vocab_size)
    return model.num_parameters()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, help="architecture; default: 50 M parameters")
    parser.add_argument("--mean", type=float, default=120, help="tokens of an answer")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    config = json.loads(args.config.read_text()) if args.config else SMALL
    args.folder.mkdir(parents=True, exist_ok=True)
    parameters = make(args.folder, config, args.mean, args.device, args.dtype)
    write_prompts(args.folder / "prompts.jsonl", args.prompts)
    print(f"{args.folder}: {parameters / 1e6:.0f} M parameters, {args.prompts} prompts, answers of {args.mean:.0f} tokens on average")


if __name__ == "__main__":
    main()
