"""The flow sampler's step: the public functions."""

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from .._core import checks
from .._core.op import InPlaceForm, Op, like
from .._core.packing import (
    CPU_FORMATS,
    FORMATS,
    QUANTISED,
    PackedLinear,
    format_of,
    native_packing,
    quantised,
    resolve_format,
)
from ..gemm import pack_linear
from .packing import BLOCKS, MATRICES, NORMS, THETA, TIME_CHANNELS, PackedFlowHead
from .schedule import FlowSchedule

_BACKENDS = ("reference", "cpu", "triton", "cuda")
_STEP = "Tensor v_cond, Tensor? v_null, float dt, Tensor guidance, Tensor? noise, Tensor noise_scale"
FLOW_STEP = Op(
    __name__,
    "flow_step",
    f"Tensor x, {_STEP} -> Tensor",
    results="out",
    fake=lambda x, **_: like(x),
    backends=_BACKENDS,
    in_place=InPlaceForm(f"Tensor(a!) x, {_STEP} -> ()", writes={"out": "x"}),
)
FLOW_SAMPLE = Op(
    __name__,
    "flow_sample",
    "Tensor condition, Tensor history, Tensor noise, Tensor guidance, Tensor times, Tensor dt, Tensor noise_scale, "
    "bool[] advance, Tensor cos, Tensor sin, Tensor[] matrices, Tensor[] biases, Tensor[] norms, Tensor[] scales, "
    "int heads, int? rope_heads, bool guided, str layout, str format -> Tensor",
    results="out",
    fake=lambda noise, **_: noise.new_empty(noise.shape[1:]),
    backends=_BACKENDS,
)


