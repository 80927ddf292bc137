"""The GPU kernels of frame_embed, overlap_add and spectrum_head on a GPU. `make gpu` runs them."""

import pytest
import torch

from mingcore import ops
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned, strided
from mingcore.testing import compare, streaming

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("cuda", "triton")
OPS = ("overlap_add", "overlap_add_", "spectrum_head", "spectrum_head_")
SIZES = ((1280, 320), (490, 98), (24, 5))  # window, hop; each is compiled anew by Triton


def call_of(op: str, size: int, hop: int, B: int, T: int, dtype=torch.float32, seed=0) -> dict:
    d = cases.Draw("cuda", dtype, seed)
    call = {"window": 0.3 + torch.hann_window(size, device="cuda"), "hop": hop}
    if op == "overlap_add":
        return {"frames": d.normal(B, T, size), **call}
    head = {"hidden": d.normal(B, T, 64), "weight": d.matrix(size + 2, 64)}
    return {**head, "bias": d.normal(size + 2), **call}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hop, H", ((320, 896), (40, 70), (7, 33)))
def test_frames_of_every_count(dtype, hop, H):
    """Each of the CUDA kernels, the last frame cut short or whole, rows together or apart."""
    for B, L in ((1, 5 * hop), (1, 8 * hop - 3), (3, 50 * hop - 1), (64, 5 * hop), (2, 700 * hop - 5)):
        d = cases.Draw("cuda", dtype, B)
        for samples in (d.normal(B, L), strided(d.normal(B, L), 16 - L % 8)):
            kwargs = {"samples": samples, "weight": d.matrix(H, hop), "hop": hop}
            with nan_poisoned():
                got = compare.run("frame_embed", kwargs, backend="cuda")
            compare.check_op("frame_embed", kwargs, got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ("overlap_add", "spectrum_head"))
@pytest.mark.parametrize("size, hop", SIZES)
def test_streams(op, backend, size, hop):
    for seed, T in enumerate((5, 90)):
        call = call_of(op, size, hop, 3, T, seed=seed)
        once, pieces = streaming.once(op, call, backend), streaming.split(T, seed)
        for form in (streaming.chunked, streaming.in_place):
            streaming.assert_same(form(op, call, pieces, backend), once, f"{pieces}")
    got, alone = streaming.by_rows(op, call_of(op, size, hop, 4, 23), 1, backend)
    for mine, other in zip(got, alone, strict=True):
        streaming.assert_same(mine, other, "a row")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ("overlap_add", "spectrum_head"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_sizes(op, backend, dtype):
    for B, T in ((1, 8), (2, 5), (64, 5), (3, 100), (1, 1000)):
        call = call_of(op, 1280, 320, B, T, dtype, seed=B)
        kwargs = {**call, "state": None, "last": B == 3}
        with nan_poisoned():
            got = compare.run(op, kwargs, backend=backend)
        compare.check_op(op, kwargs, got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ("overlap_add", "spectrum_head"))
@pytest.mark.parametrize("B", (1, 16))
def test_a_replayed_graph_is_a_stream(op, backend, B):
    """A thousand patches: the state goes on in place, rows sit out and end, the bits are those of
    eager calls, and no reader is left in lengths."""
    T, size, hop = 5, 1280, 320
    call = call_of(op, size, hop, B, T, torch.bfloat16 if "head" in op else torch.float32)
    name = streaming.INPUT[op][0]
    x, out = call.pop(name), torch.empty(B, T * hop + 480, device="cuda")
    valid = torch.full((B,), T, device="cuda")
    last = torch.zeros(B, dtype=torch.bool, device="cuda")
    states = [ops.OverlapState.start(B, size, hop, device="cuda") for _ in range(2)]

    def step(state, out):
        state.skip = None
        run = getattr(ops, op + "_")
        run(x, out, **call, state=state, last=last, valid=valid, backend=backend)

    step(states[0], out)  # loads the kernels
    states[0].reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(states[0], out)
    d = torch.Generator("cuda").manual_seed(3)
    expected = torch.empty_like(out)
    for i in range(1000):
        x.normal_(generator=d)
        valid.random_(0, T + 1, generator=d)
        last.copy_(torch.rand(B, generator=d, device="cuda") < 0.1)
        out.fill_(float("nan"))
        expected.fill_(float("nan"))
        graph.replay()
        step(states[1], expected)
        if i % 50 == 0 or i > 990:
            assert torch.equal(out, expected) and not out.isnan().any()
            for a, b in zip(vars(states[0]).values(), vars(states[1]).values()):
                assert not isinstance(a, torch.Tensor) or torch.equal(a, b)
            assert (states[0].lengths < 1 << 40).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_loud_quiet_and_not_a_number(backend):
    call = call_of("spectrum_head", 64, 16, 2, 3)
    wide = torch.cat((torch.linspace(-20, 12, 33), torch.linspace(-900, 900, 33))).cuda()
    kwargs = {**call, "bias": wide, "state": None, "last": True}
    compare.check_op("spectrum_head", kwargs, backend=backend)
    nothing = {**kwargs, "bias": torch.full_like(wide, torch.nan)}
    assert ops.spectrum_head(**nothing, backend=backend)[0].isnan().all()
