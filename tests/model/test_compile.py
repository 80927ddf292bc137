"""Every step of the loop is one graph for torch.compile: no break, no host synchronisation."""

import pytest
import torch

from mingcore import ops
from mingcore.model.llm.moe import MoE

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


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int8_dyn", "fp8"])
def test_decoder_layer(golden_model, format):
    """Attention with its cache, router and experts: one graph, the expert MLP one call in it."""
    llm = golden_model.llm
    layer, eps = llm.layers[0], llm.config.rms_norm_eps
    rows = layer.mlp.experts.unpack()
    shared = (rows.shared_gate_up, rows.shared_down)
    experts = ops.pack_experts(rows.gate_up, rows.down, shared=shared, format=format)
    moe = MoE(layer.mlp.gate, experts, top_k=layer.mlp.top_k, renormalize=layer.mlp.renormalize)

    def step(x, positions, cache):
        lengths = positions[:, -1] + 1
        normed = ops.rms_norm(x, layer.attention_norm, eps)
        rope = llm.rope(positions, lengths)
        x = layer.attention(normed, x, rope, cache, positions, False)
        return x + moe(ops.rms_norm(x, layer.mlp_norm, eps))

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    caches = [llm.new_state(2, 8).reserve(8)[0] for _ in range(2)]
    whole = torch.compile(step, fullgraph=True, backend=keep)
    for T, start in ((5, 0), (1, 5), (1, 6)):
        x = torch.randn(2, T, llm.config.hidden_size)
        positions = torch.arange(start, start + T).expand(2, T).contiguous()
        torch.testing.assert_close(whole(x, positions, caches[0]), step(x, positions, caches[1]), rtol=1e-5, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(*caches))
    for graph in graphs:
        called = [str(node.target) for node in graph.graph.nodes if "moe_mlp" in str(node.target)]
        assert called == ["mingcore.moe_mlp"], called


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
    expected = flow.sample(cond, history, noise, schedule=schedule)
    out = compiled(flow.integrate)(patch, noise, schedule, flow.times(schedule), guidance)
    torch.testing.assert_close(out, expected)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    whole = torch.compile(flow.sample, fullgraph=True, backend=keep)
    torch.testing.assert_close(whole(cond, history, noise, guidance=guidance, schedule=schedule), expected)
    (graph,) = graphs
    called = [str(n.target) for n in graph.graph.nodes if "mingcore" in str(n.target)]
    assert called == ["mingcore.flow_sample"]


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
