#!/usr/bin/env python3
"""Sampling here and in transformers: generated tokens per second of `limo-engine sample`, of `generate` and of continuous batching (`generate_batch`).

    python tools/compare/sampling.py [--rounds 3] [--json FILE]                          64 prompts x 8 samples on a CPU, float32, a model of 42 M parameters
    python tools/compare/sampling.py --model DIR --input P.jsonl --device cuda           a model of your own, in bf16
    python tools/compare/sampling.py --only generate-512                                 one way of transformers, without us; --only ours, us alone
    python tools/compare/sampling.py --model DIR --device cuda --decode 256 4096         our decode step of 256 rows of about 4,096 tokens, next to the time to read it

Both sides answer the same rows with the same chat template, model, number of threads, temperature 1 and limit, every process for itself; token ids of the prompts are
compared. A token counts up to and including the one that ends an answer: padding behind it does not. Our time is that of the whole process, start, loading and
writing included; theirs begins with a loaded model, warmed up. transformers draws from the full distribution with sdpa attention in inference mode, prompts ordered by
length; each way of it that is asked for runs once, then the best and ours take turns, and medians count. Needs torch and transformers, and a release build of limo-engine.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sampling_model import SMALL, make, write_prompts

ROOT = Path(__file__).resolve().parents[2]
CPU = ["generate-64", "generate-128", "generate-512", "continuous"]
GPU = ["generate-64", "generate-256", "continuous", "continuous-tuned"]
# What an expert would set for an offline job: both launch paths recorded as graphs, host work beside the device's, kernels fused, evicted caches kept in host memory.
TUNED = dict(use_cuda_graph=True, use_async_batching=True, default_compile_level=2, cpu_offload_space=16.0)


def ours(args, prompts, folder):
    output = folder / "samples.jsonl"
    for file in folder.glob("samples.jsonl*"):
        file.unlink()
    command = [args.binary, "sample", "--model", args.model, "--input", args.input, "--output", output, "-n", args.samples, "--temperature", 1,
               "--max-tokens", args.max_tokens, "--seed", args.seed, "--device", args.device, *args.flags]
    began = time.perf_counter()
    with open(folder / "ours.log", "w+") as log:
        process = subprocess.Popen([str(word) for word in command], env=os.environ | dict(RAYON_NUM_THREADS=str(args.threads)), stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        log.seek(0)
        said = log.read()
    assert status == 0, said[-2000:]
    within = float(re.search(r"tokens in ([0-9.]+) s,", said)[1])
    steps = re.search(r"^steps: (.*)", said, re.M)[1]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == len(prompts) * args.samples, f"{len(rows)} answers"
    return dict(seconds=seconds, within=within, steps=steps, processor=usage.ru_utime + usage.ru_stime, lengths=[row["tokens"] for row in rows])


def prompt_lengths(args, folder):
    """Tokens of each prompt as we make them, without the words that open an answer."""
    command = [args.binary, "score", "--model", args.model, "--input", args.input, "--output", folder / "scores.jsonl", "--target", "prompt", "--device", args.device]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line)["tokens"] for line in (folder / "scores.jsonl").read_text().splitlines()]


def encode(args, opened):
    """Token ids of each prompt as transformers makes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=1 << 30)
    rows = [json.loads(line) for line in Path(args.input).read_text().splitlines()]
    text = lambda row: next(row[key] for key in ("prompt", "question", "problem") if key in row)
    messages = [row.get("messages") or [dict(role="user", content=text(row))] for row in rows]
    return [tokenizer.apply_chat_template(m, add_generation_prompt=opened, return_dict=False) for m in messages]


