"""The mixture of experts."""

import math

import torch
from torch import Tensor

from .._core import checks
from .._core.op import Op, like
from .._core.packing import (
    CPU_FORMATS,
    FORMATS,
    QUANTISED,
    PackedExperts,
    format_of,
    native_packing,
    panels_shape,
    quantised,
    resolve_format,
)

Pair = tuple[Tensor, Tensor]
MATRICES = ("gate_up", "down", "shared_gate_up", "shared_down")  # arguments of MOE_MLP
SCALES = ("gate_up_scale", "down_scale", "shared_gate_up_scale", "shared_down_scale")  # of MATRICES

MOE_MLP = Op(
    __name__,
    "moe_mlp",
    "Tensor x, Tensor gate_up, Tensor down, Tensor weights, Tensor ids, Tensor? shared_gate_up, Tensor? shared_down, "
    "Tensor? gate_up_scale, Tensor? down_scale, Tensor? shared_gate_up_scale, Tensor? shared_down_scale, str layout, "
    "str format -> Tensor",
    results="out",
    fake=lambda x, **_: like(x),
    backends=("reference", "cpu", "triton", "cuda"),
)


def pack_experts(
    gate_up: Tensor,
    down: Tensor,
    *,
    shared: Pair | None = None,
    format: str | None = None,
    overwrite: bool = False,
    backend: str | None = None,
) -> PackedExperts:
    """Prepare expert weights once, at load, for `moe_mlp` on their device.

    gate_up [E, 2I, H] (gate rows first), down [E, H, I]; shared: (gate_up [2Is, H], down [H, Is])
    or None. format "fp32", "bf16" or "fp16", None keeps the type; "int8" and "fp8" (e4m3) quantise
    the weights with one scale per output row, "int8_dyn" is "int8" with activations quantised by
    `moe_mlp` as well. overwrite: the packed experts may take the place of gate_up and down in
    memory, which then hold nothing of use; so no second copy is ever held, where sizes and types
    allow. On the CPU the native backend's panels where it serves; else rows. Raises InputError, and
    BackendError for a named backend that cannot pack.
    """
    op = "pack_experts"
    _pair(op, gate_up, down)
    if shared is not None:
        _shared_pair(op, shared, down.shape[1])
    format = resolve_format(op, gate_up, format, (*FORMATS, *QUANTISED))
    cpu = native_packing(op, gate_up, format, backend, CPU_FORMATS)
    if format in QUANTISED:
        E, H, I = down.shape
        packer = ExpertPacker(E, H, I, format, gate_up.device, backend=backend)
        for e in range(E):
            packer.add(gate_up[e], down[e])
        return packer.finish(shared)
    if cpu is not None:
        pair = (
            _panels(cpu, gate_up.detach(), format, overwrite, swiglu=True),
            _panels(cpu, down.detach(), format, overwrite, swiglu=False),
        )
        if shared is not None:
            swiglu = cpu.pack_panels(shared[0].detach(), format, swiglu=True)
            shared = swiglu, cpu.pack_panels(shared[1].detach(), format)
        return PackedExperts(*pair, *(shared or (None, None)), layout="panels", format=format)
    parts = (gate_up, down, *(shared or (None, None)))
    dtype = FORMATS[format]
    kept = (None if t is None else t.detach().to(dtype).contiguous() for t in parts)
    return PackedExperts(*kept, layout="rows", format=format)


class ExpertPacker:
    """`pack_experts` in a quantised format one expert at a time, as their weights are read.

    So no more of them is in memory unquantised than the one in hand. E experts of width I over H;
    backend as in `pack_experts`, and the same errors.
    """

    def __init__(self, E: int, H: int, I: int, format: str, device: torch.device, *, backend: str | None = None):
        self.op, self.format, self.added = "pack_experts", format, 0
        probe = torch.empty(0, device=device)
        self._cpu = native_packing(self.op, probe, format, backend, CPU_FORMATS)
        self.stored, self.scales = [], []
        for n, k, swiglu in ((2 * I, H, True), (H, I, False)):
            self.stored.append(self._room(E, n, k, device, swiglu))
            self.scales.append(torch.empty(E, n, dtype=torch.float32, device=device))

    def _room(self, count: int, n: int, k: int, device: torch.device, swiglu: bool) -> Tensor:
        if self._cpu is not None:
            return self._cpu.new_panels(count, n, k, self.format, swiglu)
        return torch.empty(count, n, k, dtype=QUANTISED[self.format], device=device)

    def _pack(self, weight: Tensor, swiglu: bool) -> Pair:
        stored, scale = quantised(self.op, weight.detach(), self.format)
        if self._cpu is not None:
            stored = self._cpu.pack_panels(stored, self.format, swiglu=swiglu)
        return stored, scale

    def add(self, gate_up: Tensor, down: Tensor) -> None:
        """The next expert: gate_up [2I, H] (gate rows first), down [H, I]."""
        for i, weight in enumerate((gate_up, down)):
            self.stored[i][self.added], self.scales[i][self.added] = self._pack(weight, i == 0)
        self.added += 1

    def finish(self, shared: Pair | None = None) -> PackedExperts:
        """All E were added; shared: (gate_up [2Is, H], down [H, Is]) or None."""
        alone = [(None, None)] * 2
        if shared is not None:
            alone = [self._pack(weight, i == 0) for i, weight in enumerate(shared)]
        stored, scales = zip(*alone)
        layout = "rows" if self._cpu is None else "panels"
        matrices, scales = (*self.stored, *stored), (*self.scales, *scales)
        return PackedExperts(*matrices, layout, self.format, *scales)


