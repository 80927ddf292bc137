"""Flow heads of other projects on `ops.flow_sample` (docs/flow_head.md).

The sampler can run a head that is a stack of pre-norm transformer blocks over the tokens [time + condition; history;
current frames]: RMSNorm, attention without a mask, an MLP with tanh GELU, a final RMSNorm and projection. A mapping of
names says where its tensors are, a `FlowHeadConfig` what the tensors do not show, and `deviation` compares the packed
head with the head's own velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from .. import ops
from ..errors import CheckpointError, InputError
from ..ops.flow.packing import TIME_CHANNELS, PackedFlowHead

Names = Mapping[str, str | Sequence[str]]
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

ROPES = ("interleaved", "half", "none")
_MATRICES = ("condition", "latents", "qkv", "out", "up", "down", "final")
_NORMS = ("norm1", "norm2", "final_norm")
_HEAD_NORMS = ("q_norm", "k_norm")
_TIME = ("time1", "time2")
_IN_BLOCKS = ("qkv", "out", "up", "down", "norm1", "norm2", *_HEAD_NORMS)
_MAX_LISTED = 6


@dataclass(frozen=True)
class FlowHeadConfig:
    """What a head's tensors do not show.

    heads: of attention. rope: which pairs of a head's elements are rotated, "interleaved" (0,1),
    (2,3), ... or "half" (0,D/2), (1,D/2+1), ..., or "none"; on the first rope_heads (None: all); by
    angles position * theta^(-2i/D), positions from 0. transposed: matrices are stored [K, N].
    zero_centred_norms: norms multiply by 1 + weight. embed: times t [M] float32 in 0..1 -> [M, H],
    where the time is not embedded as in docs/model.md section 3; it is called once per schedule.
    """

    heads: int
    rope: str = "interleaved"
    rope_heads: int | None = None
    theta: float = 10000.0
    transposed: bool = False
    zero_centred_norms: bool = False
    embed: Callable[[Tensor], Tensor] | None = None


def pack(
    tensors: Mapping[str, Tensor],
    names: Names,
    config: FlowHeadConfig,
    *,
    ignore: Iterable[str] = (),
    format: str | None = None,
    backend: str | None = None,
) -> PackedFlowHead:
    """A head's state dict -> `PackedFlowHead`, for `ops.flow_sample`.

    names: where each part is, without `.weight` and `.bias`, with `{}` for a block's number:
    condition [H, Hc], latents [H, C], qkv [3H, H] (q rows first; or the names of three matrices),
    out [H, H], up [W, H], down [H, W], final [C, H]; norm1, norm2, final_norm [H]; q_norm, k_norm
    [D] where there are any; time1 [H, 256], time2 [H, H] unless config.embed is given. A missing
    bias is zeros. ignore: patterns of names that the head does not need ("rotary.*"). format and
    backend: as in `ops.pack_flow_head`.

    Raises CheckpointError with the names of tensors that are missing, misshapen or left over;
    InputError for an invalid mapping or config.
    """
    _check_names(names, config)
    read = _TensorReader(tensors, config)
    depth = _depth(tensors, names)
    blocks = range(depth)
    matrices, biases = zip(*(_stacked(read, part, names[part], blocks) for part in _MATRICES))
    norms = [read.norm(names[part], blocks if part in _IN_BLOCKS else None) for part in _NORMS]
    if "q_norm" in names:
        norms += [read.norm(names[part], blocks) for part in _HEAD_NORMS]
    time = [] if config.embed else [read.linear(names[part]) for part in _TIME]
    read.finish(ignore)
    H = norms[2].shape[0]
    if H % config.heads or H // config.heads % 2:
        raise InputError(
            f"flow head: heads must make even parts of H = {H} ({names['final_norm']}), got {config.heads}"
        )
    _check_shapes(names, config, matrices, norms, time)
    if config.rope == "half":
        matrices, biases, norms = _interleaved(matrices, biases, norms, config.heads)
    return ops.pack_flow_head(
        matrices,
        biases,
        norms,
        time,
        heads=config.heads,
        rope_heads=0 if config.rope == "none" else config.rope_heads,
        theta=config.theta,
        embed=config.embed,
        format=format,
        backend=backend,
    )


def deviation(
    head: PackedFlowHead,
    velocity: Velocity,
    *,
    frames: int = 5,
    history: int = 5,
    batch: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> float:
    """The error of a packed head's velocities against the head's own, on random inputs: max |a - b| / max |b|, the
    worst of three times. About 1e-6 in float32 when the mapping is right.

    velocity(x [B,P,C], t [B], condition [B,Hc], history [B,N,C]) -> [B,P,C]: the head's own.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(head.device, dtype)

    worst = 0.0
    for t in (0.0, 0.3, 0.9):
        x = normal(batch, frames, head.channels)
        condition, past = normal(batch, head.cond_size), normal(batch, history, head.channels)
        ours = velocity_of(head, x, t, condition, past)
        times = torch.full((batch,), t, device=head.device, dtype=dtype)
        with torch.no_grad():
            theirs = velocity(x, times, condition, past)
        if theirs.shape != ours.shape:
            raise InputError(f"flow head: velocity must give [B, P, C] = {list(ours.shape)}, got {list(theirs.shape)}")
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