def theirs(args, prompts, folder, way):
    """The same in a process of its own, which prints its figures as its last line."""
    job = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()} | dict(prompts=prompts, way=way)
    (folder / "peer.json").write_text(json.dumps(job))
    process = subprocess.run([sys.executable, __file__, "--peer", folder / "peer.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.returncode != 0:
        raise RuntimeError((process.stderr.strip().splitlines() or [f"ended with {process.returncode}"])[-1])
    return json.loads(process.stdout.splitlines()[-1])


def peer(job):
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    device, prompts = job["device"], sorted(job["prompts"], key=len)
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa", **(dict(device_map=device) if device != "cpu" else {})).eval()
    # The folder's own generation_config gives the ids that end an answer, and nothing else.
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    pad = model.generation_config.pad_token_id
    settings = lambda tokens, samples: GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens, num_return_sequences=samples, eos_token_id=ends,
        pad_token_id=ends[0] if pad is None else pad, use_cache=True)
    if job["way"].startswith("continuous"):
        run = continuous(job, model, prompts, settings)
    else:
        with torch.inference_mode():
            run = generate(job, model, prompts, settings, ends)
    print(json.dumps(run))


class Clock:
    """Seconds, and those of all cores together, since it was made."""

    def __init__(self):
        self.began = time.perf_counter(), time.process_time()

    def read(self):
        return dict(seconds=time.perf_counter() - self.began[0], processor=time.process_time() - self.began[1])


def generate(job, model, prompts, settings, ends):
    import torch

    samples = job["samples"]
    rows = max(int(job["way"].split("-")[1]) // samples, 1)
    batches = [prompts[i:i + rows] for i in range(0, len(prompts), rows)]

    def answer(batch, tokens):
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch], device=model.device)
        return model.generate(ids, attention_mask=mask, generation_config=settings(tokens, samples))[:, longest:].tolist()

    answer(batches[-1], 8)
    clock, lengths, computed = Clock(), [], 0
    for batch in batches:
        answers = answer(batch, job["max_tokens"])
        lengths += [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in answers]
        computed += len(answers[0]) * len(answers)
    return clock.read() | dict(lengths=lengths, computed=computed, operators=operators(job, lambda: answer(batches[-1], job["max_tokens"])))


def continuous(job, model, prompts, settings):
    from transformers import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    # Releases differ in what can be set.
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    tuned = {key: value for key, value in TUNED.items() if key in known}
    if job["way"].endswith("tuned") and tuned != TUNED:
        print(f"this release does not know {sorted(TUNED.keys() - tuned.keys())}", file=sys.stderr)
    config = ContinuousBatchingConfig(seed=job["seed"], **(tuned if job["way"].endswith("tuned") else {}))
    count = len(prompts) * job["samples"]
    hints = WorkloadHints(max_prompt_length=max(map(len, prompts)), max_generated_length=job["max_tokens"], num_requests=count)
    lengths = []
    # Entering it records graphs and compiles. It works in a thread of its own, in its own mode: inference mode here would break it.
    with model.continuous_batching_context_manager(settings(job["max_tokens"], job["samples"]), continuous_batching_config=config, workload_hints=hints) as manager:
        clock = Clock()
        manager.add_requests(inputs=prompts, max_new_tokens=job["max_tokens"])
        while len(lengths) < count:
            result = manager.get_result(timeout=1)
            assert result or manager.is_running(), "continuous batching ended early"
            if result and result.is_finished():
                assert result.error is None, result.error
                lengths.append(len(result.generated_tokens))
        return clock.read() | dict(lengths=lengths)


def operators(job, work):
    """With --profile: the share of each kind of operator in the time of `work`."""
    if not job["profile"]:
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as trace:
        work()
    total = sum(event.self_cpu_time_total for event in trace.key_averages())
    shares = sorted(((event.self_cpu_time_total / total, event.key) for event in trace.key_averages()), reverse=True)
    return [f"{100 * share:.1f} % {name}" for share, name in shares[:12]]


def summary(name, run):
    tokens = sum(run["lengths"])
    run |= dict(name=name, tokens=tokens, tokens_per_s=tokens / run["seconds"])
    wasted = f", {100 - 100 * tokens / run['computed']:.0f} % of the rows computed were padding" if "computed" in run else ""
    print(f"{name}: {tokens} tokens of {len(run.pop('lengths'))} answers in {run['seconds']:.1f} s ({run['processor']:.1f} s of cores), "
          f"{run['tokens_per_s']:.0f} tokens/s{wasted}", flush=True)
    for line in run.get("operators") or []:
        print(f"  {line}", flush=True)
    return run


