#!/usr/bin/env python3
"""Writes docs/kernels.md: what nvcc made of every kernel. Needs nvcc and cuobjdump (tools/cuda/install.sh), and no GPU.

    tools/kernels/report.py             builds, and writes docs/kernels.md
    tools/kernels/report.py --check     fails if docs/kernels.md is out of date, or if a rule is broken

Rules: no kernel spills registers, every kernel of a launch is in the report, shipped attention multiplies on tensor cores.
Registers and spills are ptxas's own words; threads and shared memory are those of `limo-engine bench --list`, the wrappers' own launches;
instructions are counted in the machine code of sm_90.
"""

import argparse
import collections
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/kernels.md"
LOCAL_TOOLS = ROOT / ".cuda/nvidia/cu13/bin"
# What an SM has, from the CUDA programming guide: warps, blocks, shared bytes, and the most of these for one block.
Target = collections.namedtuple("Target", "name warps blocks shared block_shared")
TARGETS = [
    Target("sm_80", 64, 32, 164 << 10, 163 << 10),
    Target("sm_89", 48, 24, 100 << 10, 99 << 10),
    Target("sm_90", 64, 32, 228 << 10, 227 << 10),
]
REGISTERS = 65536
COUNTED = ["HMMA", "LDSM", "LDGSTS", "FFMA", "MUFU"]

INTRODUCTION = """\
# Kernels, as compiled

Written by `tools/kernels/report.py` from what {nvcc} made of `kernels/`; CI fails when it is out of date. Nothing here was measured:
it is what the compiler says, and arithmetic.

A line is a kernel that one version of a ladder launches at the shapes of `limo-engine bench` (16384 tokens; the model is named where the launch depends
on it). **Bold** versions ship. *Threads* and *shared* (bytes) are of one block. *Registers* of a thread and *occupancy*, the share of an SM's warps
that can be resident, stand for sm_80, sm_89 and sm_90; occupancy follows from registers, threads and shared memory alone,
and *none* says that a block wants more than there is: an earlier version runs there. *Instructions* and the columns behind it count
machine code for sm_90 as it stands in the kernel, not as it is executed: HMMA multiplies on tensor cores, LDSM is `ldmatrix`, LDGSTS an asynchronous copy to
shared memory, FFMA a fused multiply-add, MUFU an approximate function (reciprocal, root, exponential). No kernel spills a register.
"""
HEAD = ["version", "kernel", "model", "threads", "shared", "registers", "occupancy", "instructions", *COUNTED]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check

    out, binary = build()
    resources = ptxas_report((out / "ptxas.txt").read_text())
    code = machine_code(out)
    listed = launches(binary)
    rules(resources, code, listed)

    page = render(resources, code, listed)
    if not check:
        PAGE.write_text(page)
        print(f"{PAGE.relative_to(ROOT)}: {len(resources)} kernels")
    elif PAGE.read_text() != page:
        lines = difflib.unified_diff(PAGE.read_text().splitlines(), page.splitlines(), "docs/kernels.md", "now", lineterm="")
        print("\n".join(list(lines)[:40]))
        sys.exit("docs/kernels.md is out of date: run tools/kernels/report.py and commit it")


def build():
    """The OUT_DIR of build.rs, where fatbins and ptxas's words lie, and the binary that belongs to them."""
    command = ["cargo", "build", "--bin", "limo-engine", "--message-format=json"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | {"LIMO_REQUIRE_CUDA": "1"}, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit("the build failed; nvcc comes with tools/cuda/install.sh")
    messages = [json.loads(line) for line in result.stdout.splitlines()]
    ours = [message for message in messages if "limo-engine" in message.get("package_id", "")]
    out = next(message["out_dir"] for message in ours if message["reason"] == "build-script-executed")
    binary = next(message["executable"] for message in ours if message.get("executable"))
    return Path(out), binary


def ptxas_report(text):
    """By kernel and target: registers, spilled bytes, static shared bytes."""
    resources = collections.defaultdict(dict)
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)"
    )
    for kernel, target, stores, loads, registers, rest in re.findall(pattern, text, re.DOTALL):
        static = re.search(r"(\d+) bytes smem", rest)
        resources[kernel][target] = (int(registers), int(stores) + int(loads), int(static[1]) if static else 0)
    return resources


def tool(name):
    found = LOCAL_TOOLS / name
    return str(found) if found.is_file() else shutil.which(name) or sys.exit(f"{name} is missing: tools/cuda/install.sh brings it")


def machine_code(out):
    """By kernel: how often each instruction stands in its code for sm_90."""
    counts = {}
    for fatbin in sorted(out.glob("*.fatbin")):
        command = [tool("cuobjdump"), "-sass", "-arch", "sm_90", fatbin]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for function in text.split("Function : ")[1:]:
            name, body = function.split("\n", 1)
            opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\w+)", body, re.MULTILINE)
            counts[name.strip()] = collections.Counter(opcode for opcode in opcodes if opcode != "NOP")
    return counts


