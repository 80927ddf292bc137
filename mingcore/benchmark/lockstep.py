"""Times one patch by its stages, ours and the eager baseline's, interleaved on the same inputs.

Both speak the same prompts with the same noise. The first patches are compared, so that nothing wrong is timed; then
the sides alternate patch by patch, so that a busy machine slows both. On a GPU each of our stages is a CUDA graph, and
the device is synchronised after every stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import MingError
from ..runtime.graphs import Graphs, graphs_for
from ..runtime.model_runner import ModelRunner
from ..runtime.params import FlowParams
from ..runtime.prefill import PrefillTarget
from ..runtime.speaking import Speaking
from ..runtime.step import FlowGroup, decode_audio, encode_audio, llm_step, sample_latents
from ..runtime.task import patch_seconds
from ..testing.compare import max_relative
from ..testing.eager import EagerMing
from ..testing.eager.audio import DecoderState
from ..testing.timing import Spread
from .serving import new_request

STAGES = ("flow", "decode", "semantic", "llm")
COMPARED = 2  # patches; later ones diverge by rounding
# of the relative error of their latents and samples; 16-bit activations of the eager model need the wider ones
LIMITS = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.2, "int8": 0.5, "int8_dyn": 0.5, "fp8": 0.5}

Mark = Callable[[], None]


class Differs(MingError, AssertionError):
    """Ours and the baseline differ by more than the limit; nothing was timed."""


class Ours:
    """Our captured step of `batch` sequences, stage by stage; as CUDA graphs on a GPU."""

    def __init__(self, model, batch: int, patches: int, *, graphs: bool = True):
        self.model, self.batch, self._patches = model, batch, patches
        seconds = (patches + 1) * patch_seconds(model.config)
        self.runner = ModelRunner(model, batch, seconds=seconds, graphs=Graphs(None))
        self.graphs = graphs_for(model.llm.device) if graphs else Graphs(None)
        self.full = not self.graphs.used
        config, flow = model.config, FlowParams()
        shape = (flow.steps + 1, batch, config.patch_frames, config.latent_dim)
        self._noise = torch.zeros(shape, device=model.llm.device)
        packed, schedule = model.flow.packed, flow.schedule
        view = self.runner.view(batch)
        groups = [FlowGroup(schedule, True, self._noise)]
        # constants of the head's caches; the graphs need them to stay alive
        keep_alive = (packed.times(schedule), packed.steps(schedule), packed.rope(11))
        self._outputs: dict[str, Any] = {}
        self._stages = {
            "flow": lambda: sample_latents(model, view, groups),
            "decode": lambda: decode_audio(model, view, self._outputs["flow"], full=self.full),
            "semantic": lambda: encode_audio(model, view, full=self.full),
            "llm": lambda: llm_step(model, view, self._outputs["semantic"], full=self.full),
        }
        if self.graphs.used:
            for name, stage in self._stages.items():  # no sequence is active, so no state changes
                self.graphs.add(name, stage, keep_alive)
                self._outputs[name] = self.graphs.run(name, stage)

    def start(self) -> None:
        """Prefills voice and prompt of every sequence, one after the other."""
        for row in range(self.batch):
            request = new_request(self.model, row, self._patches)
            speaking = Speaking(self.model, request)
            segment = speaking.next_segment()
            self.runner.clear(row)
            state = self.runner.state.rows(row, row + 1)
            result = speaking.prefill(segment, PrefillTarget(state.llm, state.semantic)).run()
            self.runner.begin(row, result, segment, request.flow.guidance)

    def patch(self, noise: Tensor, mark: Mark) -> None:
        self._noise.copy_(noise)
        self.runner.view(self.batch)  # updates the bounds of its caches
        for name, stage in self._stages.items():
            self._outputs[name] = self.graphs.run(name, stage)
            mark()
        self.runner.state.count_step([True] * self.batch)

    @property
    def latents(self) -> Tensor:
        return self._outputs["flow"].latents

    @property
    def samples(self) -> Tensor:
        samples, counts = self._outputs["decode"]
        return samples[:, : int(counts[0])]


class Baseline:
    """The eager model, stage by stage."""

    def __init__(self, eager: EagerMing, model, batch: int, patches: int):
        self.eager, self.model, self.batch = eager, model, batch
        self._patches = patches
        self.latents = self.samples = self._hidden = self._history = None

    def start(self) -> None:
        eager, requests = self.eager, [new_request(self.model, row, self._patches) for row in range(self.batch)]
        self._semantic, self._cache, self._decoder = {}, {}, DecoderState()
        prompt = Speaking(self.model, requests[0]).next_segment().prompt
        device = requests[0].latents.device
        ids = torch.tensor(prompt.ids, device=device)
        voice = torch.cat([request.latents for request in requests])
        embeds = eager.model.model.word_embeddings(ids).repeat(self.batch, 1, 1)
        unified = eager.audio.decoder.unify(voice, self._semantic)
        embeds[:, torch.tensor(prompt.audio_mask, device=device)] = eager.pool(unified)
        self._hidden = eager.model(embeds, self._cache)[0][:, -1]
        self._history = voice[:, -self.model.config.patch_frames :]

    def patch(self, noise: Tensor, mark: Mark) -> None:
        eager = self.eager
        self.latents = eager.flow.sample(self._hidden, self._history, noise, FlowParams().steps)
        mark()
        self.samples = eager.audio.decoder.decode(self.latents, self._decoder, False)
        mark()
        embeds = eager.pool(eager.audio.decoder.unify(self.latents, self._semantic))
        mark()
        self._hidden = eager.model(embeds, self._cache)[0][:, -1]
        eager.stop_probability(self._hidden)
        mark()
        self._history = self.latents


@dataclass
class TimedSide:
    """One side and its times, in seconds."""

    side: Any
    start: float = 0.0
    first_audio: float = 0.0
    stages: list[list[float]] = field(default_factory=list)

    def patch(self, noise: Tensor, sync: Mark) -> None:
        marks = [time.perf_counter()]

        def mark() -> None:
            sync()
            marks.append(time.perf_counter())

        self.side.patch(noise, mark)
        self.stages.append([b - a for a, b in pairwise(marks)])
        if len(self.stages) == 1:
            self.first_audio = self.start + marks[2] - marks[0]

    def as_dict(self, warm: int, seconds: float) -> dict[str, Any]:
        timed = self.stages[warm:]
        patch = Spread.of([sum(stages) for stages in timed])
        stages = {name: Spread.of(values).scaled(1e3).as_dict() for name, values in zip(STAGES, zip(*timed))}
        return {
            "stages_ms": stages,
            "patch_ms": patch.scaled(1e3).as_dict(),
            "real_time_factor": patch.median / seconds,
            "prompt_ms": 1e3 * self.start,
            "first_audio_ms": 1e3 * self.first_audio,
        }


@torch.inference_mode()
def compare(
    model,
    eager: EagerMing | None,
    batch: int,
    *,
    patches: int,
    warm: int = 2,
    limit: float = LIMITS["fp32"],
    budget_s: float = float("inf"),
) -> dict[str, Any]:
    """Times both sides, or ours alone (eager None), for `warm` + `patches` patches without the first `warm`.

    Ends early after `budget_s` seconds, with two patches at least. limit: of the relative error between the sides.
    Raises Differs.
    """
    device, config = model.llm.device, model.config
    sync = partial(torch.cuda.synchronize, device) if device.type == "cuda" else _nothing
    total = warm + patches
    runs = {"ours": TimedSide(Ours(model, batch, total + 2))}
    if eager is not None:
        runs["eager"] = TimedSide(Baseline(eager, model, batch, total + 2))
    for run in runs.values():
        if eager is not None or device.type == "cuda":
            run.side.start()  # warms up
        sync()
        begun = time.perf_counter()
        run.side.start()
        sync()
        run.start = time.perf_counter() - begun
    generator = torch.Generator().manual_seed(0)
    shape = (FlowParams().steps + 1, batch, config.patch_frames, config.latent_dim)
    begun = time.perf_counter()
    for i in range(total):
        noise = torch.randn(shape, generator=generator).to(device)
        order: Sequence[TimedSide] = list(runs.values())
        for run in reversed(order) if i % 2 else order:
            run.patch(noise, sync)
        if eager is not None and i < COMPARED:
            _check(runs["ours"].side, runs["eager"].side, i, limit)
        if i > warm and time.perf_counter() - begun > budget_s:
            break
    seconds = patch_seconds(config)
    found: dict[str, Any] = {name: run.as_dict(warm, seconds) for name, run in runs.items()}
    if eager is not None:
        a, b = ([[sum(stages), *stages] for stages in runs[side].stages[warm:]] for side in ("ours", "eager"))
        ratios = [Spread.of([slow / fast for slow, fast in zip(x, y)]).as_dict() for x, y in zip(zip(*b), zip(*a))]
        found["speedup"], *stages = ratios
        found["speedup_by_stage"] = dict(zip(STAGES, stages))
    return found


def _nothing() -> None:
    """The synchronisation of a CPU: its calls are not asynchronous."""


def _check(ours: Ours, eager: Baseline, patch: int, limit: float) -> None:
    for what in ("latents", "samples"):
        a, b = (getattr(side, what).float().cpu() for side in (ours, eager))
        error = max_relative(a, b)
        if not error <= limit:
            raise Differs(
                f"bench: {what} of patch {patch} differ from the baseline's by {error:.2e} of "
                f"their maximum, more than {limit}; nothing was timed"
            )
