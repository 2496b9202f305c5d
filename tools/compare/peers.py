#!/usr/bin/env python3
"""What ships here next to PyTorch: `limo-engine bench --shipped` and the peers of ops.py on one GPU.

Rounds of ours and of theirs alternate; the median round counts. A peer is captured as a CUDA graph that walks over operands of at least 180 MB, so
that neither Python's overhead nor the cache is in the numbers, and is timed with events. Bytes and FLOPs are those that `bench` counts.
--check compares the peers with float64 on the CPU, and --device cpu runs everything but the GPU at a tiny size: neither needs a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ops import OPS

ROTATION_BYTES = 180 << 20
ROUNDS = 3
REPLAYS = 50
BUDGET_MS = 500
TINY = {"name": "tiny", "hidden": 64, "heads": {"query": 4, "kv": 2, "dim": 16}, "feed_forward": 96, "vocabulary": 160}
TINY_TOKENS = 48
# A shape a model and direction: more than torch.compile recompiles by default before it gives up. Backward passes run many times.
torch._dynamo.config.recompile_limit = 64
torch._functorch.config.donated_buffer = False


class Set:
    """Operands of a peer, and the graph that autograd keeps between its directions."""

    def __init__(self, op, function, model, tokens, device, backward):
        normal = lambda *shape: torch.randn(*shape, device=device).to(torch.bfloat16)
        self.function = function
        self.inputs = op.make(model, tokens, normal)
        self.leaves = [x for x in self.inputs if torch.is_tensor(x) and x.requires_grad]
        if backward:
            self.outputs = self.results()
            self.gradients = [normal(*y.shape).to(y.dtype) if y.dim() else torch.ones_like(y) for y in self.outputs]

    def results(self):
        results = self.function(*self.inputs)
        return results if isinstance(results, tuple) else (results,)

    def forward(self):
        with torch.no_grad():
            return self.results()

    def backward(self):
        return torch.autograd.grad(self.outputs, self.leaves, self.gradients, retain_graph=True)

    def both(self):
        return torch.autograd.grad(self.results(), self.leaves)

    def bytes(self):
        return sum(x.nbytes for x in self.inputs if torch.is_tensor(x))


def verify(op, name, model, tokens, device):
    """Compares outputs and gradients of a peer with the formula in float64."""
    ours = Set(op, op.peers[name], model, tokens, device, True)
    exact = [x.detach().double().cpu() if torch.is_tensor(x) and x.is_floating_point() else x.cpu() for x in ours.inputs]
    for x, original in zip(exact, ours.inputs):
        x.requires_grad_(original.requires_grad)
    results = op.formula(*exact)
    results = results if isinstance(results, tuple) else (results,)
    leaves = [x for x in exact if x.requires_grad]
    gradients = torch.autograd.grad(results, leaves, [g.double().cpu() for g in ours.gradients])
    for found, expected in zip((*ours.outputs, *ours.backward()), (*results, *gradients)):
        error = ((found.double().cpu() - expected).norm() / expected.norm()).item()
        if not error <= 2e-2:
            raise SystemExit(f"{op.bench}, {name}: a result of PyTorch is off by {error:.3e}")


def captured(sets, direction):
    """A CUDA graph that runs one direction on every set, warmed up on a side stream as capturing asks."""
    run = lambda: [getattr(operands, direction)() for operands in sets]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    return graph, kept


def milliseconds_of(run, device):
    if device == "cpu":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def time_peer(op, name, direction, model, tokens, device):
    """Median milliseconds of one call, and the names of the kernels that took longest."""
    torch.manual_seed(0)
    make = lambda: Set(op, op.peers[name], model, tokens, device, direction == "backward")
    sets = [make()]
    if device == "cuda":
        sets += [make() for _ in range(-(-ROTATION_BYTES // sets[0].bytes()) - 1)]
        graph, _kept = captured(sets, direction)
        replay, ran = graph.replay, longest_kernels(graph.replay)
    else:
        replay, ran = getattr(sets[0], direction), []
    estimate = min(milliseconds_of(replay, device) for _ in range(2))
    replays = max(3, min(REPLAYS, int(BUDGET_MS / estimate)))
    return statistics.median(milliseconds_of(replay, device) for _ in range(replays)) / len(sets), ran


def longest_kernels(run):
    """Which library's kernels PyTorch chose."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    return [event.key[:80] for event in events[:2]]


