"""Inductor itself, the default of torch.compile: each step of the loop is one graph for any number
of tokens, and one more for a single one; equal to the step without it."""

from functools import partial
from pathlib import Path

import pytest
import torch

from mingcore import ops
from mingcore.model import load

TINY = Path(__file__).parents[2] / "mingcore" / "checkpoints" / "tiny"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model():
    return load(TINY)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    with torch.no_grad(), torch._inductor.utils.fresh_cache():
        yield
    torch._dynamo.reset()


def compiled(function):
    """By Inductor, whole. Only a call with `first` may compile: others raise RecompileError."""
    whole = torch.compile(function, fullgraph=True, dynamic=True)

    def run(*args, first: bool, **kwargs):
        with torch._dynamo.config.patch(error_on_recompile=not first):
            return whole(*args, **kwargs)

    return run


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_llm_step(model):
    llm = model.llm
    step = compiled(llm.forward)
    for T in (7, 9, 30, 41):  # one graph
        x = torch.randn(1, T, llm.config.hidden_size)
        state = llm.new_state(1, 64)
        expected, plain = llm(x, state.clone())
        got = step(x, state.reserve(T), state.lengths, fresh=True, first=T == 7)
        close(got, expected)
        state.advance(T)
    for i in range(3):  # one for a single token
        x = torch.randn(1, 1, llm.config.hidden_size)
        expected, plain = llm(x, plain)
        close(step(x, state.reserve(1), state.lengths, first=i == 0), expected)
        state.advance(1)
    for T in (2, 5, 11):  # and one for several behind others
        x = torch.randn(1, T, llm.config.hidden_size)
        expected, plain = llm(x, plain)
        close(step(x, state.reserve(T), state.lengths, first=T == 2), expected)
        state.advance(T)


def test_sampler(model):
    flow, H = model.flow, model.config.llm.hidden_size
    schedule, C = ops.FlowSchedule.make(4), flow.channels
    whole = compiled(flow.sample)
    for B in (3, 5, 7):  # unlike the 4 evaluations: PyTorch takes equal sizes for one
        args = torch.randn(B, H), torch.randn(B, 5, C), torch.randn(5, B, 5, C)
        guidance = torch.full((B,), 2.0)
        expected = flow.sample(*args, schedule=schedule, guidance=guidance)
        got = whole(*args, schedule=schedule, guidance=guidance, first=B == 3)
        close(got, expected)


def test_decoder(model):
    """fc1, backbone and head: frames of any number to samples."""
    decoder = model.vae.decoder
    backbone = decoder.backbone

    def step(latents, caches, lengths, numerator, counted):
        x = backbone.forward(decoder.fc1(latents), caches, lengths)
        head = (decoder.head.weight, decoder.head.bias, decoder.window)
        overlap = ops.OverlapState(numerator, counted, torch.zeros_like(counted), None)
        return ops.spectrum_head(x, *head, decoder.hop, overlap, False)[0]

    whole = compiled(step)
    for T in (5, 7, 12, 20):
        z = torch.randn(2, T, model.config.latent_dim)
        found = []
        for function in (step, partial(whole, first=T == 5)):
            state = decoder.new_state(2, 32)
            caches, lengths = state.backbone.reserve(T), state.backbone.lengths
            overlap = state.overlap
            found.append(function(z, caches, lengths, overlap.numerator, overlap.lengths))
        close(found[1], found[0])
