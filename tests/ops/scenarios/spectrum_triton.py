"""Triton's overlap_add and spectrum_head without a GPU: streams, awkward inputs, and binaries.

`compile_all`: the very launches that the real shapes lead to, for one GPU and some of them for two
others; "few": some for one; "all": every type and batch for three.
"""

import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned, strided
from mingcore.testing import compare, streaming
from mingcore_kernels.lib.target import assumed
from mingcore_kernels.spectrum import overlap_add, spectrum_head
from tests.ops.runners import interpreted
from tests.ops.runners.triton_launches import compiled, meta, recorded, report

CAPABILITIES = (80, 90, 100)
H, F, HOP = 896, 1280, 320  # the released head
BLOCKS = ("BLOCK_M", "BLOCK_N", "BLOCK_T", "BLOCK_I", "BLOCK_K", "SPLIT", "SPLITS")


def check(op: str, kwargs: dict) -> None:
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="triton")
    compare.check_op(op, kwargs, got)


def streams(seed: int, T: int) -> None:
    interpreted.spectrum_tiles(2)
    sizes = ((16, 4), (12, 4), (24, 5), (20, 20), (10, 8), (18, 3), (14, 1))
    (size, hop), d = sizes[seed], cases.Draw("cpu", torch.float32, seed)
    window = 0.3 + torch.hann_window(size)
    call = {"window": window, "hop": hop}
    head = {"weight": d.matrix(size + 2, 11), "bias": d.normal(size + 2), **call}
    for op, given in (
        ("overlap_add", {"frames": d.normal(3, T, size), **call}),
        ("spectrum_head", {"hidden": d.normal(3, T, 11), **head}),
    ):
        expected = streaming.once(op, given, "triton")
        pieces = streaming.split(T, seed)
        for form in (streaming.chunked, streaming.in_place):
            streaming.assert_same(form(op, given, pieces, "triton"), expected, f"{op} {pieces}")
        got, alone = streaming.by_rows(op, given, seed, "triton")
        for b, (mine, other) in enumerate(zip(got, alone, strict=True)):
            streaming.assert_same(mine, other, f"{op} row {b}")
        report(streamed=op, size=size, hop=hop)


def awkward() -> None:
    """No bias; a window of another type; loud and quiet; large phases; inputs with gaps."""
    interpreted.spectrum_tiles(2)
    d = cases.Draw("cpu", torch.float32, 5)
    window, state = torch.hann_window(32), ops.OverlapState.start(2, 32, 8)
    hidden, weight = d.normal(2, 3, 24), d.matrix(34, 24)
    given = {"hidden": hidden, "weight": weight, "bias": None, "window": window, "hop": 8}
    given |= {"state": None, "last": True}
    bias = torch.cat((torch.linspace(-20, 12, 17), torch.linspace(-900, 900, 17)))
    frames = strided(d.normal(2, 3, 32))
    for op, kwargs in (
        ("spectrum_head", given),
        ("spectrum_head", {**given, "bias": bias}),
        ("spectrum_head", {**given, "weight": weight.half()}),
        ("spectrum_head", {**given, "window": window.half(), "hidden": hidden.half()}),
        ("overlap_add", {"frames": frames[:, ::2].half(), "window": window, "hop": 8, "state": state, "last": False}),
    ):
        check(op, kwargs)
        report(awkward=op)
    loud = {**given, "bias": torch.full((34,), torch.nan)}
    assert ops.spectrum_head(**loud, backend="triton")[0].isnan().all(), "NaN must stay"


def refused() -> None:
    frames, window = torch.randn(1, 2, 8).double(), torch.ones(8)
    state = ops.OverlapState.start(1, 8, 2, dtype=torch.float64)
    weight = torch.randn(5, 10).T
    for call in (
        lambda: ops.overlap_add(frames, window, 2, None, False, backend="triton"),
        lambda: ops.overlap_add(frames.float(), window, 2, state, False, backend="triton"),
        lambda: ops.spectrum_head(frames[..., :5].float(), weight, None, window, 2, None, False, backend="triton"),
    ):
        try:
            call()
        except BackendError as error:
            report(refused=str(error))


def launches(mode: str) -> None:
    """Of one patch, of many streams, and of ten seconds at once."""
    every = mode == "all"
    for B, T in ((1, 5), (32, 5), (1, 500), (1, 20)) if every else ((1, 5), (1, 500)):
        f32, i64 = torch.float32, torch.int64
        window, basis = meta(F, dtype=f32), meta(F, F, dtype=f32)
        for x in (torch.bfloat16, torch.float32, torch.float16) if every else (torch.bfloat16,):
            for L, last in (((T + 3) * HOP - 480, True), (T * HOP, False)):
                own = [meta(B, L, dtype=f32), meta(B, F - HOP, dtype=f32)]
                own += [meta(B, dtype=i64), meta(B, dtype=i64)]
                state, rows = ((None, None) if T > 20 else tuple(own[1:3])), (None, None, last)
                if not last:
                    rows = meta(B, dtype=i64), meta(B, dtype=torch.bool), False
                frames = meta(B, T, F, dtype=f32)
                overlap_add.overlap_add(frames, window, HOP, *state, *rows, *own)
                weight, bias = meta(F + 2, H, dtype=x), meta(F + 2, dtype=x)
                spectrum_head.spectrum_head(
                    meta(B, T, H, dtype=x), weight, bias, window, HOP, basis, *state, *rows, *own
                )


def compile_all(mode: str) -> None:
    for capability in CAPABILITIES:
        with assumed(capability, processors=132):
            found = recorded(lambda: launches(mode))
        if mode == "few":
            found = found[:3] if capability == 90 else []
        elif mode != "all" and capability != 90:
            found = found[1::4]
        for kernel, signature, constants, *rest in found:
            launch = kernel, signature, constants, *rest
            ptx, made = compiled(*launch, capability=capability)
            report(
                **made,
                types=[signature.get(name) for name in ("x", "w")],
                blocks=[constants[name] for name in BLOCKS if name in constants],
                waits=ptx.count("griddepcontrol.wait"),
                atomics=ptx.count("atom."),
            )
