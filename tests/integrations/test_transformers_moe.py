"""Mixture-of-experts models of transformers on our experts, against its own eager ones.

In float32 the models' logits, by the tolerance rule with transformers in float64 as the oracle; and
the tokens of greedy generation, which must be equal.
"""

import copy

import pytest
import torch
import torch._dynamo.testing

from mingcore.errors import BackendError, InputError
from mingcore.integrations import transformers as kernels
from mingcore.testing.compare import Error, assert_within, relative_l2
from tests.integrations.moe_models import ARCHITECTURES, GPT_OSS, THINKER, build, output_of, randomise, tokens

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the library's own
ALL = [*ARCHITECTURES, THINKER]
NEW = 12


@pytest.fixture(autouse=True)
def registered(transformers):
    assert "mingcore" in kernels.register()
    yield
    torch._dynamo.reset()


def padded(batch=3, length=10):
    """Prompts of several lengths, padded on the left."""
    ids, mask = tokens(batch, length), torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        mask[row, : 3 * row] = 0
    return ids.where(mask.bool(), 0), mask


def greedy(model, ids, mask, **options):
    options = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, **options}
    return model.generate(ids, attention_mask=mask, **options)


@pytest.mark.parametrize("architecture", ALL)
def test_logits(transformers, architecture):
    model = build(transformers, architecture)
    wide = copy.deepcopy(model).double()
    ids, mask = padded()
    plain, exact = (output_of(m(ids, attention_mask=mask)) for m in (model, wide))
    assert kernels.why_not(model) == {} and kernels.experts_of(model)
    model.set_experts_implementation("mingcore")
    keep = mask.bool()
    for _ in range(2):
        got = output_of(model(ids, attention_mask=mask))
        assert_within(got[keep], plain[keep], exact[keep], architecture)
        print(
            f"{architecture}: {Error.between(got[keep], exact[keep]).largest:.2e}, "
            f"theirs {Error.between(plain[keep], exact[keep]).largest:.2e}"
        )
        assert kernels.pack(model) == tuple(kernels.experts_of(model))
    one = output_of(model(ids[:1, :1]))
    assert_within(one, output_of(wide(ids[:1, :1])).float(), output_of(wide(ids[:1, :1])))


@pytest.mark.parametrize("architecture", [a for a in ALL if a != THINKER])
def test_greedy_tokens(transformers, architecture):
    """Batch, padding on the left, a cache that grows and a static one."""
    model = build(transformers, architecture)
    ids, mask = padded()
    expected = greedy(model, ids, mask)
    model.set_experts_implementation("mingcore")
    assert torch.equal(greedy(model, ids, mask), expected)
    kernels.pack(model)
    assert torch.equal(greedy(model, ids, mask, cache_implementation="static"), expected)
    assert torch.equal(greedy(model, ids[:1], mask[:1]), expected[:1])


@pytest.mark.parametrize("format", ["bf16", "int8", "int8_dyn"])
def test_other_formats(transformers, format):
    """A model in bfloat16: every experts module within the tolerance on the inputs that it got; and
    in int8 whole logits near those of the original weights."""
    model = build(transformers, "qwen3_moe", dtype=torch.bfloat16)
    ids, mask = padded()
    calls = []
    original = [copy.deepcopy(m) for m in kernels.experts_of(model).values()]
    plain = output_of(model(ids, attention_mask=mask))
    model.set_experts_implementation("mingcore" if format == "bf16" else f"mingcore_{format}")
    for module in kernels.experts_of(model).values():
        module.register_forward_hook(lambda _, args, out: calls.append((*args, out)))
    got = output_of(model(ids, attention_mask=mask))
    if format != "bf16":
        error = relative_l2(got[mask.bool()], plain[mask.bool()])
        print(f"{format}: relative L2 of the logits {error:.3f}")
        assert error < 0.2
        return
    assert len(calls) == len(original) == 2
    for module, (x, chosen, weights, out) in zip(original, calls):
        module.config = copy.copy(module.config)
        module.config._experts_implementation = "eager"
        exact = copy.deepcopy(module).double()(x.double(), chosen, weights.double())
        assert_within(out, module(x, chosen, weights), exact)


