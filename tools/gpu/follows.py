#!/usr/bin/env python3
"""Compares two runs of one configuration, step by step: follows.py CPU/metrics.jsonl CUDA/metrics.jsonl

Both store bf16 and add up in f32, in different orders, so they drift apart by what bf16 rounds away. Losses may differ by 1 %, gradient norms by 5 %.
"""

import json
import sys
from pathlib import Path

LIMITS = {"loss": 0.01, "grad_norm": 0.05}

steps, others = (
    [row for row in map(json.loads, Path(path).read_text().splitlines()) if "loss" in row] for path in sys.argv[1:3]
)
if not steps or len(steps) != len(others):
    sys.exit(f"{len(steps)} steps and {len(others)} steps do not compare")
differences = {key: [abs(b[key] - a[key]) / abs(a[key]) for a, b in zip(steps, others)] for key in LIMITS}
for a, b in zip(steps, others):
    print(f"step {a['step']}: " + ", ".join(f"{key} {a[key]:.6f} {b[key]:.6f}" for key in LIMITS))
print(", ".join(f"largest difference of {key}: {max(values):.2e}" for key, values in differences.items()))
if not all(value <= LIMITS[key] for key, values in differences.items() for value in values):
    sys.exit(f"the runs do not follow each other: limits are {LIMITS}")
