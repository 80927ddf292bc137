"""One patch of a stream through the AudioVAE's decoder, on tensors that stay where they are.

For every order of backends a stream is held, patch by patch, against the same weights in float32:
its error may be twice that of the reference backend. On a GPU a step is then captured in a CUDA
graph, and its replays are held to the same, with only the latents' contents changed in between; so
a state that a graph cannot carry on is found. What passes is timed: replays in turns, the same
steps from Python besides. On a CPU it is the same walk without a graph. `bench_decoder.py --graph`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import reporting
from measure import served
from mingcore.errors import BackendError
from mingcore.model.vae import AudioVAE
from mingcore.ops import use_backend
from mingcore.testing.compare import relative_l2
from mingcore.testing.roofline import ceilings
from mingcore.testing.timing import events_interleaved, graph_interleaved, interleaved

PATCH = 5  # latents
# The first is what the automatic choice gives where every kernel is verified.
ORDERS = {"cuda": ("cuda,triton,reference", "triton,reference", "reference"), "cpu": ("cpu,reference", "reference")}
WARM, PATCHES = 8, 4  # patches until the window is full; those compared afterwards
FACTOR, FLOOR = 2.0, 1e-4  # of the reference backend's error, and what is always allowed


class Stream:
    """One stream on static tensors: `latents` are read, the state is changed in place."""

    def __init__(self, vae: AudioVAE, order: str):
        backbone = vae.decoder.backbone
        self.vae, self.order = vae, order
        self.latents = torch.zeros(
            1, PATCH, vae.config.latent_dim, dtype=backbone.activation_dtype, device=backbone.device
        )
        self.state = vae.new_decoder_state(1)
        self.samples = self.latents.new_empty(1, 0)
        self.begun_at = self.places()

    def step(self) -> None:
        with use_backend(self.order):
            self.samples, _ = self.vae.decode(self.latents, self.state, last=False)

    def run(self, latents: Tensor, step: Callable[[], Any]) -> Tensor:
        """The samples of one patch; AssertionError when the state has moved or grown."""
        self.latents.copy_(latents)
        step()
        if self.places() != self.begun_at:
            raise AssertionError("the state's tensors moved: a graph would go on from old ones")
        return self.samples.clone()

    def places(self) -> list[tuple[int, int]]:
        """Address and size of every tensor that the next step reads."""
        kv, overlap = self.state.backbone, self.state.overlap
        tensors = [*kv.keys, *kv.values, kv.lengths, overlap.numerator, overlap.lengths]
        return [(t.data_ptr(), t.nbytes) for t in (*tensors, overlap.emitted, self.latents)]


def captured(stream: Stream) -> Callable[[], None]:
    """Replays of one step in a CUDA graph; on a CPU the step itself. Warm up before."""
    if stream.latents.device.type == "cpu":
        return stream.step
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream.step()
    return graph.replay


def errors(stream: Stream, step: Callable[[], None], patches: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of each patch, relative to the exact one."""
    return [relative_l2(stream.run(z, step), e) for z, e in zip(patches, exact, strict=True)]


def check(order: str, got: list[float], reference: list[float]) -> None:
    """AssertionError where the error is beyond what the reference backend's own allows."""
    for i, (ours, theirs) in enumerate(zip(got, reference, strict=True)):
        limit = FACTOR * theirs + FLOOR
        if not ours <= limit:
            raise AssertionError(f"{order}: patch {i} is off by {ours:.2e}, limit {limit:.2e}")


def step_bytes(stream: Stream) -> int:
    """What one patch must read: weights, the window's keys and values, the carried sums."""
    decoder, state = stream.vae.decoder, stream.state
    linears, vectors = [decoder.fc1, decoder.head], [decoder.window, decoder.backbone.norm]
    for layer in decoder.backbone.layers:
        linears += [layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down]
        vectors += [layer.attention_norm, layer.mlp_norm]
    vectors += [linear.bias for linear in linears if linear.bias is not None]
    kv = state.backbone
    cache = sum(
        k[:, : w - 1 + PATCH].nbytes + v[:, : w - 1 + PATCH].nbytes for k, v, w in zip(kv.keys, kv.values, kv.windows)
    )
    other = (*vectors, stream.latents, state.overlap.numerator, stream.samples)
    return sum(linear.weight.nbytes for linear in linears) + cache + sum(t.nbytes for t in other)


