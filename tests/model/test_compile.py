"""Every step of the loop is one graph for torch.compile: no break, no host synchronisation."""

import pytest
import torch

from mingcore import ops

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_llm_step(golden_model):
    llm = golden_model.llm
    x = llm.embed(torch.arange(14).view(2, 7))
    state = llm.new_state(2, 64)
    plain = state.clone()
    step = compiled(llm.forward)
    out = step(x, state.reserve(7), state.lengths, fresh=True)
    state.advance(7)
    expected, plain = llm(x, plain)
    torch.testing.assert_close(out, expected)
    for _ in range(2):
        out = step(x[:, :1], state.reserve(1), state.lengths)
        state.advance(1)
        expected, plain = llm(x[:, :1], plain)
        torch.testing.assert_close(out, expected)
        assert torch.equal(state.lengths, plain.lengths)


def test_llm_step_with_masks(golden_model):
    llm = golden_model.llm
    x = llm.embed(torch.arange(14).view(2, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    state = llm.new_state(2, 8)
    options = {"audio_mask": mask, "image_mask": 1 - mask, "attention_mask": mask}
    out = compiled(llm.forward)(x, state.reserve(7), state.lengths, **options)
    expected, _ = llm(x, **options)
    torch.testing.assert_close(out, expected)
    assert state.lengths.tolist() == [5, 7]


def test_sampler(golden_model):
    flow, schedule = golden_model.flow, ops.FlowSchedule.make(4)
    cond, history, noise = torch.randn(2, 256), torch.randn(2, 5, 64), torch.randn(5, 2, 5, 64)
    patch, guidance = flow.prepare(cond, history, 5), torch.full((2,), 2.0)
    out = compiled(flow.integrate)(patch, noise, schedule, flow.times(schedule), guidance)
    torch.testing.assert_close(out, flow.sample(cond, history, noise, schedule=schedule))


def test_semantic_and_decoder_steps(golden_model):
    vae = golden_model.vae
    z = torch.randn(2, 5, 64)
    state, plain = vae.new_semantic_state(2, 64), vae.new_semantic_state(2, 64)
    step = compiled(vae.semantic.forward)
    for fresh in (True, False):
        out = step(z, state.reserve(5), state.lengths, fresh=fresh)
        state.advance(5)
        torch.testing.assert_close(out, vae.unify(z, plain)[0])

    backbone = vae.decoder.backbone
    state, plain = backbone.new_state(2, 8), backbone.new_state(2, 8)
    step, x = compiled(backbone.forward), vae.decoder.fc1(z)
    for fresh in (True, False, False):
        out = step(x, state.reserve(5), state.lengths, fresh=fresh)
        state.advance(5)
        torch.testing.assert_close(out, backbone(x, plain))