def velocity_of(head: PackedFlowHead, x: Tensor, t: float, condition: Tensor, history: Tensor) -> Tensor:
    """A packed head's conditional velocity at time 0 <= t < 1: one step to t = 1, without noise."""
    schedule = ops.FlowSchedule.from_grid((t, 1.0), solver="euler")
    end = ops.flow_sample(head, schedule, condition, history, x.float()[None], 0.0)
    return (end - x.float()) / schedule.dt[0]


def _check_names(names: Names, config: FlowHeadConfig) -> None:
    needed = {*_MATRICES, *_NORMS, *(() if config.embed else _TIME)}
    allowed = {*needed, *_HEAD_NORMS}
    missing, other = sorted(needed - set(names)), sorted(set(names) - allowed)
    if missing:
        raise InputError(f"flow head: names lacks {', '.join(missing)}")
    if other:
        known = ", ".join(sorted(allowed))
        raise InputError(f"flow head: names has {', '.join(other)}; the parts are {known}")
    if ("q_norm" in names) != ("k_norm" in names):
        raise InputError("flow head: q_norm and k_norm come together")
    for part, value in names.items():
        each = [value] if isinstance(value, str) else list(value)
        if len(each) != 1 and (part != "qkv" or len(each) != 3):
            raise InputError(f"flow head: {part} must be one name{' or three' * (part == 'qkv')}, got {value!r}")
        if any((name.count("{}") != (part in _IN_BLOCKS)) for name in each):
            what = "one {} for the block's number" if part in _IN_BLOCKS else "no {}"
            raise InputError(f"flow head: {part} must have {what}, got {value!r}")
    if config.rope not in ROPES:
        raise InputError(f"flow head: rope must be one of {', '.join(ROPES)}, got {config.rope!r}")
    if config.heads < 1:
        raise InputError(f"flow head: heads must be at least 1, got {config.heads}")


def _depth(tensors: Mapping[str, Tensor], names: Names) -> int:
    name = names["norm1"]
    depth = 0
    while f"{name.format(depth)}.weight" in tensors:
        depth += 1
    if not depth:
        raise CheckpointError(f"flow head: there is no block: {name.format(0)}.weight is missing")
    return depth


