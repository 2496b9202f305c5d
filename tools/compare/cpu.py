#!/usr/bin/env python3
"""Training on the CPU here and in transformers (float32): tokens per second, and peak memory.

    python tools/compare/cpu.py speed  [--rounds 3] [--json FILE]     13 M parameters at 4 x 512 tokens, 53 M at 1 x 2048
    python tools/compare/cpu.py memory [--json FILE]                  53 M parameters, one row of 8,192 and one of 16,384 tokens

Both sides train the same weights on the same token ids, and their losses must agree: forward, backward, gradient norm and clipping, AdamW.
Rounds of ours and theirs alternate, each in a process of its own; a round's figure is the median step after the first two, the result the median
round. Speed is against eager attention. Memory is the process's largest resident set, nothing recomputed here; there, eager attention, the same with
gradient checkpointing, and scaled_dot_product_attention. Needs torch and transformers, and a release build of limo-engine.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMON = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1e6,
              max_position_embeddings=32768, initializer_range=0.02, tie_word_embeddings=True, use_sliding_window=False)
MODELS = {
    "13M": dict(COMMON, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2, vocab_size=9216),
    "53M": dict(COMMON, hidden_size=640, intermediate_size=1728, num_hidden_layers=10, num_attention_heads=10, num_key_value_heads=2,
                vocab_size=16384),
}
WARM_UP = 2
LR, EPS, CLIP = 1e-4, 1e-8, 1.0


def token_ids(rows, tokens):
    """Chats of exactly `tokens` tokens (a digit is a token), as rows and as ids with the mask of the answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs/tiny", model_max_length=tokens)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = tokenizer.apply_chat_template([dict(role="user", content="Digits?")], add_generation_prompt=True, tokenize=False)
    answered = tokenizer.apply_chat_template([dict(role="user", content="Digits?"), dict(role="assistant", content="0")], tokenize=False)
    end = answered[len(prompt) + 1:]
    made = []
    for row in range(rows):
        length = tokens - len(encode(prompt)) - len(encode(end))
        answer = "".join(random.Random(row).choices("0123456789", k=length))
        ids = encode(prompt) + encode(answer + end)
        assert len(ids) == tokens, (len(ids), tokens)
        made.append(dict(row=dict(question="Digits?", solution=answer), ids=ids, masked=len(encode(prompt))))
    return made