def measure(
    tensors: dict[str, Tensor], config: dict, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for every order that is right, and what is wrong with the others."""
    device = options.device
    rounded = {name: t.to(device).bfloat16().float() for name, t in tensors.items()}
    tensors.clear()  # 1.6 GB at the real size
    make = AudioVAE.from_state_dict
    vae = make(rounded, config, dtype=torch.bfloat16, device=device)
    generator = torch.Generator().manual_seed(1)
    count = WARM + 2 * PATCHES
    like = Stream(vae, "reference").latents
    patches = [torch.randn(like.shape, generator=generator).to(like) for _ in range(count)]
    wide = Stream(make(rounded, config, dtype=torch.float32, device=device), "reference")
    exact = [wide.run(z, wide.step) for z in patches]
    plain = Stream(vae, "reference")
    allowed = errors(plain, plain.step, patches, exact)
    right, rows, wrong = [], {}, {}
    for order in ORDERS[device]:
        stream = Stream(vae, order)
        try:
            eager = WARM + PATCHES
            got = errors(stream, stream.step, patches[:eager], exact[:eager])
            check(order, got, allowed[:eager])
            if order != "reference":  # its formulas may wait for the device
                replay = captured(stream)
                more = errors(stream, replay, patches[eager:], exact[eager:])
                check(f"{order}, replayed", more, allowed[eager:])
                got += more
        except (AssertionError, BackendError, RuntimeError) as error:
            wrong[order] = f"{type(error).__name__}: {error}"
            continue
        by_op = served(stream.step)
        backends = sorted(set("+".join(by_op.values()).split("+")))
        right.append(stream)
        rows[order] = {
            "op": "decode",
            "size": options.size,
            "dtype": "bf16",
            "device": device,
            "order": order,
            "backend": "+".join(backends),
            "served": by_op,
            "error": max(got),
            "reference_error": max(allowed),
            "nbytes": step_bytes(stream),
        }
    read_gbs = ceilings(device, quick=options.quick).read_gbs
    ours = [stream for stream in right if stream.order != "reference"]
    for group, capturable in ((ours, True), (right[len(ours) :], False)):
        _time(group, rows, options, read_gbs, capturable and device == "cuda")
    return list(rows.values()), wrong


def _time(
    streams: list[Stream], rows: dict[str, dict[str, Any]], options: argparse.Namespace, read_gbs: float, graph: bool
) -> None:
    """Fill in the rows: ms of a step in a graph, in turns, or else of one from Python."""
    steps = {stream.order: stream.step for stream in streams}
    if not steps:
        return
    if options.device == "cpu":
        rounds = 3 if options.quick else 15
        plain = measured = interleaved(steps, rounds=rounds, budget_s=options.budget)
    else:
        plain = measured = events_interleaved(steps, rounds=5, budget_s=options.budget)
    if graph:
        measured = graph_interleaved(steps, budget_s=options.budget)
    for order in steps:
        took, row = measured.time_s(order).scaled(1e3), rows[order]
        gbs = row["nbytes"] / took.median / 1e6
        rows[order] = {
            **row,
            "graph": graph,
            "ms": took.median,
            "ms_p10": took.low,
            "ms_p90": took.high,
            "no_graph_ms": 1e3 * plain.time_s(order).median,
            "gbs": gbs,
            "read_share": gbs / read_gbs,
        }


def main(tensors: dict[str, Tensor], config: dict, options: argparse.Namespace) -> int:
    """Measure, print and keep; 1 where an order was wrong or could not be captured."""
    with torch.inference_mode():
        rows, wrong = measure(tensors, config, options)
        ceiling = ceilings(options.device, quick=options.quick)
    content = reporting.result(
        "decoder",
        size=options.size,
        device=options.device,
        rows=rows,
        wrong=wrong,
        ceilings={options.device: ceiling.as_dict()},
    )
    print(table(rows))
    for row in rows:
        print(f"{row['order']}: {', '.join(f'{op} {by}' for op, by in row['served'].items())}")
    for order, why in wrong.items():
        print(f"{order}: not timed: {why}")
    if options.keep:
        reporting.keep(f"decoder-{options.size}-{options.device}", content, options.keep)
    reporting.last_line(content)
    return 1 if wrong else 0


def table(rows: list[dict[str, Any]]) -> str:
    head = ("backends", "graph", "ms", "p10", "p90", "ms from Python", "GB/s", "% read", "error")
    cells = [
        (
            r["order"],
            r["graph"],
            r["ms"],
            r["ms_p10"],
            r["ms_p90"],
            r["no_graph_ms"],
            r["gbs"],
            round(100 * r["read_share"]),
            f"{r['error']:.1e}",
        )
        for r in rows
    ]
    return reporting.table(head, cells)
