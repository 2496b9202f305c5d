#!/usr/bin/env python3
"""Residual + RMSNorm, forward and backward: `limo-engine bench rmsnorm` next to PyTorch, in one run.

Rounds of ours and of every peer alternate on one GPU; the median round counts. Peers: PyTorch's fused rms_norm after an
addition ("eager"), and the same function through torch.compile ("compiled"). Each is captured as a CUDA graph that walks
over operands of at least 180 MB, so that neither Python's overhead nor the cache is in the numbers. Bytes are counted as
`bench` counts them. --check compares the peers with the formula in float64 on the CPU and needs no GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

TOKENS = 16384
WIDTHS = (896, 3584, 5120)
EPS = 1e-6
ROTATION_BYTES = 180 << 20
ROUNDS = 3
REPLAYS = 50
# A shape a width and grad mode: more than torch.compile recompiles by default before it gives up.
torch._dynamo.config.recompile_limit = 64


def residual_rms_norm(x, delta, weight):
    """x, delta [T, D]; weight [D] -> the new residual stream and its normalised value, both [T, D]."""
    total = x + delta
    return total, F.rms_norm(total, weight.shape, weight, EPS)


PEERS = {"eager": residual_rms_norm, "compiled": torch.compile(residual_rms_norm, dynamic=False)}


class Operands:
    """One set: inputs of both directions, and the graph that autograd keeps between them."""

    def __init__(self, function, tokens, width, dtype, device):
        self.function = function
        normal = lambda *shape: torch.randn(*shape, device=device, dtype=torch.float32).to(dtype)
        self.x, self.delta = normal(tokens, width).requires_grad_(), normal(tokens, width)
        self.weight = (1 + 0.3 * normal(width)).to(dtype).requires_grad_()
        self.above, self.dy = normal(tokens, width), normal(tokens, width)
        self.outputs = function(self.x, self.delta, self.weight)

    def forward(self):
        with torch.no_grad():
            return self.function(self.x, self.delta, self.weight)

    def backward(self):
        """The gradient of the stream (with what arrives from above) and of the weight."""
        return torch.autograd.grad(self.outputs, (self.x, self.weight), (self.above, self.dy), retain_graph=True)


def reference(operands):
    """Both directions in float64: (sum, y), (dx, dweight)."""
    x, delta, weight = (t.detach().double().cpu() for t in (operands.x, operands.delta, operands.weight))
    total = (x + delta).to(operands.x.dtype).double().requires_grad_()
    weight.requires_grad_()
    y = total / (total.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight
    gradients = (operands.above.double().cpu(), operands.dy.double().cpu())
    return (total.detach(), y.detach()), torch.autograd.grad((total.clone(), y), (total, weight), gradients)


def verify(name, tokens, width, device):
    operands = Operands(PEERS[name], tokens, width, torch.bfloat16, device)
    forward, backward = reference(operands)
    for found, expected in zip((*operands.forward(), *operands.backward()), (*forward, *backward)):
        error = ((found.double().cpu() - expected).norm() / expected.norm()).item()
        if not error <= 1e-2:
            raise SystemExit(f"{name}, D {width}: a result of PyTorch is off by {error:.3e}")


def captured(sets, direction):
    """A CUDA graph that runs one direction on every set, warmed up on a side stream as capturing asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            for operands in sets:
                getattr(operands, direction)()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [getattr(operands, direction)() for operands in sets]
    return graph, kept


def time_peer(name, direction, width):
    """Median milliseconds of one call."""
    torch.manual_seed(0)
    streams = 4  # [T, D] tensors that cross memory, forward and backward alike
    count = max(2, -(-ROTATION_BYTES // (streams * TOKENS * width * 2)))
    sets = [Operands(PEERS[name], TOKENS, width, torch.bfloat16, "cuda") for _ in range(count)]
    graph, _kept = captured(sets, direction)
    for _ in range(10):
        graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / count)
    return statistics.median(times)


def time_ours(limo):
    """Milliseconds of the last version of each ladder, the one that ships, by direction and width; and the whole report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.json"
        subprocess.run([limo, "bench", "rmsnorm", "--device", "cuda", "--json", path], check=True, stdout=subprocess.DEVNULL)
        report = json.loads(path.read_text())
    last = {}
    for row in report["results"]:
        direction, _ = row["version"].split()
        width = int(row["shape"].split("D ")[1])
        last[direction, width] = (row["milliseconds"], row["share_of_copy"])
    return last, report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limo", default=".gpu/limo-engine", help="the binary (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--check", action="store_true", help="compare the peers with the formula on the CPU, and stop")
    arguments = parser.parse_args()
    if arguments.check:
        for name in PEERS:
            verify(name, 37, 96, "cpu")
        print("peers compute residual + RMSNorm and its gradient")
        return
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")

    cases = [(direction, width) for direction in ("forward", "backward") for width in WIDTHS]
    for name in PEERS:
        for width in WIDTHS:
            verify(name, 1024, width, "cuda")
    ours, peers, shares = {}, {}, {}
    for _ in range(ROUNDS):
        last, report = time_ours(arguments.limo)
        for case in cases:
            ours.setdefault(case, []).append(last[case][0])
            shares.setdefault(case, []).append(last[case][1])
            for name in PEERS:
                peers.setdefault((name, *case), []).append(time_peer(name, *case))
                torch.cuda.empty_cache()

    rows = []
    for direction, width in cases:
        row = {"direction": direction, "tokens": TOKENS, "width": width, "ours_ms": statistics.median(ours[direction, width])}
        row["ours_share_of_copy"] = statistics.median(shares[direction, width])
        row["ours_rounds_ms"] = ours[direction, width]
        for name in PEERS:
            rounds = peers[name, direction, width]
            row[f"{name}_ms"] = statistics.median(rounds)
            row[f"{name}_rounds_ms"] = rounds
            row[f"speedup_over_{name}"] = row[f"{name}_ms"] / row["ours_ms"]
        rows.append(row)
    if arguments.json:
        conditions = {key: report[key] for key in ("limo_engine", "commit", "device")}
        conditions |= {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "rounds": ROUNDS}
        arguments.json.write_text(json.dumps({**conditions, "results": rows}, indent=2) + "\n")
    print(f"{report['device']}, PyTorch {torch.__version__}, T {TOKENS}, median of {ROUNDS} rounds")
    print(f"{'':9} {'D':>5} {'ours ms':>9} {'of copy':>8}" + "".join(f"{name + ' ms':>12} {'ratio':>6}" for name in PEERS))
    for row in rows:
        line = f"{row['direction']:9} {row['width']:5} {row['ours_ms']:9.4f} {row['ours_share_of_copy']:8.1%}"
        print(line + "".join(f"{row[name + '_ms']:12.4f} {row['speedup_over_' + name]:6.2f}" for name in PEERS))


if __name__ == "__main__":
    main()