class _TensorReader:
    """Reads tensors by name, and records which were read."""

    def __init__(self, tensors: Mapping[str, Tensor], config: FlowHeadConfig):
        self.tensors, self.config = tensors, config
        self.used: set[str] = set()
        self.missing: list[str] = []

    def take(self, name: str) -> Tensor:
        self.used.add(name)
        if name not in self.tensors:
            self.missing.append(name)
            return torch.zeros(1, 1)
        return self.tensors[name].detach()

    def linear(self, name: str) -> tuple[Tensor, Tensor]:
        """[N, K] and [N]."""
        weight = self.take(f"{name}.weight")
        if weight.dim() != 2:
            raise CheckpointError(f"flow head: {name}.weight must be a matrix, got {list(weight.shape)}")
        weight = weight.T if self.config.transposed else weight
        if f"{name}.bias" in self.tensors:
            return weight, self.take(f"{name}.bias")
        return weight, weight.new_zeros(weight.shape[0])

    def norm(self, name: str, blocks: range | None) -> Tensor:
        found = [name] if blocks is None else [name.format(b) for b in blocks]
        for each in found:
            if f"{each}.bias" in self.tensors:
                raise CheckpointError(f"flow head: {each}.bias: the sampler's norms are RMSNorm, which has no bias")
        weights = [self.take(f"{each}.weight") for each in found]
        self._equal(found, weights)
        if self.config.zero_centred_norms:
            weights = [1 + w for w in weights]
        return weights[0] if blocks is None else torch.stack(weights)

    def _equal(self, names: Sequence[str], found: Sequence[Tensor]) -> None:
        """Raises CheckpointError when the blocks' shapes differ, or a tensor is missing (`finish`)."""
        if self.missing:
            self.finish(())
        for name, tensor in zip(names, found):
            if tensor.shape != found[0].shape:
                raise CheckpointError(
                    f"flow head: {name}.weight must be {list(found[0].shape)} as in the first "
                    f"block, got {list(tensor.shape)}"
                )

    def stack(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        weights, biases = zip(*map(self.linear, names))
        self._equal(names, weights)
        return torch.stack(weights), torch.stack(biases)

    def finish(self, ignore: Iterable[str]) -> None:
        """Raises CheckpointError for what is missing or left over."""
        if self.missing:
            raise CheckpointError(f"flow head: missing {_listed(self.missing)}")
        patterns = tuple(ignore)
        left = [
            name for name in self.tensors if name not in self.used and not any(fnmatchcase(name, p) for p in patterns)
        ]
        if left:
            raise CheckpointError(
                f"flow head: not used: {_listed(left)}; name them in `ignore` if the velocity does "
                "not depend on them (modulation by the time, adaLN, is nothing the sampler can do)"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _stacked(read: _TensorReader, part: str, name: str | Sequence[str], blocks: range) -> tuple[Tensor, Tensor]:
    """A part's matrix and bias, with a leading L where it is the blocks'."""
    if part not in _IN_BLOCKS:
        return read.linear(name if isinstance(name, str) else name[0])
    each = [name] if isinstance(name, str) else name
    parts = [read.stack([n.format(block) for block in blocks]) for n in each]
    return tuple(torch.cat(kind, dim=1) for kind in zip(*parts))


def _check_shapes(names: Names, config: FlowHeadConfig, matrices, norms, time) -> None:
    """Raises CheckpointError with the user's name of the tensor; `ops.pack_flow_head` would name the part."""
    (L, H), D = norms[0].shape, norms[2].shape[0] // config.heads
    W, Hc, C = matrices[4].shape[1], matrices[0].shape[-1], matrices[1].shape[-1]
    blocks = (L, 3 * H, H), (L, H, H), (L, W, H), (L, H, W)
    shapes = dict(zip(_MATRICES, zip(matrices, ((H, Hc), (H, C), *blocks, (C, H)))))
    sizes = ((L, H), (L, H), (H,), (L, D), (L, D))
    shapes |= dict(zip((*_NORMS, *_HEAD_NORMS), zip(norms, sizes)))
    shapes |= dict(zip(_TIME, zip((w for w, _ in time), ((H, TIME_CHANNELS), (H, H)))))
    for part, (tensor, expected) in shapes.items():
        if tuple(tensor.shape) != expected:
            inner = part in _IN_BLOCKS
            raise CheckpointError(
                f"flow head: {part} ({names[part]}) must be {list(expected[inner:])} with H = {H}, "
                f"got {list(tensor.shape[inner:])}"
            )


def _interleaved(matrices, biases, norms, heads: int):
    """Rows of q and k permuted so that the pairs (i, i + D/2) are adjacent; their dot products do not change."""
    D = norms[2].shape[0] // heads
    order = torch.arange(D).view(2, -1).T.flatten()  # 0, D/2, 1, D/2 + 1, ...

    def permuted(t: Tensor) -> Tensor:
        """[L, 3H, ...]"""
        parts = t.unflatten(1, (3, heads, D))
        return torch.cat((parts[:, :2].index_select(3, order.to(t.device)), parts[:, 2:]), 1)

    qkv, bias = (permuted(t[2]).flatten(1, 3) for t in (matrices, biases))
    norms = [*norms[:3], *(norm[:, order.to(norm.device)] for norm in norms[3:])]
    return (*matrices[:2], qkv, *matrices[3:]), (*biases[:2], bias, *biases[3:]), norms
