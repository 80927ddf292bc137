"""The ops under PyTorch's dispatcher: schemas, fakes, mutation, torch.compile and torch.export."""

import functools
import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mingcore.ops as ops
from mingcore.ops._core import backends, cases
from mingcore.ops._core.layouts import map_tensors, tensors_in
from mingcore.ops._core.op import OPS, Op, implementations
from mingcore.testing import compare
from tests.ops.support import Draw, flat_arguments

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = [
    pytest.param(op, case, id=case.id)
    for op in sorted(OPS)
    for case in cases.for_op(op)
    if not case.tags & {"real", "mid"}
]
ONE_EACH = [next(p for p in SMALL if p.values[0] == op) for op in sorted(OPS)]


def forget_graphs() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def overload(op: str):
    return getattr(torch.ops.mingcore, op).default


def test_every_op_has_a_reference_and_a_public_function():
    backends.load_all()
    for name, op in OPS.items():
        assert "reference" in op.implementations
        assert name in ops.__all__ and getattr(ops, name) is op.public


def test_declared_backends_are_those_that_serve():
    backends.load_all()
    for op in OPS.values():
        if isinstance(op, Op):
            loaded = [backend for backend in op.backends if backends.load(backend, op.family) is None]
            assert sorted(op.implementations) == sorted(loaded), op


def test_implementations_take_the_schemas_names():
    for each in implementations():
        op = OPS[each.op]
        results = () if each.backend in ("reference", "flash") else op.results
        taken = inspect.signature(each.function).parameters.values()
        names = [p.name for p in taken if p.kind is not p.VAR_KEYWORD]
        known = {*op.names, *results}
        assert {*names} <= known, each
        if len(names) == len(taken):  # without **rest
            assert {*names} == known, each


def test_in_place_ops_return_nothing_and_the_others_change_nothing():
    for op in OPS:
        schema = overload(op)._schema
        written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        assert op.endswith("_") == bool(written) == (not schema.returns), op


# `test_aot_dispatch_dynamic` traces, functionalises and runs every op, also with symbolic shapes
@pytest.mark.parametrize(("op", "case"), ONE_EACH)
@pytest.mark.parametrize("backend", ["reference", ""])
def test_opcheck(op, case, backend):
    args = flat_arguments(op, case.make("cpu", torch.float32, seed=1))
    torch.library.opcheck(overload(op), tuple(args.values()), {"backend": backend})


@pytest.mark.parametrize(("op", "case"), SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fakes_tell_shape_type_and_strides(op, case, dtype):
    args = list(flat_arguments(op, case.make("cpu", dtype, seed=2)).values())
    real = list(tensors_in(overload(op)(*args)))
    with FakeTensorMode() as mode:
        faked = map_tensors(args, mode.from_tensor)
        fake = list(tensors_in(overload(op)(*faked)))
    assert len(real) == len(fake)
    for a, b in zip(real, fake):
        assert (a.shape, a.dtype, a.is_contiguous()) == (b.shape, b.dtype, b.is_contiguous())


@pytest.mark.parametrize(("op", "case"), ONE_EACH)
def test_compiled_equals_eager(op, case):
    kwargs = case.make("cpu", torch.float32, seed=3)
    forget_graphs()
    function = functools.partial(compare.run, op, backend="reference")
    compiled = torch.compile(
        lambda kwargs: getattr(ops, op)(**kwargs, backend="reference"), fullgraph=True, backend="aot_eager"
    )
    expected = function(kwargs)
    if op.endswith("_"):
        compiled(kwargs)
        got = list(compare.written_by(op, kwargs))
    else:
        got = list(tensors_in(compiled(kwargs)))
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert torch.equal(a, b)


def draw_step():
    draw = Draw(torch.float32)
    H, heads, kv_heads, width, E, I = 16, 2, 1, 8, 4, 6
    qkv = ops.pack_linear(draw.weight((heads + 2 * kv_heads) * width, H), backend="reference")
    out = draw.weight(H, heads * width)
    experts = ops.pack_experts(
        draw.weight(E, 2 * I, H), draw.weight(E, H, I), shared=(draw.weight(8, H), draw.weight(H, 4))
    )
    router, norm = draw.weight(E, H), draw(H)
    caches = torch.zeros(2, 12, kv_heads, width), torch.zeros(2, 12, kv_heads, width)

    def step(x, positions, k_cache, v_cache):
        cos, sin = (f(positions.unsqueeze(-1) * torch.ones(width // 2)) for f in (torch.cos, torch.sin))
        h = ops.rms_norm(x, norm, 1e-6)
        q, k, v = ops.qkv_rope(ops.linear(h, qkv), cos, sin, heads, kv_heads)
        ops.kv_write_(k_cache, v_cache, k, v, positions)
        a = ops.attention_decode(q, k_cache, v_cache, positions, window=6)
        h, x = ops.add_rms_norm(ops.linear(a.flatten(2), out), x, norm, 1e-6)
        flat = h.view(-1, H)
        weights, ids = ops.route_topk(ops.linear(flat, router), 2)
        return x + ops.moe_mlp(flat, experts, weights, ids).view(x.shape)

    inputs = [(draw(2, 1, H), torch.tensor([[p], [p + 3]])) for p in range(4)]
    return step, inputs, caches


def test_a_layer_compiles_as_one_graph():
    step, inputs, caches = draw_step()
    twins = [cache.clone() for cache in caches]
    forget_graphs()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for x, positions in inputs:
        assert torch.equal(compiled(x, positions, *caches), step(x, positions, *twins))
        assert torch.equal(caches[0], twins[0]) and torch.equal(caches[1], twins[1])
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_a_layer_exports():
    step, inputs, caches = draw_step()

    class Layer(torch.nn.Module):
        def forward(self, x, positions, k_cache, v_cache):
            return step(x, positions, k_cache, v_cache)

    program = torch.export.export(Layer(), (*inputs[0], *(c.clone() for c in caches)))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "mingcore.moe_mlp.default" in targets and "mingcore.kv_write_.default" in targets
    twins = [cache.clone() for cache in caches]
    got = program.module()(*inputs[0], *caches)
    assert torch.equal(got, step(*inputs[0], *twins))
    assert torch.equal(caches[0], twins[0])


def test_streaming_compiles_once_per_kind_of_chunk():
    frames, window = Draw(torch.float32)(1, 40, 16), torch.hann_window(16)
    forget_graphs()
    compiled = torch.compile(ops.overlap_add, fullgraph=True, backend="aot_eager")
    state, out = None, []
    for i, chunk in enumerate(frames.split(4, 1)):
        samples, state = compiled(chunk, window, 4, state, i == 9)
        out.append(samples)
    one_shot, _ = ops.overlap_add(frames, window, 4, None, True)
    assert torch.equal(torch.cat(out, 1), one_shot)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_shapes_may_be_symbolic():
    weight = Draw(torch.float32).weight(6, 10)
    forget_graphs()

    @functools.partial(torch.compile, fullgraph=True, dynamic=True, backend="aot_eager")
    def function(x):
        return ops.linear(x, weight, activation="swiglu") + 1

    for T in (3, 5, 8):
        x = Draw(torch.float32, seed=T)(T, 10)
        assert torch.equal(function(x), ops.linear(x, weight, activation="swiglu") + 1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_fake_and_meta_tensors_go_through_the_dispatcher():
    weight = torch.empty(6, 10, device="meta")
    assert ops.linear(torch.empty(3, 10, device="meta"), weight).is_meta
    with FakeTensorMode():
        x = torch.empty(4, 16)
        assert ops.silu_mul(x).shape == (4, 8)
