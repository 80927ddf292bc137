"""The flow head and its sampler: Euler steps from noise to a latent patch, with guidance."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import ops
from ...config import FlowConfig
from ...errors import CheckpointError, InputError
from ..layers import Linear
from ..rope import inverse_frequencies, tables
from ..weights import DictTensors, Weights, assemble
from .block import EPS, Block

THETA = 10000.0
TIME_CHANNELS = 256
CACHED_SCHEDULES = 16


@dataclass
class Patch:
    """What stays the same over the steps of one patch; made by `FlowHead.prepare`.

    first [R,H]: the embedded condition, R = B rows, or 2B with the unconditional rows behind.
    history [R,N,H]: the embedded history. rope: cos, sin [1,1+N+P,D/2].
    """

    first: Tensor
    history: Tensor
    rope: tuple[Tensor, Tensor]


class FlowHead:
    """Velocity field and sampler (docs/model.md section 3).

    Tokens are [time + condition; history; x]. Depth and width come from the weights.
    """

    def __init__(
        self,
        time_mlp: tuple[Linear, Linear],
        x_embedder: Linear,
        cond_embedder: Linear,
        blocks: list[Block],
        final_norm: Tensor,
        final: Linear,
        *,
        hidden_size: int,
        cond_size: int,
        channels: int,
        num_heads: int,
        device: torch.device,
        activation_dtype: torch.dtype,
    ):
        self.time_mlp, self.x_embedder, self.cond_embedder = time_mlp, x_embedder, cond_embedder
        self.blocks, self.final_norm, self.final = blocks, final_norm, final
        self.hidden_size, self.cond_size, self.channels = hidden_size, cond_size, channels
        self.num_heads, self.depth = num_heads, len(blocks)
        self.device, self.activation_dtype = device, activation_dtype
        self.inv_freq = inverse_frequencies(THETA, hidden_size // num_heads).double().to(device)
        half = TIME_CHANNELS // 2
        # exp by way of float64: angles reach 1000, so the last bit of a frequency shows.
        step = torch.arange(half, dtype=torch.float32) * (-math.log(10000) / (half - 1))
        self.time_freq = step.double().exp().float().to(device)
        self._times: OrderedDict[tuple[float, ...], Tensor] = OrderedDict()
        self._ropes: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_state_dict(
        cls,
        tensors: Mapping[str, Tensor],
        num_heads: int,
        pe_attn_head: int | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        activation_dtype: torch.dtype | None = None,
    ) -> FlowHead:
        """A head alone, from names without `flowloss.cfm.model.`.

        num_heads must fit the stored inverse frequencies; pe_attn_head: RoPE on the first so many
        heads only. dtype None: that of the tensors. Raises CheckpointError for keys that are
        missing, unexpected or misshapen.
        """
        if dtype is None:
            dtype = next(iter(tensors.values())).dtype if tensors else torch.float32
            dtype = tensors["x_embedder.weight"].dtype if "x_embedder.weight" in tensors else dtype
        config = FlowConfig(num_heads=num_heads, pe_attn_head=pe_attn_head)
        head, _ = assemble(
            DictTensors(tensors, "the flow head's state dict"),
            lambda w: cls.from_weights(w, config),
            device=device,
            dtype=dtype,
            activation_dtype=activation_dtype,
        )
        return head

    @classmethod
    def from_weights(cls, w: Weights, config: FlowConfig, cond_size: int | None = None) -> FlowHead:
        """cond_size: the condition's width where it is known; the weights must agree."""
        dims = _dims(w, config)
        H, C = dims["hidden_size"], dims["channels"]
        cond = cond_size or dims["cond_size"]
        D = H // config.num_heads
        w.check_buffer("rotary_embed.inv_freq", inverse_frequencies(THETA, D))
        t = w.sub("t_embedder.time_mlp")
        blocks = [
            Block.from_weights(
                w.sub(f"blocks.{i}"),
                H,
                dims["width"],
                config.num_heads,
                config.pe_attn_head,
                last=i + 1 == dims["depth"],
            )
            for i in range(dims["depth"])
        ]
        return cls(
            (t.linear("0", H, TIME_CHANNELS), t.linear("2", H, H)),
            w.linear("x_embedder", H, C),
            w.linear("c_embedder.cond_embedder", H, cond),
            blocks,
            w.vector("final_layer.norm_final.weight", H),
            w.linear("final_layer.linear", C, H),
            hidden_size=H,
            cond_size=cond,
            channels=C,
            num_heads=config.num_heads,
            device=torch.device("meta") if w.dry else w.device,
            activation_dtype=w.activation_dtype,
        )

    def time_embedding(self, t: Tensor) -> Tensor:
        """t [B] in 0..1 -> [B,H]; the sinusoids in float32, in the reference's order."""
        angles = 1000.0 * t.float()[:, None] * self.time_freq
        e = torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.activation_dtype)
        return self.time_mlp[1](self.time_mlp[0](e, activation="silu"))

    def times(self, schedule: ops.FlowSchedule) -> Tensor:
        """The time embeddings [S,H] of a schedule's steps, computed once per schedule."""
        key = schedule.t
        if key not in self._times:
            self._times[key] = self.time_embedding(schedule.grid[:-1].to(self.device))
            if len(self._times) > CACHED_SCHEDULES:
                self._times.popitem(last=False)
        return self._times[key]

    def prepare(self, cond: Tensor, history: Tensor, P: int, *, guided: bool = True) -> Patch:
        """Everything of a patch that does not change from step to step.

        cond [B,Hc], history [B,N,C] with any N, P frames to come. guided: add the unconditional
        rows, whose condition is zero before its embedding, so its bias after it.
        """
        B, N, _ = history.shape
        first = self.cond_embedder(cond.to(self.activation_dtype))
        past = self.x_embedder(history.to(self.activation_dtype))
        if guided:
            first = torch.cat((first, self.cond_embedder.bias.expand(B, -1)))
            past = torch.cat((past, past))
        return Patch(first, past, self._rope(1 + N + P))

    def _rope(self, T: int) -> tuple[Tensor, Tensor]:
        if T not in self._ropes:
            positions = torch.arange(T, device=self.device)[None]
            self._ropes[T] = tables(positions, self.inv_freq)
        return self._ropes[T]

    def step(self, x: Tensor, time: Tensor, patch: Patch) -> Tensor:
        """x [B,P,C], time [H] or [R,H] -> velocities [R,P,C], the conditional rows first."""
        B, P, _ = x.shape
        R = patch.first.shape[0]
        embedded = self.x_embedder(x.to(self.activation_dtype))
        if R != B:
            embedded = torch.cat((embedded, embedded))
        tokens = torch.cat(((patch.first + time)[:, None], patch.history, embedded), dim=1)
        return self.network(tokens, patch.rope, P)

    def network(self, tokens: Tensor, rope: tuple[Tensor, Tensor], rows: int) -> Tensor:
        """tokens [R,T,H] -> the output's last `rows` rows [R,rows,C]."""
        x, T = tokens, tokens.shape[1]
        for index, block in enumerate(self.blocks):
            x = block(x, rope, rows if index + 1 == self.depth else T)
        return self.final(ops.rms_norm(x, self.final_norm, EPS))

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor, history: Tensor) -> Tensor:
        """The conditional velocity: x [B,P,C], t [B], cond [B,Hc], history [B,N,C] -> [B,P,C].

        cond of zeros gives the unconditional one. Raises InputError for shapes that do not fit.
        """
        B, P = self._check("velocity", x, cond, history)
        if t.shape != (B,):
            raise InputError(f"flow.velocity: t must be {[B]}, got {list(t.shape)}")
        patch = self.prepare(cond, history, P, guided=False)
        return self.step(x, self.time_embedding(t), patch)

    def sample(
        self,
        cond: Tensor,
        history: Tensor,
        noise: Tensor,
        steps: int | None = None,
        guidance: float | Sequence[float] | Tensor = 2.0,
        sigma: float = 0.25,
        temperature: float = 1.5,
        *,
        schedule: ops.FlowSchedule | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """One latent patch: cond [B,Hc], history [B,N,C], noise [S+1,B,P,C] -> [B,P,C] float32.

        noise[0] is the start, noise[i] the draw after step i; the one after the last step is not
        used, and may be left out. steps: 10 unless `schedule` says more than (steps, sigma,
        temperature). guidance g >= 0, one for all or [B]: v = v_c + g (v_c - v_u); the number 0
        leaves the unconditional half of the work out. Integration is in float32 whatever the
        network's dtype. trace: receives the start and the state after each step, before noise.
        Raises InputError for shapes or numbers that do not fit.
        """
        if schedule is None:
            steps = 10 if steps is None else steps
            schedule = ops.FlowSchedule.make(steps, sigma=sigma, temperature=temperature)
        elif steps not in (None, schedule.steps):
            raise InputError(
                f"flow.sample: steps is {steps}, but the schedule has {schedule.steps}"
            )
        S = schedule.steps
        if noise.dim() != 4 or not S <= noise.shape[0] <= S + 1:
            raise InputError(
                f"flow.sample: noise must be [S+1, B, P, C] = [{S + 1}, {cond.shape[0]}, P, "
                f"{self.channels}], got {list(noise.shape)}"
            )
        B, P = self._check("sample", noise[0], cond, history)
        scale, guided = self._guidance(guidance, B)
        patch = self.prepare(cond, history, P, guided=guided)
        return self.integrate(patch, noise.float(), schedule, self.times(schedule), scale, trace)

    def integrate(
        self,
        patch: Patch,
        noise: Tensor,
        schedule: ops.FlowSchedule,
        times: Tensor,
        guidance: Tensor,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """The Euler steps of `sample`, on prepared arguments; for torch.compile and CUDA graphs."""
        x, B, S = noise[0], noise.shape[1], schedule.steps
        if trace is not None:
            trace.append(x)
        for i, dt in enumerate(schedule.dt):
            v = self.step(x, times[i], patch)
            v_null = v[B:] if v.shape[0] != B else None
            scale = schedule.noise_scale[i] if i + 1 < S else 0.0
            if trace is not None:
                trace.append(ops.flow_step(x, v[:B], v_null, dt, guidance))
            draw = noise[i + 1] if scale else None
            x = ops.flow_step(x, v[:B], v_null, dt, guidance, draw, scale)
        return x

    def _guidance(self, guidance: float | Sequence[float] | Tensor, B: int) -> tuple[Tensor, bool]:
        """-> guidance [B] on the device, and whether any row needs the unconditional branch."""
        guided = True
        if not isinstance(guidance, Tensor):
            values = [float(guidance)] * B if isinstance(guidance, (int, float)) else guidance
            guidance = torch.tensor(list(values), dtype=torch.float32)
            guided = bool((guidance != 0).any())
        if guidance.shape != (B,):
            raise InputError(
                f"flow.sample: guidance must be a number or {[B]}, got {list(guidance.shape)}"
            )
        if guidance.device.type == "cpu" and not bool(
            (guidance.isfinite() & (guidance >= 0)).all()
        ):
            raise InputError(
                f"flow.sample: guidance must be finite and >= 0, got {guidance.tolist()}"
            )
        return guidance.to(self.device, torch.float32), guided

    def _check(self, what: str, x: Tensor, cond: Tensor, history: Tensor) -> tuple[int, int]:
        C, H = self.channels, self.cond_size
        if x.dim() != 3 or x.shape[-1] != C or x.shape[1] < 1:
            raise InputError(f"flow.{what}: x must be [B, P, {C}], got {list(x.shape)}")
        B, P, _ = x.shape
        if cond.shape != (B, H):
            raise InputError(f"flow.{what}: cond must be {[B, H]}, got {list(cond.shape)}")
        if history.dim() != 3 or history.shape[0] != B or history.shape[2] != C:
            raise InputError(
                f"flow.{what}: history must be [{B}, N, {C}], got {list(history.shape)}"
            )
        return B, P


def _dims(w: Weights, config: FlowConfig) -> dict[str, int]:
    """Depth and widths, from the weights; whatever the config says must agree."""
    what = w.source.what

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = w.shape(name)
        if found is None or len(found) != rank:
            state = "is missing" if found is None else f"must have {rank} dims, got {list(found)}"
            raise CheckpointError(f"{what}: {w.prefix}{name} {state}")
        return found

    def agree(key: str, said: float | None, found: float) -> None:
        if said is not None and said != found:
            raise CheckpointError(
                f"{what}: ditar_config.{key} is {said}, but the weights have {found}"
            )

    H, C = shape("x_embedder.weight", 2)
    (pairs,) = shape("rotary_embed.inv_freq", 1)
    if 2 * pairs * config.num_heads != H:
        raise CheckpointError(
            f"{what}: num_heads is {config.num_heads}, but width {H} and {pairs} inverse "
            f"frequencies make {H / (2 * pairs):g} heads of {2 * pairs}"
        )
    width = shape("blocks.0.mlp.ff.0.0.weight", 2)[0]
    depth = w.count("blocks")
    agree("hidden_size", config.hidden_size, H)
    agree("depth", config.depth, depth)
    if config.mlp_ratio is not None and int(H * config.mlp_ratio) != width:
        agree("mlp_ratio", config.mlp_ratio, width / H)
    agree("qk_norm", config.qk_norm, w.has("blocks.0.attn.q_norm.weight"))
    cond = shape("c_embedder.cond_embedder.weight", 2)[1]
    return {"hidden_size": H, "channels": C, "depth": depth, "width": width, "cond_size": cond}