def time_ours(limo, ops, models):
    """The whole report of what ships."""
    command = [limo, "bench", *(op.bench for op in ops), "--shipped", "--device", "cuda"]
    command += [argument for model in models for argument in ("--model", model)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.json"
        subprocess.run([*command, "--json", path], check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())


def our_line(report, op, direction, model):
    matches = lambda line: line["bench"] == op.bench and line["model"] == model and line["ships"]
    return next(line for line in report["results"] if matches(line) and line["version"].startswith(op.versions[direction]))


def run(arguments, ops):
    """Every op, direction and model: a row with ours and each peer."""
    tiny = arguments.device == "cpu"
    for op in ops if not tiny else []:
        for name in op.peers if op.formula else []:
            verify(op, name, TINY | {"heads": {"query": 4, "kv": 2, "dim": 64}}, 256, "cuda")
    rows, report = {}, {"tokens": TINY_TOKENS, "models": [TINY]}
    for _ in range(ROUNDS):
        if not tiny:
            report = time_ours(arguments.limo, ops, arguments.model)
        models = [model for model in report["models"] if tiny or not arguments.model or model["name"] in arguments.model]
        for op, direction, model in ((op, d, m) for op in ops for d in op.versions for m in models):
            empty = {"op": op.bench, "direction": direction, "model": model["name"], "note": op.note, "ours_rounds_ms": [], "peers": {}}
            row = rows.setdefault((op.bench, direction, model["name"]), empty)
            if not tiny:
                ours = our_line(report, op, direction, model["name"])
                row |= {key: ours[key] for key in ("version", "shape", "bytes", "flops", "ceiling", "share")}
                row["ours_rounds_ms"].append(ours["milliseconds"])
            for name in op.peers:
                peer = row["peers"].setdefault(name, {"rounds_ms": [], "longest_kernels": []})
                try:
                    milliseconds, peer["longest_kernels"] = time_peer(op, name, direction, model, report["tokens"], arguments.device)
                    peer["rounds_ms"].append(milliseconds)
                except RuntimeError as error:  # out of memory, say: the others still count
                    peer["error"] = str(error)[:300]
                if not tiny:
                    torch.cuda.empty_cache()
            write(arguments, report, rows)
    return list(rows.values()), report


def write(arguments, report, rows):
    """After each row, so that a failure loses none."""
    for row in rows.values():
        row["ours_ms"] = statistics.median(row["ours_rounds_ms"]) if row["ours_rounds_ms"] else None
        for peer in row["peers"].values():
            peer["ms"] = statistics.median(peer["rounds_ms"]) if peer["rounds_ms"] else None
            peer["ours_is_faster_by"] = peer["ms"] / row["ours_ms"] if peer["ms"] and row["ours_ms"] else None
    if arguments.json:
        conditions = {key: report.get(key) for key in ("limo_engine", "commit", "device", "tokens")}
        conditions |= {"torch": torch.__version__, "rounds": ROUNDS}
        arguments.json.write_text(json.dumps({**conditions, "results": list(rows.values())}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="*", help=f"of {', '.join(op.bench for op in OPS)}; default: all")
    parser.add_argument("--model", action="append", default=[], help="only the shapes of this model, such as 7B; may be repeated")
    parser.add_argument("--limo", default=".gpu/limo-engine", help="the binary (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--check", action="store_true", help="compare the peers with float64 on the CPU, and stop")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run at a tiny size, without ours")
    arguments = parser.parse_args()
    known = {op.bench: op for op in OPS}
    if unknown := [name for name in arguments.op if name not in known]:
        parser.error(f"no op {unknown[0]!r}; known: {', '.join(known)}")
    ops = [known[name] for name in arguments.op or known]
    if arguments.check:
        for op in (op for op in ops if op.formula):
            for name in op.peers:
                verify(op, name, TINY, TINY_TOKENS, "cpu")
                print(f"{op.bench}, {name}: computes the formula and its gradients")
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")

    rows, report = run(arguments, ops)
    print(f"{report.get('device', 'CPU, a dry run: these times mean nothing')}, PyTorch {torch.__version__}, median of {ROUNDS} rounds")
    for row in rows:
        ours = "-" if row["ours_ms"] is None else f"{row['ours_ms']:.4f} ms, {row['share']:.1%} of {row['ceiling']}"
        print(f"{row['op']} {row['direction']}, {row['model']}: ours {ours}")
        for name, peer in row["peers"].items():
            took = f"{peer['ms']:.4f} ms" if peer["ms"] else f"failed: {peer['error']}"
            ratio = f", ours is {peer['ours_is_faster_by']:.2f} times as fast" if peer["ours_is_faster_by"] else ""
            print(f"    {name}: {took}{ratio} {' + '.join(peer['longest_kernels'])}")


if __name__ == "__main__":
    main()
