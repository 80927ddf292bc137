"""Every op once more, in float64 with plain loops: written from the formulas, not from the ops."""

import math

import torch
from torch import Tensor

D = torch.float64


def activate(y: list[float], kind: str | None) -> list[float]:
    if kind == "swiglu":
        half = len(y) // 2
        return [g / (1 + math.exp(-g)) * u for g, u in zip(y[:half], y[half:])]
    one = {
        None: lambda v: v,
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
        "gelu_tanh": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    }[kind]
    return [one(v) for v in y]


def linear(x, weight, bias=None, activation=None, residual=None) -> Tensor:
    rows = x.double().reshape(-1, x.shape[-1])
    out = []
    for row in rows:
        y = [(row * w).sum().item() for w in weight.double()]
        if bias is not None:
            y = [v + b for v, b in zip(y, bias.double().tolist())]
        out.append(activate(y, activation))
    out = torch.tensor(out, dtype=D).view(*x.shape[:-1], -1)
    return out if residual is None else out + residual.double()


def silu_mul(gate_up) -> Tensor:
    rows = gate_up.double().reshape(-1, gate_up.shape[-1]).tolist()
    out = [activate(row, "swiglu") for row in rows]
    return torch.tensor(out, dtype=D).view(*gate_up.shape[:-1], -1)


def rms_norm(x, weight, eps) -> Tensor:
    rows = x.double().reshape(-1, x.shape[-1])
    out = [r * weight.double() / math.sqrt((r * r).sum().item() / len(r) + eps) for r in rows]
    return torch.stack(out).view(x.shape)


def layer_norm(x, weight, bias, eps) -> Tensor:
    out = []
    for r in x.double().reshape(-1, x.shape[-1]):
        centred = r - r.sum() / len(r)
        scaled = centred / math.sqrt((centred * centred).sum().item() / len(r) + eps)
        out.append(scaled * weight.double() + (0 if bias is None else bias.double()))
    return torch.stack(out).view(x.shape)


def rope(x, cos, sin, interleaved=False, rope_heads=None) -> Tensor:
    B, T, heads, width = x.shape
    out, half = x.double().clone(), width // 2
    for b in range(B):
        for t in range(T):
            for h in range(heads if rope_heads is None else rope_heads):
                for i in range(half):
                    first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                    c = cos[b % cos.shape[0], t, i].double()
                    s = sin[b % sin.shape[0], t, i].double()
                    u, v = x[b, t, h, first].double(), x[b, t, h, second].double()
                    out[b, t, h, first] = u * c - v * s
                    out[b, t, h, second] = v * c + u * s
    return out


def route_topk(logits, top_k, renormalize=True) -> tuple[Tensor, Tensor]:
    weights, ids = [], []
    for row in logits.double().tolist():
        best = sorted(range(len(row)), key=lambda e: (-row[e], e))[:top_k]
        total = sum(math.exp(v - max(row)) for v in row)
        chosen = [math.exp(row[e] - max(row)) / total for e in best]
        if renormalize and top_k > 1:
            chosen = [w / sum(chosen) for w in chosen]
        weights.append(chosen)
        ids.append(best)
    return torch.tensor(weights, dtype=D), torch.tensor(ids, dtype=torch.int32)


def sort_by_expert(ids, num_experts) -> tuple[Tensor, Tensor]:
    flat = ids.flatten().tolist()
    rows, offsets = [], [0]
    for e in range(num_experts):
        rows += [slot for slot, expert in enumerate(flat) if expert == e]
        offsets.append(len(rows))
    return torch.tensor(rows, dtype=torch.int32), torch.tensor(offsets, dtype=torch.int32)


def grouped_gemm(x, w, offsets) -> Tensor:
    out = torch.full((x.shape[0], w.shape[1]), math.nan, dtype=D)
    for e in range(w.shape[0]):
        for row in range(int(offsets[e]), int(offsets[e + 1])):
            out[row] = linear(x[row], w[e])
    return out


def mlp(x, gate_up, down) -> Tensor:
    return linear(linear(x, gate_up, activation="swiglu"), down)


def moe_mlp(x, gate_up, down, weights, ids, shared=None) -> Tensor:
    out = torch.zeros(x.shape, dtype=D)
    for t in range(x.shape[0]):
        for k in range(ids.shape[1]):
            e = int(ids[t, k])
            out[t] += weights[t, k].double() * mlp(x[t], gate_up[e], down[e])
        if shared is not None:
            out[t] += mlp(x[t], *shared)
    return out


