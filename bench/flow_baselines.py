"""Baselines of `flow_sample`: a latent patch by PyTorch's own operators.

Each takes the keyword arguments of `ops.flow_sample` with a head in rows, and gives a callable,
prepared outside the clock. "eager": the reference's structure, which computes everything in every
step and the last block whole. "hoisted": what does not change from step to step computed once, one
product for q, k and v, the last block's last rows only; on a CPU with weights packed by oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mingcore.ops import PackedFlowHead
from mingcore.ops.gemm.cases import takes_prepacked
from mingcore.testing.eager.flow import EagerFlow

Call = Callable[[], Tensor]
EPS = 1e-6
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
NAMES = ("eager", "hoisted", "prepacked", "compiled")


def baselines(
    kw: dict[str, Any], dtypes: tuple[torch.dtype, ...], wanted: Collection[str]
) -> Iterator[tuple[str, Call]]:
    """The `wanted` of NAMES, in each dtype. "compiled": the hoisted step by torch.compile, its
    weights frozen on a CPU; that takes minutes."""
    for dtype in dtypes:
        name = SHORT[dtype]
        if "eager" in wanted:
            yield f"eager, {name}", Eager(kw, dtype)
        if "hoisted" in wanted:
            yield f"hoisted, {name}", Hoisted(kw, dtype, prepack=False)
        if "prepacked" in wanted and not kw["noise"].is_cuda and takes_prepacked(dtype):
            yield f"hoisted and prepacked, {name}", Hoisted(kw, dtype, prepack=True)
        if "compiled" in wanted:
            torch._inductor.config.freezing = not kw["noise"].is_cuda
            yield f"torch.compile of hoisted, {name}", Hoisted(kw, dtype, False, compiled=True)


def eager_flow(head: PackedFlowHead, dtype: torch.dtype) -> EagerFlow:
    """The baseline's module with the weights of a head in rows."""
    H, D = head.hidden, head.hidden // head.heads
    config = {
        "hidden_size": H,
        "depth": head.depth,
        "num_heads": head.heads,
        "mlp_ratio": head.width / H,
        "pe_attn_head": head.rope_heads,
        "qk_norm": "rms_norm" if len(head.norms) == 5 else None,
    }
    with torch.device("meta"):
        flow = EagerFlow(config, head.cond_size, head.channels)
    state = {"rotary_embed.inv_freq": 10000.0 ** -(torch.arange(0, D, 2) / D)}

    def put(name: str, weight: Tensor, bias: Tensor) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias

    (first, first_bias), (second, second_bias) = head.time
    put("t_embedder.time_mlp.0", first.unpack(), first_bias)
    put("t_embedder.time_mlp.2", second.unpack(), second_bias)
    for i, name in ((0, "c_embedder.cond_embedder"), (1, "x_embedder"), (6, "final_layer.linear")):
        put(name, head.matrices[i], head.biases[i])
    state["final_layer.norm_final.weight"] = head.norms[2]
    for i in range(head.depth):
        block = f"blocks.{i}"
        for j, part in enumerate(("to_q", "to_k", "to_v")):
            rows = slice(j * H, (j + 1) * H)
            put(f"{block}.attn.{part}", head.matrices[2][i, rows], head.biases[2][i, rows])
        put(f"{block}.attn.to_out.0", head.matrices[3][i], head.biases[3][i])
        put(f"{block}.mlp.ff.0.0", head.matrices[4][i], head.biases[4][i])
        put(f"{block}.mlp.ff.2", head.matrices[5][i], head.biases[5][i])
        state[f"{block}.norm1.weight"], state[f"{block}.norm2.weight"] = (head.norms[0][i], head.norms[1][i])
        if len(head.norms) == 5:
            state[f"{block}.attn.q_norm.weight"] = head.norms[3][i]
            state[f"{block}.attn.k_norm.weight"] = head.norms[4][i]
    flow.load_state_dict(state, assign=True)
    return flow.to(head.device, dtype).requires_grad_(False)


class Eager:
    """`EagerFlow.sample`, its grid already on the device, so that a CUDA graph can hold it."""

    def __init__(self, kw: dict[str, Any], dtype: torch.dtype):
        self.flow, self.kw = eager_flow(kw["head"], dtype), kw
        schedule = kw["schedule"]
        device = kw["noise"].device
        self.t = [torch.tensor([t] * kw["noise"].shape[1], device=device) for t in schedule.times]

    def __call__(self) -> Tensor:
        kw = self.kw
        cond, history, noise, g = (kw[k] for k in ("condition", "history", "noise", "guidance"))
        x = noise[0]
        for i, (e, t) in enumerate(zip(kw["schedule"].evaluations, self.t)):
            x = x + e.dt * self.flow.guided(x, t, cond, history, g)
            if e.noise_scale:
                x = x + e.noise_scale * noise[i + 1]
        return x