@FLOW_STEP.public_function
def flow_step(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor | float,
    noise: Tensor | None = None,
    noise_scale: float | Tensor = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """x + dt * (v_c + g * (v_c - v_u)) + noise_scale * noise, in float32.

    x [B, P, C] float32; v_cond and v_null [B, P, C] of any float type (v_null None: v = v_c);
    guidance and noise_scale: a number or [B] float32; noise [B, P, C] float32 or None. Returns a
    new float32 tensor. docs/model.md section 3. Raises InputError.
    """
    args = _step_call("flow_step", x, v_cond, v_null, dt, guidance, noise, noise_scale)
    return FLOW_STEP.call(backend, **args)


@FLOW_STEP.in_place.public_function
def flow_step_(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor | float,
    noise: Tensor | None = None,
    noise_scale: float | Tensor = 0.0,
    *,
    backend: str | None = None,
) -> None:
    """`flow_step`, in place on x. Returns nothing."""
    args = _step_call("flow_step_", x, v_cond, v_null, dt, guidance, noise, noise_scale)
    FLOW_STEP.in_place.call(backend, **args)


def _step_call(
    op: str,
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor | float,
    noise: Tensor | None,
    noise_scale: float | Tensor,
) -> dict:
    """What both forms of flow_step check: their arguments."""
    checks.rank(op, "x", x, "[B, P, C]", 3)
    if x.dtype not in checks.WIDE:
        checks.wide(op, "x", x)
    shape = x.shape
    for name, tensor in (("v_cond", v_cond), ("v_null", v_null), ("noise", noise)):
        if tensor is None:
            continue
        if tensor.shape != shape:
            checks.shape(op, name, tensor, "[B, P, C]", shape)
        if tensor.dtype not in checks.FLOATS:
            checks.floating(op, name, tensor)
        if tensor.device != x.device:
            checks.device(op, x, name, tensor)
    if noise is not None and noise.dtype != x.dtype:
        checks.dtype(op, "noise", noise, x.dtype)
    return {
        "x": x,
        "v_cond": v_cond,
        "v_null": v_null,
        "dt": float(dt),
        "guidance": _per_row(op, "guidance", x, guidance),
        "noise": noise,
        "noise_scale": _per_row(op, "noise_scale", x, noise_scale),
    }


def _per_row(op: str, name: str, x: Tensor, value: float | Tensor) -> Tensor:
    """[B] float32 (float64 for float64 x) from a number, or checked."""
    B = x.shape[0]
    if not isinstance(value, Tensor):
        return torch.full((B,), value, dtype=x.dtype, device=x.device)
    if value.shape != (B,):
        checks.shape(op, name, value, "[B]", (B,))
    if value.dtype not in checks.WIDE:
        checks.wide(op, name, value)
    if value.device != x.device:
        checks.device(op, x, name, value)
    return value


TimeLayer = tuple[Tensor | PackedLinear, Tensor]


def pack_flow_head(
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[Tensor],
    time: Sequence[TimeLayer],
    *,
    heads: int,
    rope_heads: int | None = None,
    theta: float = THETA,
    embed: Callable[[Tensor], Tensor] | None = None,
    format: str | None = None,
    overwrite: bool = False,
    backend: str | None = None,
) -> PackedFlowHead:
    """Prepare the weights of a flow head of L blocks once, at load, for `flow_sample`.

    matrices: cond [H, Hc], x [H, C], qkv [L, 3H, H] (q rows first), out [L, H, H], up [L, W, H],
    down [L, H, W], final [C, H]; biases: theirs, [H], [H], [L, 3H], [L, H], [L, W], [L, H], [C];
    norms: norm1 and norm2 [L, H], final_norm [H], and q_norm and k_norm [L, D] where the head has
    them; time: weight and bias of the two layers that embed the time, [H, 256] and [H, H], or
    none, and embed: times t [M] float32 in 0..1 -> [M, H], called once per schedule. heads of
    even width D = H / heads, RoPE on the first rope_heads (None: all), by frequencies
    theta^(-2i / D). format "fp32", "bf16" or
    "fp16" of all matrices, None keeps the type; "int8", "int8_dyn" and "fp8" quantise the four
    block matrices, one scale per row, and leave the small ones as they are, in a type of their own
    if they have one. overwrite: the packed
    matrices may take the place of the given ones in memory. On the CPU the native backend's panels
    where it serves; else rows. Raises InputError, and BackendError for a named backend that cannot
    pack.
    """
    op = "pack_flow_head"
    _check_head(op, matrices, biases, norms, time, heads, rope_heads, format in QUANTISED)
    if len(time) != (0 if embed else 2):
        wanted = "none beside embed" if embed else "the two layers of the time embedding"
        checks.fail(op, "time", wanted, len(time))
    if not 0 < theta < math.inf:
        checks.fail(op, "theta", "a positive number", theta)
    format = resolve_format(op, matrices[2], format, (*FORMATS, *QUANTISED))
    cpu = native_packing(op, matrices[2], format, backend, CPU_FORMATS)
    packed, scales = [], []
    for i, weight in enumerate(w.detach() for w in matrices):
        own, ours, scale = format, overwrite, weight.new_empty(0, dtype=torch.float32)
        if format in QUANTISED and i not in BLOCKS:
            own = _own_format(weight, cpu)
        elif format in QUANTISED:
            (weight, scale), ours = quantised(op, weight, format), True
        scales.append(scale)
        if cpu is not None:
            packed.append(_panels(cpu, weight, own, ours))
        else:
            packed.append(weight.to(FORMATS.get(own, weight.dtype)).contiguous())
    layers = tuple(
        (w if isinstance(w, PackedLinear) else pack_linear(w, backend=backend), bias.detach()) for w, bias in time
    )
    vectors = (tuple(t.detach().contiguous() for t in group) for group in (biases, norms))
    own_scales = tuple(scales) if format in QUANTISED else ()
    layout = "rows" if cpu is None else "panels"
    own = layers, heads, rope_heads, layout, format
    return PackedFlowHead(tuple(packed), *vectors, own_scales, *own, theta=theta, embed=embed)


def _own_format(weight: Tensor, cpu: ModuleType | None) -> str:
    """Of a matrix that is not quantised: its type's, or the nearest that can be packed."""
    found = format_of(weight.dtype)
    return found if cpu is None or found in CPU_FORMATS else "fp32"


def _panels(cpu: ModuleType, weight: Tensor, format: str, overwrite: bool) -> Tensor:
    """[N, K] as panels; a stack [L, N, K] one matrix at a time, in its place where that fits."""
    if weight.dim() == 2:
        return cpu.pack_panels(weight, format)
    out = None
    for i, matrix in enumerate(weight):
        panels = cpu.pack_panels(matrix, format)
        if out is None:
            shape = len(weight), *panels.shape
            fits = panels.numel() == matrix.numel() and panels.dtype == weight.dtype
            in_place = overwrite and fits and weight.is_contiguous()
            out = weight.view(shape) if in_place else cpu.on_huge_pages(panels.new_empty(shape))
        out[i] = panels
    return out


def _check_head(
    op: str,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[Tensor],
    time: Sequence[TimeLayer],
    heads: int,
    rope_heads: int | None,
    quantise: bool,
) -> None:
    if len(matrices) != 7:
        checks.fail(op, "matrices", f"the seven ({', '.join(MATRICES)})", len(matrices))
    if len(biases) != 7:
        checks.fail(op, "biases", f"one for each of {', '.join(MATRICES)}", len(biases))
    if len(norms) not in (3, 5):
        checks.fail(op, "norms", f"three or all five of {', '.join(NORMS)}", len(norms))
    qkv, up, cond, x = matrices[2], matrices[4], matrices[0], matrices[1]
    checks.rank(op, "qkv", qkv, "[L, 3H, H]", 3)
    checks.rank(op, "up", up, "[L, W, H]", 3)
    for name, w in (("cond", cond), ("x", x)):
        checks.rank(op, name, w, "[H, K]", 2)
    L, _, H = qkv.shape
    W, Hc, C = up.shape[1], cond.shape[1], x.shape[1]
    checks.positive(op, "L, the number of blocks,", L)
    checks.positive(op, "heads", heads)
    if H % heads or (H // heads) % 2:
        checks.fail(op, "heads", f"so many that H = {H} makes heads of even width", heads)
    if rope_heads is not None and not 0 <= rope_heads <= heads:
        checks.fail(op, "rope_heads", f"None or in 0..{heads}", rope_heads)
    D = H // heads
    blocks = (L, 3 * H, H), (L, H, H), (L, W, H), (L, H, W)
    shapes = ((H, Hc), (H, C), *blocks, (C, H))
    for i, (name, w, bias, shape) in enumerate(zip(MATRICES, matrices, biases, shapes)):
        checks.shape(op, name, w, "[N, K] or [L, N, K]", shape)
        checks.shape(op, f"bias of {name}", bias, "[N] or [L, N]", shape[:-1])
        checks.floating(op, name, w)
        checks.dtype(op, name, w, qkv.dtype if i in BLOCKS or not quantise else cond.dtype)
        checks.floating(op, f"bias of {name}", bias)
        checks.device(op, qkv, name, w)
        checks.device(op, qkv, f"bias of {name}", bias)
    for name, norm, shape in zip(NORMS, norms, ((L, H), (L, H), (H,), (L, D), (L, D))):
        checks.shape(op, name, norm, "[L, H], [H] or [L, D]", shape)
        checks.floating(op, name, norm)
        checks.device(op, qkv, name, norm)
    for i, ((w, bias), K) in enumerate(zip(time, (TIME_CHANNELS, H))):
        if tuple(w.shape) != (H, K):
            checks.fail(op, f"time[{i}]", f"[H, K] = {[H, K]}", list(w.shape))
        checks.shape(op, f"bias of time[{i}]", bias, "[H]", (H,))


@FLOW_SAMPLE.public_function
def flow_sample(
    head: PackedFlowHead,
    schedule: FlowSchedule,
    condition: Tensor,
    history: Tensor,
    noise: Tensor,
    guidance: Tensor | float = 2.0,
    *,
    noise_scale: Tensor | float = 1.0,
    guided: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """A latent patch from noise: every evaluation of the schedule, through every block.

    condition [B, Hc] and history [B, N, C] of any float type, N >= 0; noise [S+1, B, P, C] float32,
    noise[0] the start and noise[j] the draw after step j, the last of which may be left out;
    guidance g >= 0, a number or [B] float32: v = v_c + g (v_c - v_u); noise_scale, a number or
    [B] float32: times the schedule's own, for requests that differ in it. guided: False leaves the
    unconditional half of the work out, which is right where every g is 0; None finds out from a
    number or a tensor on the CPU, and is True otherwise. Returns [B, P, C] float32; the state is
    float32 throughout. docs/model.md section 3. Raises InputError.
    """
    op = "flow_sample"
    if not isinstance(head, PackedFlowHead):
        checks.fail(op, "head", "a PackedFlowHead (ops.pack_flow_head)", type(head).__name__)
    if not isinstance(schedule, FlowSchedule):
        checks.fail(op, "schedule", "a FlowSchedule", type(schedule).__name__)
    C, S = head.channels, schedule.steps
    min_draws = max(S, schedule.draws)
    if noise.dim() != 4 or noise.shape[3] != C or not min_draws <= noise.shape[0] <= S + 1:
        checks.fail(op, "noise", f"[S+1, B, P, C] = [{S + 1}, B, P, {C}]", list(noise.shape))
    B, P = noise.shape[1:3]
    checks.positive(op, "B", B)
    checks.positive(op, "P", P)
    checks.shape(op, "condition", condition, "[B, Hc]", (B, head.cond_size))
    if history.dim() != 3 or history.shape[0] != B or history.shape[2] != C:
        checks.fail(op, "history", f"[B, N, C] = [{B}, N, {C}]", list(history.shape))
    checks.wide(op, "noise", noise)
    checks.floating(op, "condition", condition)
    checks.floating(op, "history", history)
    for name, tensor in (("history", history), ("noise", noise), ("head", head.biases[0])):
        checks.device(op, condition, name, tensor)
    if guided is None:
        guided = _any_guidance(guidance)
    dt, scale = head.steps(schedule)
    cos, sin = head.rope(1 + history.shape[1] + P)
    return FLOW_SAMPLE.call(
        backend,
        condition=condition,
        history=history,
        noise=noise,
        guidance=per_request(op, "guidance", noise, guidance),
        times=head.times(schedule),
        dt=dt,
        noise_scale=scale[:, None] * per_request(op, "noise_scale", noise, noise_scale),
        advance=list(schedule.advance),
        cos=cos,
        sin=sin,
        matrices=list(head.matrices),
        biases=list(head.biases),
        norms=list(head.norms),
        scales=list(head.scales),
        heads=head.heads,
        rope_heads=head.rope_heads,
        guided=guided,
        layout=head.layout,
        format=head.format,
    )


def _any_guidance(guidance: Tensor | float) -> bool:
    if not isinstance(guidance, Tensor):
        return not math.isclose(guidance, 0.0, abs_tol=0.0)
    if guidance.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    return bool((guidance != 0).any())


def per_request(op: str, name: str, noise: Tensor, value: Tensor | float) -> Tensor:
    """[B] in the type of noise [S+1, B, P, C], from a number, or checked."""
    B = noise.shape[1]
    if not isinstance(value, Tensor):
        return torch.full((B,), value, dtype=noise.dtype, device=noise.device)
    checks.shape(op, name, value, "[B]", (B,))
    checks.dtype(op, name, value, noise.dtype)
    checks.device(op, noise, name, value)
    return value