def compare(args, folder):
    import torch
    import transformers

    prompts = encode(args, True)
    print(f"{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens x {args.samples} samples of at most {args.max_tokens} tokens; "
          f"{args.device}, {args.threads} threads; torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    if args.only:
        run = ours(args, prompts, folder) if args.only == "ours" else theirs(args, prompts, folder, args.only)
        return summary(args.only, run)
    mine = prompt_lengths(args, folder)
    assert mine in ([len(ids) for ids in prompts], [len(ids) for ids in encode(args, False)]), "the two sides tokenise the prompts differently"
    trials = []
    for way in args.ways:
        try:
            trials.append(summary(way, theirs(args, prompts, folder, way)))
        except RuntimeError as error:
            print(f"{way}: does not run here: {error}", flush=True)
    best = max(trials, key=lambda run: run["tokens_per_s"])["name"]
    rounds = []
    for _ in range(args.rounds):
        rounds.append([summary("limo-engine", ours(args, prompts, folder)), summary(best, theirs(args, prompts, folder, best))])
    means = [statistics.mean(side["tokens"] for side in column) for column in zip(*rounds)]
    assert 0.8 < means[0] / means[1] < 1.25, f"the two sides generate different amounts: {means} tokens"
    mine, their = (statistics.median(side["tokens_per_s"] for side in column) for column in zip(*rounds))
    print(f"median of {args.rounds}: {mine:.0f} tokens/s, transformers {best} {their:.0f}, ratio {mine / their:.2f}")
    return dict(device=args.device, threads=args.threads, torch=torch.__version__, transformers=transformers.__version__, best=best, trials=trials, rounds=rounds,
                ours=mine, theirs=their, ratio=mine / their)


def decode(args, folder):
    """Our decode step of so many rows of about so many tokens, and what reading the weights and their keys and values takes at the speed of a copy."""
    count, context = args.decode
    args.input, args.samples, args.max_tokens = folder / "long.jsonl", 1, 128

    def lengths(questions):
        write_prompts(args.input, count, questions)
        return [len(ids) for ids in encode(args, True)]

    each = (sum(lengths(10)) - sum(lengths(5))) / (5 * count)
    prompts = lengths(max(round((context - args.max_tokens / 2) / each), 1))
    run = ours(args, prompts, folder)
    config = json.loads((args.model / "config.json").read_text())
    rows, step = (float(re.search(pattern, run["steps"])[1]) for pattern in (r"([0-9.]+) tokens each", r"of answers, ([0-9.]+) ms each"))
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    cached = rows * (statistics.mean(prompts) + statistics.mean(run["lengths"]) / 2) * config["num_hidden_layers"] * config["num_key_value_heads"] * head * 4
    # The embedding is looked up, not read.
    weights = sum(file.stat().st_size for file in args.model.glob("*.safetensors")) - config["vocab_size"] * config["hidden_size"] * 2
    bound = 1e3 * (weights + cached) / args.bandwidth
    print(f"{rows:.1f} rows of {statistics.mean(prompts):.0f} tokens and up to {args.max_tokens} new ones: {step:.2f} ms a step, "
          f"{bound:.2f} ms to read {weights / 1e9:.1f} + {cached / 1e9:.1f} GB: {100 * bound / step:.0f} %\n{run['steps']}")
    return dict(name="decode", rows=rows, context=statistics.mean(prompts), step_ms=step, bound_ms=bound, share=bound / step, steps=run["steps"])


def ratios(files):
    """Of runs that --only wrote, named SIZE-WAY in their files' names: each next to ours of the same size."""
    runs = {}
    for file in files:
        run = json.loads(file.read_text())
        if run["name"] == "decode":
            print(f"{file.stem}: {run['rows']:.0f} rows of {run['context']:.0f} tokens, {run['step_ms']:.2f} ms a step, {100 * run['share']:.0f} % of the bound")
            continue
        size = file.stem.removesuffix(f"-{run['name']}")
        runs.setdefault(size, []).append((run["name"], run["tokens"] / run.get("within", run["seconds"])))
    for size, rates in runs.items():
        mine = dict(rates).get("ours")
        for name, rate in rates:
            print(f"{size} {name}: {rate:.0f} tokens/s" + (f", ours is {mine / rate:.2f} x" if mine and name != "ours" else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; default: one that is made, of random weights")
    parser.add_argument("--input", type=Path, help="rows of prompts; default: prompts.jsonl of the model")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--mean", type=float, default=120, help="tokens of an answer of the model that is made")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="*", help=f"of transformers; default: {' '.join(CPU)} on a CPU, {' '.join(GPU)} on a GPU; the number is that of rows in a batch")
    parser.add_argument("--only", help="one way, or `ours`, once")
    parser.add_argument("--decode", type=int, nargs=2, metavar=("ROWS", "TOKENS"), help="time our decode steps, without transformers")
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes a second of a copy on this device; default: an H200's")
    parser.add_argument("--profile", action="store_true", help="of generate: the shares of operators in one more run of its last batch")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/limo-engine")
    parser.add_argument("--flags", nargs="*", default=[], help="more flags of `limo-engine sample`")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="JSON", help="print the figures of runs with --only, each next to ours, counted within the loaded process")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(json.loads(args.peer.read_text()))
    if args.summary:
        return ratios(args.summary)
    args.ways = args.ways or (CPU if args.device == "cpu" else GPU)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if not args.model:
            args.model = folder / "model"
            args.model.mkdir()
            make(args.model, SMALL, args.mean, "cpu", "float32")
            write_prompts(args.model / "prompts.jsonl", 64)
        args.input = args.input or args.model / "prompts.jsonl"
        results = decode(args, folder) if args.decode else compare(args, folder)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
