"""The speech loop, ours against the eager baseline, patch by patch on the same cores.

Both read the same random checkpoint and the same noise and take turns within a patch, so a busy
machine slows both. First their latents and samples are compared, then they are timed; the last
line is JSON. `python bench/end_to_end.py --size mid --dtype fp32`
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench")]

import reporting  # noqa: E402

from mingcore import model as engine  # noqa: E402
from mingcore.model.formats import WEIGHTS  # noqa: E402
from mingcore.testing.compare import max_relative  # noqa: E402
from mingcore.testing.eager import EagerMing  # noqa: E402
from mingcore.testing.eager.audio import DecoderState  # noqa: E402
from mingcore.testing.synthetic import (  # noqa: E402
    model_config,
    model_names,
    tensor_shapes,
    write_checkpoint,
)
from mingcore.testing.timing import Spread, threads  # noqa: E402

PATCH_S = 0.1
FRAMES, CHANNELS, STEPS = 5, 64, 10
STAGES = ("flow", "decode", "semantic", "llm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# of latents and samples after the same patches; what 16-bit activations of the eager model allow
LIMITS = {"fp32": 1e-3, "bf16": 0.2, "int8": 0.5, "int8_dyn": 0.5, "fp8": 0.5}


class Ours:
    """mingcore's stages, states inside."""

    def __init__(self, folder: Path, device: str, weights: str, expected: int):
        self.model = engine.load(folder, device=device, weights=weights)
        self.expected = expected

    def start(self, ids: Tensor, voice: Tensor, at: Tensor) -> Tensor:
        vae, llm = self.model.vae, self.model.llm
        room = voice.shape[1] + self.expected * FRAMES
        embedding, self.semantic = vae.unify(voice, vae.new_semantic_state(1, room))
        embeds = llm.embed(ids)[None]
        embeds[0, at] = self.model.pool(embedding)[0].to(embeds.dtype)
        self.decoder = vae.new_decoder_state(1)
        hidden, self.state = llm(embeds, llm.new_state(1, embeds.shape[1] + self.expected))
        return hidden[:, -1]

    def flow(self, hidden: Tensor, history: Tensor, noise: Tensor) -> Tensor:
        return self.model.flow.sample(hidden, history, noise, STEPS)

    def decode(self, latents: Tensor) -> Tensor:
        samples, self.decoder = self.model.vae.decode(latents, self.decoder, last=False)
        return samples

    def unify(self, latents: Tensor) -> Tensor:
        embedding, self.semantic = self.model.vae.unify(latents, self.semantic)
        return self.model.pool(embedding)

    def step(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        hidden, self.state = self.model.llm(embeds, self.state)
        return hidden[:, -1], self.model.stop_head(hidden[:, -1])


class Eager:
    """The baseline's stages, states inside; the time of its text head is kept apart."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype, expected: int):
        self.model = EagerMing.load(folder, dtype, device)
        self.head_s = 0.0
        self.sync = torch.cuda.synchronize if device == "cuda" else lambda: None
        head = self.model.model.lm_head
        head.register_forward_pre_hook(lambda *_: self._clock(-1))
        head.register_forward_hook(lambda *_: self._clock(1))

    def _clock(self, sign: int) -> None:
        self.sync()
        self.head_s += sign * time.perf_counter()

    def start(self, ids: Tensor, voice: Tensor, at: Tensor) -> Tensor:
        self.semantic, self.cache, self.decoder = {}, {}, DecoderState()
        embeds = self.model.model.model.word_embeddings(ids)[None].clone()
        unified = self.model.audio.decoder.unify(voice, self.semantic)
        embeds[0, at] = self.model.pool(unified)[0]
        return self.model.model(embeds, self.cache)[0][:, -1]

    def flow(self, hidden: Tensor, history: Tensor, noise: Tensor) -> Tensor:
        return self.model.flow.sample(hidden, history, noise, STEPS)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.audio.decoder.decode(latents, self.decoder, False)

    def unify(self, latents: Tensor) -> Tensor:
        return self.model.pool(self.model.audio.decoder.unify(latents, self.semantic))

    def step(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        self.head_s = 0.0
        hidden, _ = self.model.model(embeds, self.cache)
        return hidden[:, -1], self.model.stop_probability(hidden[:, -1])


@dataclass
class Run:
    """One side of the comparison: where it is, and what it took."""

    side: Any
    hidden: Tensor
    history: Tensor
    start_s: float
    seconds: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    patches: list[float] = field(default_factory=list)
    head_s: list[float] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)

    def patch(self, noise: Tensor, sync: Callable[[], None]) -> None:
        marks = [time.perf_counter()]

        def mark() -> None:
            sync()
            marks.append(time.perf_counter())

        side = self.side
        latents = side.flow(self.hidden, self.history, noise)
        mark()
        samples = side.decode(latents)
        mark()
        embeds = side.unify(latents)
        mark()
        self.hidden, stop = side.step(embeds)
        float(stop)
        mark()
        self.history = latents
        for stage, a, b in zip(STAGES, marks, marks[1:]):
            self.seconds[stage].append(b - a)
        self.patches.append(marks[-1] - marks[0])
        self.head_s.append(getattr(side, "head_s", 0.0))
        self.latents.append(latents.float().cpu())
        self.samples.append(samples.float().cpu())


def checkpoint(size: str, dtype: str, folder: Path | None) -> Path:
    """The folder of a random checkpoint, written when it is not there yet."""
    folder = folder or Path(tempfile.gettempdir(), "mingcore-bench", f"{size}-{dtype}")
    done = folder / "complete"
    if not done.exists():
        print(f"writing a random {size} checkpoint to {folder}", file=sys.stderr)
        write_checkpoint(folder, model_config(size), dtype=DTYPES[dtype], shard_bytes=1 << 29)
        done.touch()
    return folder


def room_for(size: str, dtype: str) -> None:
    """Exit with one line when both models will not fit in memory."""
    shapes = tensor_shapes(model_config(size)).values()
    need = 2 * sum(torch.Size(s).numel() for s in shapes) * DTYPES[dtype].itemsize + (1 << 30)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))
    if free < need:
        raise SystemExit(
            f"end_to_end: two models of size {size} in {dtype} need {need / 2**30:.1f} GiB of "
            f"memory, {free / 2**30:.1f} GiB is available"
        )


@torch.inference_mode()
def compare(
    folder: Path, device: str, dtype: str, weights: str, patches: int, warm: int
) -> dict[str, Run]:
    """Run both sides for `warm` + `patches` patches; timings of the first `warm` are dropped.

    dtype: of the checkpoint and of the baseline; weights: of our large matrices.
    """
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    total = warm + patches
    generator = torch.Generator().manual_seed(0)
    voice = torch.randn(1, 30 * FRAMES, CHANNELS, generator=generator).to(device)
    ids = torch.randint(0, 400, (100 + 30,), generator=generator).to(device)
    at = torch.zeros(len(ids), dtype=torch.bool)
    at[-30:] = True
    at = at.to(device)
    noise = torch.randn(total, STEPS + 1, 1, FRAMES, CHANNELS, generator=generator).to(device)
    runs = {}
    kinds = (("ours", Ours, weights), ("eager", Eager, DTYPES[dtype]))
    for name, kind, stored in kinds:
        side = kind(folder, device, stored, total)
        side.start(ids, voice, at)  # warms up
        sync()
        began = time.perf_counter()
        hidden = side.start(ids, voice, at)
        sync()
        runs[name] = Run(side, hidden, voice[:, -FRAMES:], time.perf_counter() - began)
    for i in range(total):
        order = list(runs.values())
        for run in reversed(order) if i % 2 else order:
            run.patch(noise[i], sync)
        check(runs, i, LIMITS.get(weights, LIMITS[dtype]))
    for run in runs.values():
        run.patches = run.patches[warm:]
        run.head_s = run.head_s[warm:]
        run.seconds = {stage: values[warm:] for stage, values in run.seconds.items()}
    return runs


def check(runs: dict[str, Run], patch: int, limit: float) -> None:
    """The first patches agree; later ones drift apart by rounding alone and are not compared."""
    if patch > 1:
        return
    a, b = runs["ours"], runs["eager"]
    for what in ("latents", "samples"):
        error = max_relative(getattr(a, what)[patch], getattr(b, what)[patch])
        if not error <= limit:
            raise SystemExit(f"end_to_end: {what} of patch {patch} differ by {error:.2e} > {limit}")


def summary(runs: dict[str, Run]) -> dict[str, Any]:
    """Milliseconds per stage and patch for each side, and the ratio patch by patch."""
    content: dict[str, Any] = {}
    for name, run in runs.items():
        stages = {s: Spread.of(v).scaled(1e3).as_dict() for s, v in run.seconds.items()}
        if any(run.head_s):
            stages["llm: text head alone"] = Spread.of(run.head_s).scaled(1e3).as_dict()
        patch = Spread.of(run.patches)
        content[name] = {
            "stages_ms": stages,
            "patch_ms": patch.scaled(1e3).as_dict(),
            "real_time_factor": patch.median / PATCH_S,
            "prompt_ms": run.start_s * 1e3,
        }
    pairs = zip(runs["eager"].patches, runs["ours"].patches)
    content["speedup"] = Spread.of([slow / fast for slow, fast in pairs]).as_dict()
    content["speedup_by_stage"] = {
        stage: Spread.of(
            [s / f for s, f in zip(runs["eager"].seconds[stage], runs["ours"].seconds[stage])]
        ).as_dict()
        for stage in STAGES
    }
    return content


def show(content: dict[str, Any]) -> None:
    rows = []
    for stage in (*STAGES, "llm: text head alone"):
        mine = content["ours"]["stages_ms"].get(stage)
        theirs = content["eager"]["stages_ms"].get(stage)
        ratio = content["speedup_by_stage"].get(stage)
        rows.append([stage, *(x and x["median"] for x in (mine, theirs, ratio))])
    speedup = content["speedup"]
    ours, eager = content["ours"], content["eager"]
    rows.append(
        ["patch", ours["patch_ms"]["median"], eager["patch_ms"]["median"], speedup["median"]]
    )
    rows.append(
        ["prompt", ours["prompt_ms"], eager["prompt_ms"], eager["prompt_ms"] / ours["prompt_ms"]]
    )
    print(reporting.table(("stage", "ours ms", "eager ms", "x faster"), rows))
    print(
        f"real-time factor {ours['real_time_factor']:.2f} (eager {eager['real_time_factor']:.2f}); "
        f"{speedup['median']:.2f}x faster ({speedup['p10']:.2f} to {speedup['p90']:.2f})"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=model_names(), default="mid")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--weights", choices=WEIGHTS, help="of our large matrices; default --dtype")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--patches", type=int, default=12)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--checkpoint", type=Path, help="folder of the random checkpoint, kept")
    parser.add_argument("--out", type=Path, help="folder of the result; default bench/results/...")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("end_to_end: no GPU here that PyTorch can use")
    if options.device == "cpu":
        room_for(options.size, options.dtype)
    weights = options.weights or options.dtype
    folder = checkpoint(options.size, options.dtype, options.checkpoint)
    with threads(options.threads):
        runs = compare(
            folder, options.device, options.dtype, weights, options.patches, options.warm
        )
        content = reporting.result(
            "end_to_end",
            size=options.size,
            dtype=options.dtype,
            weights=weights,
            device=options.device,
            patches=options.patches,
            prompt="100 text tokens, 3 s of voice",
            **summary(runs),
        )
    show(content)
    if not options.no_save:
        name = f"end_to_end-{options.size}-{options.dtype}"
        name += "" if weights == options.dtype else f"-{weights}"
        print(f"kept in {reporting.keep(name, content, options.out)}")
    reporting.last_line(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