def _panels(cpu, stack: Tensor, format: str, overwrite: bool, *, swiglu: bool) -> Tensor:
    """A stack of matrices [E, N, K] as panels [E, P, K, 32], one expert at a time."""
    E, N, K = stack.shape
    shape = (E, *panels_shape(N, K, format, swiglu))
    whole = math.prod(shape) == stack.numel() and stack.dtype == FORMATS[format]
    if overwrite and whole and stack.is_contiguous():
        out = stack.view(shape)
    else:
        out = cpu.new_panels(E, N, K, format, swiglu)
    for e in range(E):
        out[e] = cpu.pack_panels(stack[e], format, swiglu=swiglu)
    return out


@MOE_MLP.public_function
def moe_mlp(
    x: Tensor,
    experts: PackedExperts | Pair,
    weights: Tensor,
    ids: Tensor,
    *,
    shared: Pair | None = None,
    backend: str | None = None,
) -> Tensor:
    """sum_k weights[t, k] * mlp_{ids[t, k]}(x[t]), plus the ungated shared expert.

    x [T, H]; experts packed, or the raw pair (gate_up [E, 2I, H], down [E, H, I]), then with
    `shared` (gate_up [2Is, H], down [H, Is]) or None; weights [T, K] float32; ids [T, K] int32 in
    0..E-1. mlp(x) = down (silu(gate x) * up x). Returns [T, H] in x.dtype; the routed sum is
    made in float32, in the order of k: the same bits every run. docs/model.md section 2. With
    "int8_dyn" experts the rows of x, and of what enters the second product, are quantised to int8;
    on a CPU with AVX512-BF16 the latter are rounded to bfloat16 where x [64 and more, H] and the
    packed experts are bfloat16. Raises InputError.
    """
    if type(experts) is not PackedExperts:
        gate_up, down = experts
        _pair("moe_mlp", gate_up, down)
        if shared is not None:
            _shared_pair("moe_mlp", shared, down.shape[1])
        packed = PackedExperts(gate_up, down, *(shared or (None, None)), "rows", format_of(gate_up.dtype))
    else:
        packed = experts
        if shared is not None:
            checks.fail("moe_mlp", "shared", "None with PackedExperts, which hold it", "a pair")
    gate_up, down = packed.gate_up, packed.down
    if x.dim() != 2 or x.shape[1] != packed.hidden:
        checks.fail("moe_mlp", "x", f"[T, H] with H = {packed.hidden}", list(x.shape))
    T = x.shape[0]
    if ids.dim() != 2 or ids.shape[0] != T:
        checks.fail("moe_mlp", "ids", f"[T, K] with T = {T}", list(ids.shape))
    if weights.shape != ids.shape:
        checks.shape("moe_mlp", "weights", weights, "[T, K]", ids.shape)
    if ids.dtype != torch.int32 or weights.dtype not in checks.WIDE:
        checks.dtype("moe_mlp", "ids", ids, torch.int32)
        checks.wide("moe_mlp", "weights", weights)
    if x.dtype not in checks.FLOATS:
        checks.floating("moe_mlp", "x", x)
    if gate_up.device != x.device or ids.device != x.device or weights.device != x.device:
        checks.device("moe_mlp", x, "experts", gate_up)
        checks.device("moe_mlp", x, "ids", ids)
        checks.device("moe_mlp", x, "weights", weights)
    return MOE_MLP.call(
        backend,
        x=x,
        gate_up=gate_up,
        down=down,
        weights=weights,
        ids=ids,
        shared_gate_up=packed.shared_gate_up,
        shared_down=packed.shared_down,
        gate_up_scale=packed.gate_up_scale,
        down_scale=packed.down_scale,
        shared_gate_up_scale=packed.shared_gate_up_scale,
        shared_down_scale=packed.shared_down_scale,
        layout=packed.layout,
        format=packed.format,
    )


def _pair(op: str, gate_up: Tensor, down: Tensor) -> None:
    checks.rank(op, "gate_up", gate_up, "[E, 2I, H]", 3)
    checks.floating(op, "gate_up", gate_up)
    E, width, H = gate_up.shape
    if width % 2:
        checks.fail(op, "gate_up", "[E, 2I, H]", [E, width, H])
    checks.shape(op, "down", down, "[E, H, I]", (E, H, width // 2))
    checks.dtype(op, "down", down, gate_up.dtype)
    checks.device(op, gate_up, "down", down)


def _shared_pair(op: str, shared: Pair, H: int) -> None:
    gate_up, down = shared
    if gate_up.dim() != 2 or gate_up.shape[0] % 2 or gate_up.shape[1] != H:
        checks.fail(op, "shared[0]", f"[2Is, H] with H = {H}", list(gate_up.shape))
    checks.shape(op, "shared[1]", down, "[H, Is]", (H, gate_up.shape[0] // 2))
