#!/usr/bin/env python3
"""What fewer bits cost in training: the tiny task in bf16 storage, every memory mode over the same seeds, as a picture and a table.

    python tools/compare/memory_modes.py --svg docs/memory_modes.svg      21 runs of 300 steps, one at a time; of one that is complete the records are read

A seed gives the weights to start from and the order of the rows, so the runs of one seed differ in their rounding alone. Figures: the training loss,
mean of the last 30 steps; the held-out loss after the last step (all rows of configs/tiny/heldout.jsonl).

A mode is within noise if, in both figures, its mean over the seeds differs from fp32's by no more than fp32's own seeds do, largest less smallest.
For three independent seeds of each that range is expected to be about two standard errors of such a difference. The table also has the difference seed
by seed, its mean and standard error, which sees less than the criterion forgives. The last row is a control: fp32 whose gradients are summed in another
order, so what it differs by is what any rounding does. Needs a release build of limo-engine.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "fp32"
# The control: two micro-batches a step, for most steps, instead of one.
CONTROL = "fp32, summed in another order"
# Name: settings and colour (Okabe and Ito's, told apart by the colour-blind).
MODES = {
    BASE: ({}, "#000000"),
    "bf16 moments": ({"optimizer.state": "bf16"}, "#e69f00"),
    "int8 moments": ({"optimizer.state": "int8"}, "#0072b2"),
    "stochastic weights": ({"optimizer.master": "stochastic"}, "#009e73"),
    "bf16 gradients": ({"optimizer.gradients": "bf16"}, "#cc79a7"),
    "int8 + stochastic + bf16 gradients": ({"optimizer.state": "int8", "optimizer.master": "stochastic", "optimizer.gradients": "bf16"}, "#d55e00"),
    CONTROL: ({"train.micro_tokens": 512}, "#56b4e9"),
}
WINDOW, LAST = 15, 30
WIDTH, LEFT, RIGHT = 860, 70, 20
TOP, HEIGHT, GAP = 122, 240, 62


def run(args, mode, seed):
    """Losses of the steps, and the held-out loss after the last. A run that is complete is not repeated: the program says so and ends."""
    folder = args.runs / f"{mode.replace(' + ', '-').replace(', ', '-').replace(' ', '-')}-{seed}"
    settings = {"train.max_steps": args.steps, "train.seed": seed, "train.save_every": args.steps, "train.eval_every": args.steps,
                "data.eval": ["configs/tiny/heldout.jsonl"], "samples.file": "", "samples.n": 0, "output.dir": str(folder.resolve())}
    flags = [f"-s{key}={json.dumps(value)}" for key, value in (settings | MODES[mode][0]).items()]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    command = [args.binary, "train", "configs/tiny.toml", "--device", "cpu", "--dtype", "bf16", *flags]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == args.steps, f"{folder}: {len(losses)} steps"
    return losses, next(row["eval_loss"] for row in reversed(rows) if "eval_loss" in row)


def smoothed(losses):
    return [statistics.fmean(losses[end - WINDOW:end]) for end in range(WINDOW, len(losses) + 1)]


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values))


def table(results):
    """Markdown. `results`: by mode, for each seed the losses and the held-out loss."""
    figures = {mode: ([statistics.fmean(losses[-LAST:]) for losses, _ in runs], [held for _, held in runs]) for mode, runs in results.items()}
    ranges = [max(values) - min(values) for values in figures[BASE]]
    print(f"| mode | training loss | − {BASE}, seed by seed | held-out loss | − {BASE}, seed by seed | within noise |\n|---|---|---|---|---|---|")
    for mode, both in figures.items():
        cells, within = [], True
        for values, base, spread in zip(both, figures[BASE], ranges):
            differences = [value - other for value, other in zip(values, base)]
            within &= abs(statistics.fmean(differences)) <= spread
            cells.append(f"{statistics.fmean(values):.4f} ± {standard_error(values):.4f}")
            cells.append(f"{statistics.fmean(differences):+.4f} ± {standard_error(differences):.4f}" if mode != BASE else f"(range {spread:.4f})")
        print(f"| {mode} | {' | '.join(cells)} | {'' if mode == BASE else 'yes' if within else '**no**'} |")


class Panel:
    """A plot of values over steps; `scale` is the identity or a logarithm."""

    def __init__(self, top, steps, low, high, scale=lambda value: value):
        self.top, self.steps, self.scale = top, steps, scale
        self.low, self.high = scale(low), scale(high)
        self.parts = []

    def x(self, step):
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.steps

    def y(self, value):
        return self.top + HEIGHT * (self.high - self.scale(value)) / (self.high - self.low)

    def points(self, values):
        return [f"{self.x(WINDOW + index):.1f},{self.y(value):.1f}" for index, value in enumerate(values)]

    def axes(self, title, ticks, form):
        self.parts.append(f'<text x="{LEFT}" y="{self.top - 10}" font-weight="bold">{title}</text>')
        for value in ticks:
            y = self.y(value)
            self.parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
            self.parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{form(value)}</text>')
        for step in range(0, self.steps + 1, max(1, self.steps // 6)):
            self.parts.append(f'<text x="{self.x(step):.1f}" y="{self.top + HEIGHT + 18}" text-anchor="middle">{step}</text>')

    def band(self, low, high, colour, opacity):
        outline = " ".join(self.points(high) + self.points(low)[::-1])
        self.parts.append(f'<polygon points="{outline}" fill="{colour}" fill-opacity="{opacity}"/>')

    def line(self, values, colour):
        self.parts.append(f'<polyline points="{" ".join(self.points(values))}" fill="none" stroke="{colour}" stroke-width="1.6"/>')


def extremes(curves):
    return [min(column) for column in zip(*curves)], [max(column) for column in zip(*curves)]


def mean(curves):
    return [statistics.fmean(column) for column in zip(*curves)]


def picture(results, steps):
    """An SVG: above the loss, below the difference from fp32 of the same seed."""
    curves = {mode: [smoothed(losses) for losses, _ in runs] for mode, runs in results.items()}
    low, high = (pick(value for runs in curves.values() for curve in runs for value in curve) for pick in (min, max))
    loss = Panel(TOP, steps, low / 1.1, high * 1.1, math.log)
    loss.axes(f"Training loss, mean of {WINDOW} steps; bands: smallest to largest seed",
              [tick for tick in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7) if low / 1.1 < tick < high * 1.1], lambda value: f"{value:g}")
    middle = mean(curves[BASE])
    noise = [[value - centre for value, centre in zip(bound, middle)] for bound in extremes(curves[BASE])]
    differences = {mode: [value - centre for value, centre in zip(mean(runs), middle)] for mode, runs in curves.items() if mode != BASE}
    reach = 1.1 * max(abs(value) for curve in [*noise, *differences.values()] for value in curve)
    difference = Panel(TOP + HEIGHT + GAP, steps, -reach, reach)
    unit = 10 ** math.floor(math.log10(reach))
    unit = unit if reach >= 2 * unit else unit / 2
    difference.axes(f"The same less that of {BASE}, mean over the seeds; grey: {BASE}, smallest to largest seed",
                    [unit * index for index in range(-int(reach / unit), int(reach / unit) + 1)], lambda value: f"{value:+.2g}" if value else "0")
    difference.band(*noise, "#000000", 0.15)
    legend = []
    for index, (mode, (_, colour)) in enumerate(MODES.items()):
        loss.band(*extremes(curves[mode]), colour, 0.08)
        x, y = LEFT + 200 * (index % 3) + 20 * (index % 3 == 2), 46 + 18 * (index // 3)
        legend.append(f'<path d="M{x} {y - 4}h22" stroke="{colour}" stroke-width="3"/><text x="{x + 28}" y="{y}">{mode}</text>')
    for mode, (_, colour) in MODES.items():
        loss.line(mean(curves[mode]), colour)
        difference.line(differences.get(mode, [0.0] * len(middle)), colour)
    height = TOP + 2 * HEIGHT + GAP + 50
    bottom = f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 12}" text-anchor="middle">step</text>'
    title = f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">The tiny task in bf16, {len(results[BASE])} seeds</text>'
    # A background of its own: legible on light and dark pages.
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">\n'
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>')
    return "\n".join([head, title, *legend, *loss.parts, *difference.parts, bottom, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/limo-engine")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/memory_modes", help="the folder of the runs")
    parser.add_argument("--steps", type=int, default=300, help="of a run, at least 30")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="at least two")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--svg", type=Path, help="write the picture here")
    args = parser.parse_args()
    if args.steps < LAST or len(args.seeds) < 2:
        parser.error(f"at least {LAST} steps and two seeds")
    results = {mode: [] for mode in MODES}
    for seed in args.seeds:
        for mode, runs in results.items():
            runs.append(run(args, mode, seed))
    table(results)
    if args.svg:
        args.svg.write_text(picture(results, args.steps))


if __name__ == "__main__":
    main()
