"""The cuda backend's overlap_add and spectrum_head in a worker of emulated.py, against the oracle:
streamed in place and by rows, and at the real size."""

import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned, strided
from mingcore.testing import compare, streaming
from tests.ops.runners.emulated_device import several_blocks
from tests.ops.runners.protocol import report


def check(op: str, kwargs: dict) -> None:
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="cuda")
    compare.check_op(op, kwargs, got)


def run(few: bool) -> None:
    sizes = ((16, 4), (12, 4), (24, 5), (20, 20), (10, 8), (18, 3), (14, 1), (490, 100), (256, 64))
    streamed = 0
    for seed, (size, hop) in enumerate(sizes):
        if few and seed != 2:
            continue
        several_blocks(seed % 2 == 0)
        d = cases.Draw("cpu", torch.float32, seed)
        call = {"window": 0.3 + torch.hann_window(size), "hop": hop}
        head = {"weight": d.matrix(size + 2, 12), "bias": d.normal(size + 2), **call}
        T = 6 if few else 17
        frames, hidden = d.normal(2, T, size), d.normal(2, T, 12)
        pieces = streaming.split(T, seed)
        for op, given in (("overlap_add", {"frames": frames, **call}), ("spectrum_head", {"hidden": hidden, **head})):
            once = streaming.once(op, given, "cuda")
            for form in (streaming.chunked, streaming.in_place):
                streaming.assert_same(form(op, given, pieces, "cuda"), once, f"{op} {pieces}")
            if not few or op == "overlap_add":
                got, alone = streaming.by_rows(op, given, seed, "cuda")
                for mine, other in zip(got, alone, strict=True):
                    streaming.assert_same(mine, other, op)
            streamed += 1

    several_blocks(False)
    d = cases.Draw("cpu", torch.bfloat16, 5)
    window = torch.hann_window(32)
    given = {"hidden": d.normal(3, 11, 24), "weight": d.matrix(34, 24), "bias": None}
    given |= {"window": window, "hop": 8, "state": None, "last": True}  # 33 frames: tiles of 64
    check("spectrum_head", given)
    check("spectrum_head", {**given, "hidden": strided(given["hidden"])})
    wide = torch.cat((torch.linspace(-20, 12, 17), torch.linspace(-900, 900, 17)))
    floats = {key: value.float() if key in ("hidden", "weight") else value for key, value in given.items()}
    check("spectrum_head", {**floats, "bias": wide})
    silent = ops.spectrum_head(**{**floats, "bias": torch.full((34,), torch.nan)}, backend="cuda")
    assert silent[0].isnan().all(), "NaN must stay"
    frames = strided(d.normal(2, 6, 32))[:, ::2]
    check("overlap_add", {"frames": frames, "window": window, "hop": 8, "state": None, "last": False})
    for case in cases.for_op("spectrum_head", tag="mid"):  # a patch at the real size
        if not few:
            check("spectrum_head", case.make("cpu", torch.bfloat16, seed=1))

    refused = 0
    for change, expected in (
        ({"hidden": d.normal(1, 2, 20), "weight": d.matrix(34, 20)}, "multiples of 8"),
        ({"weight": given["weight"].float()}, "it takes one type"),
        ({"window": window.double()}, "window is torch.float64"),
        ({"window": torch.ones(26), "weight": d.matrix(28, 24)}, "product of 2, 3, 5 and 7"),
        ({"window": torch.ones(16384), "weight": d.matrix(16386, 24), "hop": 4096}, "up to"),
    ):
        try:
            ops.spectrum_head(**{**given, **change}, backend="cuda")
            raise SystemExit(f"not refused: {expected}")
        except BackendError as error:
            assert expected in str(error), error
            refused += 1
    report(streamed=streamed, refused=refused)