def test_from_pretrained_and_back(transformers, tmp_path):
    model = build(transformers, "olmoe")
    ids, mask = padded()
    expected = greedy(model, ids, mask)
    model.save_pretrained(tmp_path / "a")
    load = transformers.AutoModelForCausalLM.from_pretrained
    ours = load(tmp_path / "a", experts_implementation="mingcore", dtype=torch.float32)
    assert torch.equal(greedy(ours, ids, mask), expected)
    kernels.pack(ours)
    assert all(p.is_meta for m in kernels.experts_of(ours).values() for p in m.parameters())
    assert torch.equal(greedy(ours, ids, mask), expected)
    with pytest.raises(InputError, match="unpack"):
        ours.save_pretrained(tmp_path / "b")
    kernels.unpack(ours)
    ours.save_pretrained(tmp_path / "b")
    for x in (ours, load(tmp_path / "b", dtype=torch.float32)):
        x.set_experts_implementation("eager")
        assert torch.equal(greedy(x, ids, mask), expected)


def test_gpt_oss_is_refused(transformers):
    model = randomise(transformers.GptOssForCausalLM(transformers.GptOssConfig(**GPT_OSS)))
    with pytest.raises(BackendError, match="biases"):
        kernels.pack(model)
    assert all("biases" in reason for reason in kernels.why_not(model).values())
    model.set_experts_implementation("mingcore")
    with pytest.raises(BackendError, match="GptOssExperts: its experts have biases"):
        model(tokens(1, 4))


def test_gates_that_clamp_are_refused(transformers):
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as module

    config = transformers.DeepseekV4Config(
        hidden_size=32, moe_intermediate_size=16, n_routed_experts=4, num_hidden_layers=1
    )
    experts = module.DeepseekV4Experts(config)
    assert "gate is not silu" in kernels.why_not(experts)[""]


def test_expert_parallel_slots(transformers):
    """As transformers' own batched implementation has them."""
    model = build(transformers, "qwen3_moe")
    (_, experts), *_ = kernels.experts_of(model).items()
    experts._is_expert_parallel = True
    x, ids = torch.randn(6, 48), torch.rand(6, 16).argsort(1)[:, :3]
    weights = torch.rand(6, 3).where(ids < 8, 0.0)
    from transformers.integrations.moe import batched_mm_experts_forward

    expected = batched_mm_experts_forward(experts, x, ids, weights)
    experts.config._experts_implementation = "mingcore"
    torch.testing.assert_close(experts(x, ids, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [True, False], ids=["first-use", "pack"])
def test_torch_compile(transformers, first):
    """The whole model is one graph for every number of tokens, and one more for a single one."""
    model = build(transformers, "qwen3_moe")
    model.set_experts_implementation("mingcore")
    plain = {T: model(tokens(2, T), use_cache=False).logits for T in (7, 11, 30, 41)}
    del kernels.experts_of(model)["model.layers.0.mlp.experts"]._mingcore_experts
    if not first:
        kernels.pack(model)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    whole = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for T, expected in plain.items():
        got = whole(tokens(2, T), use_cache=False).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
    called = [str(n.target) for graph in counter.graphs for n in graph.graph.nodes]
    assert sum("mingcore" in target and "moe_mlp" in target for target in called) == 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compilers_that_lower_the_graph(transformers, backend):
    """One graph here too, whose numbers are those without a compiler."""
    model = build(transformers, "qwen3_moe")
    kernels.pack(model)
    whole = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for T in (7, 11, 30, 41):
        expected = model(tokens(2, T), use_cache=False).logits
        # not by counting what the backend is given: PyTorch may begin a graph anew
        with torch._dynamo.config.patch(error_on_recompile=T != 7):
            got = whole(tokens(2, T), use_cache=False).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_torch_compile_with_a_static_cache(transformers):
    """Prefill and decode of `generate`, compiled: one graph each, tokens as without it."""
    model = build(transformers, "qwen3_moe")
    ids, mask = padded()
    expected = greedy(model, ids, mask)
    kernels.pack(model)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    model.forward = torch.compile(model.forward, fullgraph=True, backend=counter)
    got = greedy(model, ids, mask, cache_implementation="static", disable_compile=True)
    assert torch.equal(got, expected)
    assert counter.frame_count == 2
