"""The flow step and the AudioVAE's convolutions against loops in float64."""

import pytest
import torch

import mingcore.ops as ops
from mingcore.ops._core.layouts import strided, transposed
from tests.ops import slow
from tests.ops.support import DTYPES, Draw, check, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("B", [1, 3])
def test_flow_step(dtype, null, noisy, B):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    draw, x_draw = Draw(dtype), Draw(wide, seed=1)
    x, v_cond, v_null = x_draw(B, 5, 7), draw(B, 5, 7), draw(B, 5, 7) if null else None
    guidance, scale = x_draw(B).abs(), x_draw(B).abs()
    noise = x_draw(B, 5, 7) if noisy else None
    args = (v_cond, v_null, 0.13, guidance, noise, scale)
    before = x.clone()
    got = reference("flow_step")(x, *args)
    assert got.dtype == wide and torch.equal(x, before)
    check(got, slow.flow_step(x, *args), wide)
    assert reference("flow_step_")(x, *args) is None
    assert torch.equal(x, got)


def test_flow_step_takes_numbers_and_strides():
    draw = Draw(torch.float32)
    x, v, u, noise = (draw(2, 5, 4) for _ in range(4))
    got = reference("flow_step")(transposed(x), strided(v), u, 0.2, 2.0, strided(noise), 0.5)
    two, half = torch.tensor([2.0, 2.0]), torch.tensor([0.5, 0.5])
    check(got, slow.flow_step(x, v, u, 0.2, two, noise, half), torch.float32)
    view = transposed(x)
    ops.flow_step_(view, v, u, 0.2, 2.0, noise, 0.5, backend="reference")
    check(view, got.double(), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [1, 7, 8, 33])
def test_frame_embed(dtype, L):
    draw = Draw(dtype)
    samples, weight = draw(2, L), draw.weight(5, 8)
    padded = torch.cat((samples, samples.new_zeros(2, -L % 8)), 1).view(2, -1, 8)
    got = reference("frame_embed")(strided(samples), weight, hop=8)
    assert got.dtype == dtype
    check(got, slow.linear(padded, weight), dtype)


SPLITS = [[9], [5, 4], [1, 1, 7], [1] * 9, [3, 3, 2, 1], [2, 7, 0], [9, 0], [0, 4, 0, 5]]


def stream(op, pieces, *args):
    state, out = None, []
    for i, piece in enumerate(pieces):
        samples, state = reference(op)(piece, *args, state, i == len(pieces) - 1)
        out.append(samples)
    return torch.cat(out, 1), [chunk.shape[1] for chunk in out], state


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(("size", "hop"), [(16, 4), (12, 4), (15, 5), (11, 4), (8, 8)])
def test_overlap_add_streams(dtype, split, size, hop):
    frames = Draw(dtype)(2, 9, size)
    window = 0.3 + torch.hann_window(size, dtype=torch.float64)
    if dtype != torch.float64:
        window = window.float()
    got, _, state = stream("overlap_add", frames.split(split, dim=1), window, hop)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.dtype == wide
    check(got, slow.overlap_add(frames, window, hop), wide)
    one_shot = reference("overlap_add")(frames, window, hop, None, True)[0]
    assert torch.equal(got, one_shot)
    fresh = ops.OverlapState.start(2, size, hop, dtype=wide)
    assert state.skip == fresh.skip and (state.lengths == 0).all()


def test_overlap_add_emits_what_the_model_says():
    frames, window = Draw(torch.float32)(1, 15, 1280), torch.hann_window(1280)
    assert stream("overlap_add", frames.split(5, dim=1), window, 320)[1] == [1120, 1600, 2080]
    assert stream("overlap_add", frames.split([1, 1, 1, 12], 1), window, 320)[1][:3] == [0, 160, 320]


def test_overlap_state_resets_clones_and_weighs():
    frames, window = Draw(torch.float32)(2, 3, 16), torch.hann_window(16)
    samples, state = reference("overlap_add")(frames, window, 4, None, False)
    copy = state.clone()
    assert state.nbytes == 4 * 2 * 12 + 8 * (2 + 2) and state.skip == 0
    state.reset()
    assert (copy.numerator != 0).any() and state.skip == 6
    again, _ = reference("overlap_add")(frames, window, 4, state, False)
    assert torch.equal(again, samples)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [[4], [1, 3], [2, 2, 0]], ids=str)
def test_spectrum_head(dtype, split):
    draw = Draw(dtype)
    hidden, weight, bias = draw(2, 4, 6), draw.weight(18, 6), draw(18)
    bias[0] = 9.0  # beyond the magnitude's limit of 100
    window = torch.hann_window(16, dtype=torch.float64)
    if dtype != torch.float64:
        window = window.float()
    got, _, _ = stream("spectrum_head", hidden.split(split, 1), weight, bias, window, 4)
    frames = slow.spectrum_frames(slow.linear(hidden, weight, bias))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.dtype == wide
    check(got, slow.overlap_add(frames, window, 4), wide)
