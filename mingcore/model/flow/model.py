"""The flow head and its sampler: from noise to a latent patch, with guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import ops
from ...config.model_config import FlowConfig
from ...errors import InputError
from ..declared import Build, Declared
from ..layers import Linear
from ..sources import DictTensors
from ..weights import Weights, assemble
from .block import EPS, FlowBlock
from .weights import declare_flow_head

COND, X, FINAL = 0, 1, 6  # of `PackedFlowHead.matrices`


@dataclass
class PatchInputs:
    """What the flow head reads at every step of one patch; made by `FlowHead.prepare`.

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

    def __init__(self, packed: ops.PackedFlowHead, activation_dtype: torch.dtype):
        self.packed, self.activation_dtype = packed, activation_dtype
        self.hidden_size, self.cond_size = packed.hidden, packed.cond_size
        self.channels, self.num_heads, self.depth = packed.channels, packed.heads, packed.depth
        self.device = packed.device
        self.x_embedder, self.cond_embedder = (Linear(*packed.linear(X)), Linear(*packed.linear(COND)))
        self.blocks = [FlowBlock(packed, i) for i in range(packed.depth)]
        self.final_norm, self.final = packed.norms[2], Linear(*packed.linear(FINAL))

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
        return assemble(
            DictTensors(tensors, "the flow head's state dict"),
            lambda w: cls.declare(w, config),
            device=device,
            dtype=dtype,
            activation_dtype=activation_dtype,
        )

    @classmethod
    def declare(cls, w: Weights, config: FlowConfig, cond_size: int | None = None) -> Declared[FlowHead]:
        """cond_size: the condition's width where it is known; the weights must agree."""
        return Build(cls, declare_flow_head(w, config, cond_size), w.activation_dtype)

    def time_embedding(self, t: Tensor) -> Tensor:
        """t [B] in 0..1 -> [B,H] float32."""
        return self.packed.time_embedding(t)

    def times(self, schedule: ops.FlowSchedule) -> Tensor:
        """The time embeddings [E,H] of a schedule's evaluations, computed once per schedule."""
        return self.packed.times(schedule)

    def prepare(self, cond: Tensor, history: Tensor, P: int, *, guided: bool = True) -> PatchInputs:
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
        cos, sin = self.packed.rope(1 + N + P)
        return PatchInputs(first, past, (cos[None], sin[None]))

    def step(self, x: Tensor, time: Tensor, inputs: PatchInputs) -> Tensor:
        """x [B,P,C], time [H] or [R,H] -> velocities [R,P,C], the conditional rows first."""
        B, P, _ = x.shape
        R = inputs.first.shape[0]
        embedded = self.x_embedder(x.to(self.activation_dtype))
        if R != B:
            embedded = torch.cat((embedded, embedded))
        first = (inputs.first + time).to(embedded.dtype)
        tokens = torch.cat((first[:, None], inputs.history, embedded), dim=1)
        return self.network(tokens, inputs.rope, P)

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
        inputs = self.prepare(cond, history, P, guided=False)
        return self.step(x, self.time_embedding(t), inputs)

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
        noise_scale: float | Tensor = 1.0,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """One latent patch: cond [B,Hc], history [B,N,C], noise [S+1,B,P,C] -> [B,P,C] float32.

        noise[0] is the start, noise[i] the draw after step i; the one after the last step is not
        used, and may be left out. steps: 10 unless `schedule` says more than (steps, sigma,
        temperature). guidance g >= 0, one for all or [B]: v = v_c + g (v_c - v_u); the number 0
        leaves the unconditional half of the work out. noise_scale: times the schedule's own, one
        for all or [B] float32. Integration is in float32 whatever the network's dtype. trace:
        receives the start and the state after each step, before noise; the steps are then taken one
        by one. Raises InputError for shapes or numbers that do not fit.
        """
        if schedule is None:
            steps = 10 if steps is None else steps
            schedule = ops.FlowSchedule.make(steps, sigma=sigma, temperature=temperature)
        elif steps not in (None, schedule.steps):
            raise InputError(f"flow.sample: steps is {steps}, but the schedule has {schedule.steps}")
        S = schedule.steps
        if noise.dim() != 4 or not S <= noise.shape[0] <= S + 1:
            raise InputError(
                f"flow.sample: noise must be [S+1, B, P, C] = [{S + 1}, {cond.shape[0]}, P, "
                f"{self.channels}], got {list(noise.shape)}"
            )
        B, P = self._check("sample", noise[0], cond, history)
        scale, guided = self._guidance(guidance, B)
        noise = noise.float()
        if trace is None:
            return ops.flow_sample(
                self.packed,
                schedule,
                cond.to(self.activation_dtype),
                history.to(self.activation_dtype),
                noise,
                scale,
                noise_scale=noise_scale,
                guided=guided,
            )
        inputs = self.prepare(cond, history, P, guided=guided)
        times = self.times(schedule)
        return self.integrate(inputs, noise, schedule, times, scale, noise_scale, trace)

    def integrate(
        self,
        inputs: PatchInputs,
        noise: Tensor,
        schedule: ops.FlowSchedule,
        times: Tensor,
        guidance: Tensor,
        noise_scale: float | Tensor = 1.0,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """The steps of `sample` one by one, out of the other ops, on prepared arguments."""
        x = base = noise[0]
        B, draw = noise.shape[1], 0
        if trace is not None:
            trace.append(x)
        for e, time in zip(schedule.evaluations, times):
            v = self.step(x, time, inputs)
            v_null = v[B:] if v.shape[0] != B else None
            draw += e.advance
            if trace is not None and e.advance:
                trace.append(ops.flow_step(base, v[:B], v_null, e.dt, guidance))
            noisy = noise[draw] if e.noise_scale else None
            scale = e.noise_scale * noise_scale
            x = ops.flow_step(base, v[:B], v_null, e.dt, guidance, noisy, scale)
            base = x if e.advance else base
        return x

    def _guidance(self, guidance: float | Sequence[float] | Tensor, B: int) -> tuple[Tensor, bool]:
        """-> guidance [B] on the device, and whether any row needs the unconditional branch.

        A tensor that is on a GPU already, or inside a graph, is not looked into.
        """
        if isinstance(guidance, Tensor):
            values = None
            if guidance.device.type == "cpu" and not torch.compiler.is_compiling():
                values = guidance.flatten().tolist()
        elif isinstance(guidance, (int, float)):
            values = [float(guidance)]
            guidance = torch.full((B,), values[0], dtype=torch.float32, device=self.device)
        else:
            values = list(guidance)
            guidance = torch.tensor(values, dtype=torch.float32)
        if guidance.shape != (B,):
            raise InputError(f"flow.sample: guidance must be a number or {[B]}, got {list(guidance.shape)}")
        if values is not None and not all(0 <= g < math.inf for g in values):
            raise InputError(f"flow.sample: guidance must be finite and >= 0, got {values}")
        guided = values is None or any(g != 0 for g in values)
        return guidance.to(self.device, torch.float32), guided

    def _check(self, what: str, x: Tensor, cond: Tensor, history: Tensor) -> tuple[int, int]:
        C, H = self.channels, self.cond_size
        if x.dim() != 3 or x.shape[-1] != C or x.shape[1] < 1:
            raise InputError(f"flow.{what}: x must be [B, P, {C}], got {list(x.shape)}")
        B, P, _ = x.shape
        if cond.shape != (B, H):
            raise InputError(f"flow.{what}: cond must be {[B, H]}, got {list(cond.shape)}")
        if history.dim() != 3 or history.shape[0] != B or history.shape[2] != C:
            raise InputError(f"flow.{what}: history must be [{B}, N, {C}], got {list(history.shape)}")
        return B, P