def launches(binary):
    """What `bench --list` tells."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        subprocess.run([binary, "bench", "--list", "--json", path], check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())


def rules(resources, code, listed):
    broken = []
    for kernel, targets in resources.items():
        if sorted(targets) != [target.name for target in TARGETS]:
            broken.append(f"{kernel} was built for {', '.join(targets)}")
        broken += [f"{kernel} spills {spilled} bytes on {name}" for name, (_, spilled, _) in targets.items() if spilled]
    for line in listed:
        kernels = [launch["kernel"] for launch in line["launches"]]
        broken += [f"{kernel} is launched and was not built" for kernel in kernels if kernel not in code or kernel not in resources]
        tensor_cores = any(code.get(kernel, {}).get("HMMA") for kernel in kernels)
        attends = line["bench"] == "attention" or line["bench"] == "paged_attention" and line["version"] != "rope"
        if attends and line["ships"] and not tensor_cores:
            broken.append(f"{line['bench']} {line['version']} ships without tensor cores: {', '.join(kernels)}")
    if broken:
        sys.exit("\n".join(dict.fromkeys(broken)))


def occupancy(target, registers, threads, shared):
    """The share of an SM's warps that blocks of this size can fill, as the toolkit's cuda_occupancy.h computes it."""
    up = lambda value, unit: -(-value // unit) * unit
    warps = -(-threads // 32)
    # Registers are dealt 256 at a time to the warps of each of the SM's four quarters, shared memory in steps of 128 bytes
    # after the 1024 that the system keeps of a block.
    by_registers = 4 * (REGISTERS // 4 // up(registers * 32, 256)) // warps
    by_shared = target.shared // up(shared + 1024, 128)
    fits = up(registers * 32, 256) * up(warps, 4) <= REGISTERS and shared <= target.block_shared
    blocks = min(target.blocks, target.warps // warps, by_registers, by_shared) if fits else 0
    return f"{100 * blocks * warps / target.warps:.0f} %" if blocks else "none"


def cells(kernel, resources, code, threads=None, shared=None):
    per_target = [resources[kernel][target.name] for target in TARGETS]
    registers = [str(registers) for registers, _, _ in per_target]
    share = ["-"]
    if threads:
        share = [occupancy(t, used, threads, shared + static) for t, (used, _, static) in zip(TARGETS, per_target)]
    together = lambda values: values[0] if len(set(values)) == 1 else ", ".join(values)
    counts = [str(code[kernel][name]) for name in COUNTED]
    return [together(registers), together(share), str(code[kernel].total()), *counts]


def table(head, rows):
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def render(resources, code, listed):
    nvcc = subprocess.run([tool("nvcc"), "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    text = INTRODUCTION.format(nvcc="nvcc " + re.search(r"V([\d.]+)", nvcc)[1])
    models = list(dict.fromkeys(line["model"] for line in listed))
    families = list(dict.fromkeys(line["bench"] for line in listed if line["launches"]))
    seen = set()
    for family in families:
        # One row a version and distinct launch, in the order of the list.
        rows = {}
        for line in (line for line in listed if line["bench"] == family):
            version = f"**{line['version']}**" if line["ships"] else line["version"]
            for launch in line["launches"]:
                key = (version, launch["kernel"], launch["threads"], launch["shared_bytes"])
                rows.setdefault(key, []).append(line["model"])
        places = [(line["version"], launch["kernel"]) for line in listed for launch in line["launches"]]
        ordered = sorted(rows, key=lambda key: places.index((key[0].strip("*"), key[1])))
        seen |= {key[1] for key in ordered}
        text += f"\n## [{family}](../kernels/{family}/README.md)\n\n"
        of = lambda names: "all" if set(names) == set(models) else ", ".join(dict.fromkeys(names))
        body = [
            [version, f"`{kernel}`", of(rows[version, kernel, threads, shared]), str(threads), str(shared)]
            + cells(kernel, resources, code, threads, shared)
            for version, kernel, threads, shared in ordered
        ]
        text += table(HEAD, body)
    rest = [kernel for kernel in sorted(resources) if kernel not in seen and not kernel.startswith("conformance_")]
    text += "\n## Other kernels\n\nFor shapes that no model above has, such as rows that are no multiple of eight.\n\n"
    head = ["kernel", "registers", "instructions", *COUNTED]
    short = lambda kernel: [column for i, column in enumerate(cells(kernel, resources, code)) if i != 1]
    return text + table(head, [[f"`{kernel}`", *short(kernel)] for kernel in rest])


if __name__ == "__main__":
    main()
