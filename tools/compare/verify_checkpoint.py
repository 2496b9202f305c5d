#!/usr/bin/env python3
"""Whether this engine computes a model folder as transformers does: logits, and one training step.

    python tools/compare/verify_checkpoint.py DIR [--binary target/release/limo-engine] [--device cpu] [--dtype f32]

DIR is a Hugging Face folder of a Qwen2-family model with its tokenizer, such as a download of Qwen2.5-0.5B-Instruct, or what a run exported. Compared with
transformers in float32 on the CPU (so the model must fit into memory several times over): token ids of the chat template, logits of three short
conversations, then loss, gradient norm, and what one AdamW step changed in every tensor.

In float32 all must agree within 1e-4 (the changes within 1e-2: they are small differences of large numbers). In bf16 (--device cuda, or --dtype bf16) logits may be
off by twice as much as transformers' own bf16 is, loss and norm by 2 %, and changes are not compared. Needs torch and transformers. Exit code 0 or 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
CHATS = [
    ("What is 6 times 7?", "Okay, 6 times 7 is 42.\n\n\\boxed{42}"),
    ("Name a prime between 20 and 30.", "Wait, 21 is 3 times 7. So 23."),
    ("\u8bf7\u95ee 1 + 1 = ?", "\u7b54\u6848\u662f 2\u3002"),
]
LR, WEIGHT_DECAY, CLIP = 1e-5, 0.1, 1.0


class Report:
    def __init__(self):
        self.failed = 0

    def line(self, what, value, limit):
        good = value <= limit
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'}  {what:<44} {value:.2e}   limit {limit:.0e}")


def error(got, expected):
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300)).item()


def messages(question, answer):
    return [dict(role="system", content=SYSTEM), dict(role="user", content=question), dict(role="assistant", content=answer)]


def train_step(model, rows):
    """Loss, gradient norm and the parameters after one step; the loss is a mean over all answers' tokens."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=WEIGHT_DECAY), dict(params=plain, weight_decay=0.0)], lr=LR, eps=1e-8)
    total = sum(int(mask.sum()) for _, mask in rows)
    loss = 0.0
    for tokens, mask in rows:
        logits = model(tokens[None]).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        part = (nll * mask[1:]).sum() / total
        part.backward()
        loss += part.item()
    # In float64: float32 sums over a hundred million elements are off in the fourth digit.
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), CLIP, torch.tensor(norm))
    optimizer.step()
    return loss, norm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--binary", default=ROOT / "target/release/limo-engine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("f32", "bf16"))
    args = parser.parse_args()
    exact = args.device == "cpu" and args.dtype != "bf16"
    backend = ["--device", args.device, *(["--dtype", args.dtype] if args.dtype else [])]
    report = Report()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps(dict(messages=messages(*chat))) + "\n" for chat in CHATS))
        run = lambda *command: subprocess.run([args.binary, *map(str, command), *backend], check=True, stdout=subprocess.PIPE)

        run("score", "--model", args.dir, "--input", folder / "rows.jsonl", "--output", folder / "scores.jsonl", "--logprobs", "--logits", folder / "logits.safetensors")
        ours = load_file(folder / "logits.safetensors")
        scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]

        tokenizer = AutoTokenizer.from_pretrained(args.dir)
        model = AutoModelForCausalLM.from_pretrained(args.dir, dtype=torch.float32, attn_implementation="eager")
        rows = []
        for i, chat in enumerate(CHATS):
            tokens = ours[f"tokens.{i}"].long()
            theirs = tokenizer.apply_chat_template(messages(*chat), tokenize=True, return_dict=False)
            report.line(f"chat {i}: token ids that differ", float(len(theirs) != len(tokens) or sum(a != b for a, b in zip(theirs, tokens.tolist()))), 0)
            mask = torch.zeros(len(tokens))
            mask[len(tokens) - scores[i]["supervised_tokens"]:] = 1
            rows.append((tokens, mask))

        narrow = None if exact else AutoModelForCausalLM.from_pretrained(args.dir, dtype=torch.bfloat16, attn_implementation="eager")
        with torch.no_grad():
            for i, (tokens, _) in enumerate(rows):
                expected = model(tokens[None]).logits[0]
                limit = 1e-4 if exact else 2 * error(narrow(tokens[None]).logits[0], expected) + 1e-3
                report.line(f"chat {i}: logits, ||a - b|| / ||b||", error(ours[f"row.{i}"], expected), limit)

        settings = dict(
            model=dict(path=str(args.dir)), data=dict(train=[str(folder / "rows.jsonl")], shuffle=False),
            train=dict(batch=len(CHATS), max_steps=1), output=dict(dir=str(folder / "run"), dtype="float32"),
            optimizer=dict(lr=LR, schedule="constant", weight_decay=WEIGHT_DECAY, clip=CLIP))
        (folder / "empty.toml").touch()
        run("train", folder / "empty.toml", *(f"-s{s}.{k}={json.dumps(v)}" for s, keys in settings.items() for k, v in keys.items()))
        metrics = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[0])
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        loss, norm = train_step(model, rows)
        report.line("loss of a training step", abs(metrics["loss"] / loss - 1), 1e-4 if exact else 2e-2)
        report.line("gradient norm", abs(metrics["grad_norm"] / norm - 1), 1e-4 if exact else 2e-2)
        if exact:
            after = {}
            for file in (folder / "run/model").glob("*.safetensors"):
                after |= load_file(file)
            assert after.keys() == before.keys(), after.keys() ^ before.keys()
            changes = {name: error(after[name] - before[name], p.detach() - before[name]) for name, p in model.named_parameters()}
            worst = max(changes, key=changes.get)
            report.line(f"changes of {len(changes)} tensors, worst", changes[worst], 1e-2)
            print(f"      worst: {worst}")
    print("PASS" if report.failed == 0 else f"FAIL: {report.failed}")
    return report.failed > 0


if __name__ == "__main__":
    sys.exit(main())
