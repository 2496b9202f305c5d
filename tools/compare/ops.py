"""The ops that peers.py compares, as PyTorch has them.

An op is a formula over tensors. Run in float64 on the CPU it is the reference that every peer must match; run as it is on the GPU it is the peer
"eager"; through torch.compile it is the peer "compiled". Where PyTorch has a kernel of its own, that is a peer too.
"""

from dataclasses import dataclass, field
from typing import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

EPS = 1e-6


@dataclass
class Op:
    # The name of `limo-engine bench`, and how its versions begin for each direction.
    bench: str
    versions: dict
    # make(model, tokens, normal) -> inputs; normal(*shape) draws a bf16 tensor. Gradients are those of the inputs that require them.
    make: Callable
    # None where PyTorch's kernel is itself the definition.
    formula: Callable | None
    peers: dict = field(default_factory=dict)
    # What else a reader must know to judge the comparison.
    note: str = ""


def compiled(function):
    return torch.compile(function, dynamic=False)


def residual_rms_norm(x, delta, weight):
    """[T, D], [T, D], [D] -> the new residual stream and its normalised value, both [T, D]."""
    total = x + delta
    return total, F.rms_norm(total, weight.shape, weight, EPS)


def swiglu(gate_up):
    """[T, 2F] -> [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope(x, cos, sin):
    """[T, heads, H], [T, 1, H/2] twice, f32 -> x rotated, in halves as Qwen2 does."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def attention(query, key, value):
    """[1, Q, T, H], [1, K, T, H] twice -> [1, Q, T, H], causal; each key/value head serves Q/K query heads."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def attention_expanded(query, key, value):
    """The same where a backend takes no grouped heads: keys and values are repeated first, which its time includes."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def flash_attention(query, key, value):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        try:
            return attention(query, key, value)
        except RuntimeError:
            return attention_expanded(query, key, value)


def cross_entropy(hidden, head, targets):
    """[T, D], [V, D], [T] -> the mean loss."""
    return F.cross_entropy(F.linear(hidden, head).float(), targets)


def adamw(parameter, optimizer):
    """One update in place."""
    optimizer.step()


def leaf(tensor):
    return tensor.requires_grad_()


def make_rms_norm(model, tokens, normal):
    weight = (1 + 0.3 * normal(model["hidden"]).float()).to(torch.bfloat16)
    return leaf(normal(tokens, model["hidden"])), normal(tokens, model["hidden"]), leaf(weight)


def make_swiglu(model, tokens, normal):
    return (leaf(normal(tokens, 2 * model["feed_forward"])),)


def make_rope(model, tokens, normal):
    heads = model["heads"]
    x = normal(tokens, heads["query"] + heads["kv"], heads["dim"])
    half = heads["dim"] // 2
    frequencies = 1e6 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = torch.arange(tokens, device=x.device)[:, None, None] * frequencies
    return leaf(x), angles.cos().float(), angles.sin().float()


def make_attention(model, tokens, normal):
    # As a fused projection lays them out: heads of a token side by side.
    heads = model["heads"]
    of = lambda count: leaf(normal(1, tokens, count, heads["dim"]).transpose(1, 2))
    return of(heads["query"]), of(heads["kv"]), of(heads["kv"])


def make_cross_entropy(model, tokens, normal):
    hidden = leaf(normal(tokens, model["hidden"]))
    # Logits of deviation one.
    head = leaf((normal(model["vocabulary"], model["hidden"]) * model["hidden"] ** -0.5).detach())
    return hidden, head, torch.randint(model["vocabulary"], (tokens,), device=hidden.device)


def make_adamw(model, tokens, normal):
    # The largest matrix of a layer, as `limo-engine bench adamw` takes it: parameter, gradient and both moments in f32.
    parameter = torch.nn.Parameter(normal(2 * model["feed_forward"], model["hidden"]).float())
    parameter.grad = normal(*parameter.shape).float()
    on_gpu = parameter.device.type == "cuda"
    return parameter, torch.optim.AdamW([parameter], lr=1e-5, fused=True, capturable=on_gpu)


BOTH = {"forward": "forward", "backward": "backward"}
# Directions are "forward", "backward" and "both" in one.
OPS = [
    Op("rms_norm", BOTH, make_rms_norm, residual_rms_norm, {"eager": residual_rms_norm, "compiled": compiled(residual_rms_norm)}),
    Op("swiglu", BOTH, make_swiglu, swiglu, {"eager": swiglu, "compiled": compiled(swiglu)}),
    Op("rope", {"forward": ""}, make_rope, rope, {"eager": rope, "compiled": compiled(rope)}, "theirs writes a new tensor, ours rotates in place"),
    Op(
        "attention",
        BOTH,
        make_attention,
        attention_expanded,
        {"flash": flash_attention, "default": attention, "default, heads repeated": attention_expanded},
        "flash: backend FLASH_ATTENTION; default: the backend that PyTorch chose, named by its kernels",
    ),
    Op("adamw", {"forward": ""}, make_adamw, None, {"fused": adamw}, "28 bytes a parameter both: f32 there, bf16 and remainder here"),
    Op(
        "classifier",
        {"both": ""},
        make_cross_entropy,
        cross_entropy,
        {"eager": cross_entropy, "compiled": compiled(cross_entropy)},
        "loss and both gradients; theirs holds all logits at once and gives the head's gradient in bf16, ours adds to f32",
    ),
]