class Hoisted(nn.Module):
    """The same numbers with as little work as PyTorch's own operators allow."""

    def __init__(self, kw: dict[str, Any], dtype: torch.dtype, prepack: bool, compiled: bool = False):
        super().__init__()
        head, self.kw, self.dtype = kw["head"], kw, dtype
        B, P = kw["noise"].shape[1:3]
        self.guided = kw["guidance"] != 0
        R, T = B * (2 if self.guided else 1), 1 + kw["history"].shape[1] + P
        self.heads, self.rope_heads, self.P = head.heads, head.rope_heads, P
        make = Prepacked if prepack else Plain

        def linear(i: int, rows: int, block: int | None = None, part: slice = slice(None)):
            w, b = head.matrices[i], head.biases[i]
            w, b = (w, b) if block is None else (w[block], b[block])
            return make(w[part].to(dtype), b[part].to(dtype), rows)

        H, last = head.hidden, head.depth - 1
        self.cond, self.x = linear(0, B), linear(1, B * P)
        self.past = make(head.matrices[1].to(dtype), head.biases[1].to(dtype), B * (T - 1 - P))
        self.blocks = nn.ModuleList()
        for i in range(head.depth):
            rows = R * (P if i == last else T)
            qkv = (linear(2, R * T, i),)
            if i == last:
                qkv = linear(2, R * P, i, slice(0, H)), linear(2, R * T, i, slice(H, None))
            rest = (linear(3, rows, i), linear(4, rows, i), linear(5, rows, i))
            norms = Norm(head.norms[0][i].to(dtype)), Norm(head.norms[1][i].to(dtype))
            self.blocks.append(nn.ModuleList([*rest, *norms, *qkv]))
        self.qk_norms = nn.ModuleList(Norm(n.to(dtype)) for n in head.norms[3:])
        self.final_norm, self.final = Norm(head.norms[2].to(dtype)), linear(6, R * P)
        self.times = head.times(kw["schedule"]).to(dtype)
        self.null = head.biases[0].to(dtype)
        cos, sin = head.rope(T)
        self.rope, self.cos, self.sin = torch.complex(cos, sin)[:, None], cos[:, None], sin[:, None]
        self.compiled = compiled
        self.step = torch.compile(self._step) if compiled else self._step

    def forward(self) -> Tensor:
        kw, dtype = self.kw, self.dtype
        noise, B = kw["noise"], kw["noise"].shape[1]
        first = self.cond(kw["condition"].to(dtype))
        past = self.past(kw["history"].to(dtype))
        if self.guided:
            first = torch.cat((first, self.null.expand(B, -1)))
            past = torch.cat((past, past))
        x = noise[0]
        for i, e in enumerate(kw["schedule"].evaluations):
            v = self.step(x, (first + self.times[i])[:, None], past).float()
            if self.guided:
                v = v[:B] + kw["guidance"] * (v[:B] - v[B:])
            x = x + e.dt * v
            if e.noise_scale:
                x = x + e.noise_scale * noise[i + 1]
        return x

    def _step(self, x: Tensor, first: Tensor, past: Tensor) -> Tensor:
        embedded = self.x(x.to(self.dtype))
        if self.guided:
            embedded = torch.cat((embedded, embedded))
        h = torch.cat((first, past, embedded), dim=1)
        for out, up, down, norm1, norm2, *qkv in self.blocks:
            n = norm1(h)
            if len(qkv) == 1:
                q, k, v = self._heads(qkv[0](n), 3)
            else:
                (q,), (k, v) = self._heads(qkv[0](n[:, -self.P :]), 1), self._heads(qkv[1](n), 2)
                h = h[:, -self.P :]
            q, k = self._rotated(q, 0), self._rotated(k, 1)
            a = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
            h = h + out(a.transpose(1, 2).flatten(2))
            h = h + down(up(norm2(h), gelu=True))
        return self.final(self.final_norm(h))

    def _heads(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        return x.unflatten(-1, (n, self.heads, -1)).unbind(2)

    def _rotated(self, x: Tensor, which: int) -> Tensor:
        if self.qk_norms:
            x = self.qk_norms[which](x)
        n = self.rope_heads
        rotated = x if n is None else x[:, :, :n]
        pairs, last = rotated.float().unflatten(-1, (-1, 2)), slice(-x.shape[1], None)
        if self.compiled:  # which knows no complex numbers
            (a, b), cos, sin = pairs.unbind(-1), self.cos[last], self.sin[last]
            rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
        else:
            rotated = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * self.rope[last])
        rotated = rotated.flatten(-2).to(x.dtype)
        return rotated if n is None else torch.cat((rotated, x[:, :, n:]), dim=2)


class Norm(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Plain(nn.Module):
    def __init__(self, w: Tensor, b: Tensor, rows: int):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(t, requires_grad=False) for t in (w, b))

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if gelu else y


class Prepacked(Plain):
    """oneDNN's own order of the weight for so many rows; GELU fused behind the product."""

    def __init__(self, w: Tensor, b: Tensor, rows: int):
        super().__init__(w, b, rows)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), max(rows, 1))

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        fused = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *fused)