def make(folder, model):
    """The model folder that both sides start from."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    Qwen2ForCausalLM(Qwen2Config(**model, dtype="float32")).save_pretrained(folder / "model")


def ours(binary, folder, batch, steps):
    """Seconds and loss of each step, and the peak of the resident set in bytes."""
    rows, tokens = len(batch), len(batch[0]["ids"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(made["row"]) + "\n" for made in batch))
    settings = dict(
        model=dict(path=str(folder / "model"), tokenizer=str(ROOT / "configs/tiny")), data=dict(train=[str(folder / "rows.jsonl")]),
        train=dict(batch=rows, micro_tokens=rows * tokens, max_steps=steps, save_every=10**9), output=dict(dir=str(folder / "run")), memory=dict(recompute="none"),
        optimizer=dict(lr=LR, schedule="constant", eps=EPS, clip=CLIP))
    flags = [f"-s{section}.{key}={json.dumps(value)}" for section, keys in settings.items() for key, value in keys.items()]
    (folder / "empty.toml").touch()
    process = subprocess.Popen([binary, "train", folder / "empty.toml", "--device", "cpu", "--overwrite", *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"limo-engine ended with {status}"
    metrics = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return dict(seconds=[row["seconds"] for row in metrics], losses=[row["loss"] for row in metrics], peak=usage.ru_maxrss * 1024)


def theirs(folder, batch, steps, attention, checkpointing=False):
    """The same, in a process of its own."""
    job = dict(model=str(folder / "model"), batch=batch, steps=steps, attention=attention, checkpointing=checkpointing)
    (folder / "peer.json").write_text(json.dumps(job))
    command = [sys.executable, __file__, "peer", folder / "peer.json"]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return json.loads(process.stdout.splitlines()[-1])


def peer(job):
    import resource

    import torch
    from transformers import Qwen2ForCausalLM

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.set_num_threads(os.cpu_count())
    # Out of memory is an exception of this process, not a choice of the kernel's.
    available = next(int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (available * 9 // 10,) * 2)
    baseline = peak()
    model = Qwen2ForCausalLM.from_pretrained(job["model"], attn_implementation=job["attention"], dtype=torch.float32)
    model.config.use_cache = False
    model.train()
    if job["checkpointing"]:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, eps=EPS, weight_decay=0.0)
    ids = torch.tensor([made["ids"] for made in job["batch"]])
    labels = ids.clone()
    for label, made in zip(labels, job["batch"]):
        label[: made["masked"]] = -100
    seconds, losses = [], []
    for _ in range(job["steps"]):
        began = time.perf_counter()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    print(json.dumps(dict(seconds=seconds, losses=losses, peak=peak(), baseline=baseline, parameters=model.num_parameters())))


def require_same_losses(mine, peers):
    pairs = list(zip(mine["losses"], peers["losses"]))
    assert pairs and all(abs(a / b - 1) < 1e-3 for a, b in pairs), f"the two do not compute the same: losses {pairs}"


def speed(args, folder):
    results = []
    for name, rows, tokens in (("13M", 4, 512), ("53M", 1, 2048)):
        batch = token_ids(rows, tokens)
        make(folder, MODELS[name])
        rounds = []
        for _ in range(args.rounds):
            mine, peers = ours(args.binary, folder, batch, args.steps), theirs(folder, batch, args.steps, "eager")
            require_same_losses(mine, peers)
            rounds.append([rows * tokens / statistics.median(side["seconds"][WARM_UP:]) for side in (mine, peers)])
        mine, their = (statistics.median(column) for column in zip(*rounds))
        results.append(dict(model=name, parameters=peers["parameters"], rows=rows, tokens=tokens, ours=mine, transformers=their, ratio=mine / their, rounds=rounds))
        print(f"{name} {rows} x {tokens}: {mine:.0f} tokens/s, transformers {their:.0f}, ratio {mine / their:.2f}", flush=True)
    return results


def memory(args, folder):
    results = []
    gib = lambda count: f"{count / 2**30:.2f} GiB"
    make(folder, MODELS["53M"])
    for tokens in args.tokens:
        batch = token_ids(1, tokens)
        mine = ours(args.binary, folder, batch, 2)
        results.append(dict(tokens=tokens, ours=mine["peak"]))
        print(f"53M 1 x {tokens}: {gib(mine['peak'])}", flush=True)
        for attention, checkpointing in (("eager", False), ("eager", True), ("sdpa", False)):
            name = f"transformers, {attention}" + (", checkpointing" if checkpointing else "")
            try:
                peers = theirs(folder, batch, 2, attention, checkpointing)
            except subprocess.CalledProcessError as error:
                print(f"  {name}: {error.stderr.decode().splitlines()[-1][:120]}", flush=True)
                continue
            require_same_losses(mine, peers)
            results[-1][name] = peers["peak"]
            print(f"  {name}: {gib(peers['peak'])}, of which {gib(peers['baseline'])} before the model", flush=True)
    if len(results) > 1:
        print(f"ours, {results[-1]['tokens']} tokens over {results[0]['tokens']}: {results[-1]['ours'] / results[0]['ours']:.2f}")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "peer"))
    parser.add_argument("job", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--binary", default=ROOT / "target/release/limo-engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384], help="of the rows of `memory`")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if args.what == "peer":
        return peer(json.loads(Path(args.job).read_text()))
    with tempfile.TemporaryDirectory() as folder:
        results = dict(speed=speed, memory=memory)[args.what](args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