def attend(query: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    scores = [scale * (query.double() * key.double()).sum().item() for key in keys]
    powers = [math.exp(s - max(scores)) for s in scores]
    return sum(p * v.double() for p, v in zip(powers, values)) / sum(powers)


def attention_prefill(q, k, v, causal=True, window=None, scale=None) -> Tensor:
    B, T, heads, width = q.shape
    out, group = torch.zeros(q.shape, dtype=D), heads // k.shape[2]
    for b in range(B):
        for t in range(T):
            seen = range(k.shape[1]) if not causal else range(t + 1)
            seen = [s for s in seen if window is None or s > t - window]
            for h in range(heads):
                keys, values = ([k[b, s, h // group] for s in seen], [v[b, s, h // group] for s in seen])
                out[b, t, h] = attend(q[b, t, h], keys, values, scale or width**-0.5)
    return out


def attention_history(q, history, positions, window=None, scale=None, slots=None) -> Tensor:
    """Decode against the whole history [(k, v)] of each row by position, without any cache.

    `slots`: how many of the newest positions (of the row) are still held.
    """
    B, T, heads, width = q.shape
    out = torch.zeros(q.shape, dtype=D)
    for b in range(B):
        newest = int(positions[b].max())
        for t in range(T):
            p = int(positions[b, t])
            seen = [
                s for s in range(p + 1) if (window is None or s > p - window) and (slots is None or s > newest - slots)
            ]
            for h in range(heads if p >= 0 else 0):
                kv = [history[b][s] for s in seen]
                head = h // (heads // kv[0][0].shape[0])
                keys, values = [k[head] for k, _ in kv], [v[head] for _, v in kv]
                out[b, t, h] = attend(q[b, t, h], keys, values, scale or width**-0.5)
    return out


def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale) -> Tensor:
    out = x.double().clone()
    for b in range(x.shape[0]):
        v = v_cond[b].double()
        if v_null is not None:
            v = v + float(guidance[b]) * (v - v_null[b].double())
        out[b] += dt * v
        if noise is not None:
            out[b] += float(noise_scale[b]) * noise[b].double()
    return out


def flow_velocity(head, x, time, first, history) -> Tensor:
    """One request: x [P, C], time and first [H], history [N, C] -> [P, C]."""
    head = head.unpack()
    _, embed, qkv, out, up, down, final = head.matrices
    _, x_bias, qkv_bias, out_bias, up_bias, down_bias, final_bias = head.biases
    D = head.hidden // head.heads
    embedded = linear(torch.cat((history.double(), x.double())), embed, x_bias)
    h = torch.cat(((first + time.double())[None], embedded))
    T = h.shape[0]
    angles = torch.arange(T, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    cos, sin = angles.cos()[None], angles.sin()[None]
    for i in range(head.depth):
        n = rms_norm(h, head.norms[0][i], 1e-6)
        q, k, v = linear(n, qkv[i], qkv_bias[i]).view(T, 3, head.heads, D).unbind(1)
        if len(head.norms) == 5:
            q, k = rms_norm(q, head.norms[3][i], 1e-6), rms_norm(k, head.norms[4][i], 1e-6)
        q, k = (rope(t[None], cos, sin, True, head.rope_heads) for t in (q, k))
        a = attention_prefill(q, k, v[None], causal=False)[0]
        h = linear(a.reshape(T, -1), out[i], out_bias[i], residual=h)
        n = rms_norm(h, head.norms[1][i], 1e-6)
        n = linear(n, up[i], up_bias[i], activation="gelu_tanh")
        h = linear(n, down[i], down_bias[i], residual=h)
    return linear(rms_norm(h, head.norms[2], 1e-6), final, final_bias)[-x.shape[0] :]


def flow_sample(head, schedule, condition, history, noise, guidance=2.0, noise_scale=1.0, guided=None) -> Tensor:
    B, out = noise.shape[1], []
    times = head.times(schedule).double()
    for b in range(B):
        g, spread = (float(v[b]) if isinstance(v, Tensor) else v for v in (guidance, noise_scale))
        bias = head.biases[0].double()
        first = linear(condition[b], head.unpack().matrices[0], bias)
        base = current = noise[0, b].double()
        draw = 0
        for e, time in zip(schedule.evaluations, times):
            v = flow_velocity(head, current, time, first, history[b])
            v = v + g * (v - flow_velocity(head, current, time, bias, history[b]))
            current = base + e.dt * v
            if e.advance:
                draw += 1
                if e.noise_scale * spread:
                    current = current + e.noise_scale * spread * noise[draw, b].double()
                base = current
        out.append(current)
    return torch.stack(out)


def overlap_add(frames, window, hop) -> Tensor:
    B, T, size = frames.shape
    length = (T - 1) * hop + size
    total, norm = torch.zeros(B, length, dtype=D), torch.zeros(length, dtype=D)
    for t in range(T):
        for i in range(size):
            total[:, t * hop + i] += frames[:, t, i].double() * window[i].double()
            norm[t * hop + i] += window[i].double() ** 2
    trim = (size - hop) // 2
    return (total / norm)[:, trim : length - trim]


def spectrum_frames(spectrum) -> Tensor:
    """[B, T, F+2] -> [B, T, F] by the sum of the inverse transform."""
    B, T, width = spectrum.shape
    size, bins = width - 2, width // 2
    out = torch.zeros(B, T, size, dtype=D)
    for b in range(B):
        for t in range(T):
            m, p = spectrum[b, t, :bins].double(), spectrum[b, t, bins:].double()
            mag = m.exp().clamp(max=100.0)
            for i in range(size):
                angle = 2 * math.pi * i * torch.arange(bins, dtype=D) / size
                terms = mag * (p.cos() * angle.cos() - p.sin() * angle.sin())
                real = terms.sum() * 2 - mag[0] * p[0].cos() - mag[-1] * p[-1].cos() * (-1) ** i
                out[b, t, i] = real / size
    return out
