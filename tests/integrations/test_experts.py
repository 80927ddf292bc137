"""The experts backend on modules that look like transformers' own, without transformers."""

import ast
import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.nn import functional as F

from mingcore.errors import BackendError, InputError
from mingcore.integrations import transformers as kernels
from mingcore.integrations.transformers import experts as module_of_it
from mingcore.testing.compare import Error, assert_within, check_op

E, K, H, I = 6, 3, 40, 24
FORMATS = ["fp32", "bf16", "fp16", "int8", "int8_dyn", "fp8"]


class Experts(nn.Module):
    """The attributes that transformers' decorator sets, and its eager formula."""

    def __init__(self, transposed=False, concatenated=True, dtype=torch.float32, I=I, H=H, **flags):
        super().__init__()
        self.is_transposed, self.is_concatenated = transposed, concatenated
        self.has_bias, self.has_gate, self.has_post_expert_norm = False, True, False
        self._is_expert_parallel, self.num_experts = False, E
        for name, value in flags.items():
            setattr(self, name, value)
        shapes = [(E, 2 * I, H), (E, H, I)]
        if transposed:
            shapes = [(e, k, n) for e, n, k in shapes]
        generator = torch.Generator().manual_seed(1)
        for name, shape in zip(("gate_up_proj", "down_proj"), shapes):
            w = torch.randn(shape, generator=generator) * 0.2
            setattr(self, name, nn.Parameter(w.to(dtype)))

    def _apply_gate(self, gate_up):
        if self.is_concatenated:
            gate, up = gate_up.chunk(2, dim=-1)
        else:
            gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        return F.silu(gate) * up

    def eager(self, x, ids, weights):
        out = torch.zeros_like(x)
        for t in range(x.shape[0]):
            for e, weight in zip(ids[t].tolist(), weights[t]):
                if e >= self.num_experts:
                    continue
                up, down = self.gate_up_proj[e], self.down_proj[e]
                if not self.is_transposed:
                    up, down = up.T, down.T
                out[t] += (self._apply_gate(x[t] @ up) @ down) * weight
        return out

    def forward(self, x, ids, weights, name="mingcore"):
        format = module_of_it._NAMES[name]
        return module_of_it._implementation(format)(self, x, ids, weights)


def routed(T, seed=0, dtype=torch.float32, experts=E):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, H, generator=generator).to(dtype)
    ids = torch.rand(T, experts, generator=generator).argsort(1)[:, :K]
    return x, ids, torch.rand(T, K, generator=generator).to(dtype)


def held(module):
    return module._mingcore_experts.experts


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("concatenated", [True, False])
@pytest.mark.parametrize("T", [0, 1, 5, 70])
def test_every_layout_of_the_weights(transposed, concatenated, T):
    module = Experts(transposed, concatenated)
    inputs = routed(T)
    exact = copy.deepcopy(module).double().eager(inputs[0].double(), *inputs[1:])
    assert_within(module(*inputs), module.eager(*inputs), exact)
    both = nn.ModuleList([module])
    before = [w.clone() for w in (module.gate_up_proj, module.down_proj)]
    assert kernels.pack(both) == ("0",)
    assert_within(module(*inputs), Experts(transposed, concatenated).eager(*inputs), exact)
    assert kernels.unpack(both) == ("0",)
    assert torch.equal(module.gate_up_proj, before[0]) and torch.equal(module.down_proj, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", [None, *FORMATS])
@pytest.mark.parametrize("first", [True, False], ids=["first-use", "pack"])
def test_formats(dtype, format, first):
    module = Experts(dtype=dtype)
    x, ids, weights = routed(7, dtype=dtype)
    if not first:
        kernels.pack(nn.ModuleList([module]), format)
    got = module(x, ids, weights, "mingcore" if format is None else f"mingcore_{format}")
    experts = held(module)
    assert experts.format == (format or {torch.float32: "fp32"}.get(dtype, "bf16"))
    arguments = {"x": x, "experts": experts, "weights": weights.float(), "ids": ids.int()}
    check_op("moe_mlp", arguments, (got,))


def test_weights_that_change_are_packed_anew():
    module, inputs = Experts(), routed(4)
    before = module(*inputs)
    packed = held(module)
    assert torch.equal(module(*inputs), before) and held(module) is packed
    module.down_proj.data.mul_(2)  # unseen: .data has a version counter of its own
    module.down_proj.mul_(2)
    torch.testing.assert_close(module(*inputs), 4 * before)
    module.to(torch.bfloat16)
    module(*(t.to(torch.bfloat16) if t.is_floating_point() else t for t in inputs))
    assert held(module).format == "bf16"
    module.load_state_dict(Experts().state_dict())
    assert module(*inputs).dtype == torch.float32


def test_slots_of_experts_elsewhere():
    """Expert parallelism: ids >= num_experts belong to other devices; no weights are read."""
    module = Experts(_is_expert_parallel=True)
    x, ids, weights = routed(9, experts=2 * E)
    ids[0] = E + torch.arange(K)  # nothing here
    ids[1] = torch.tensor([E, 2, E + 1])
    exact = copy.deepcopy(module).double().eager(x.double(), ids, weights)
    got = module(x, ids, weights)
    assert_within(got, module.eager(x, ids, weights), exact)
    assert not got[0].any()
    slots = module_of_it._without_sentinels(ids, weights, E)
    assert slots[0][1].tolist() == [2, 2, 2] and slots[1][1].count_nonzero() == 1
    here = Experts()
    with pytest.raises(InputError, match="ids"):
        here(x, ids, weights)


class Gelu(Experts):
    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.gelu(gate) * up


class Clamped(Experts):
    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate.clamp(max=10.0)) * up.clamp(-10.0, 10.0)


class Swapped(Experts):
    def _apply_gate(self, gate_up):
        up, gate = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up


def _with_weights(**weights):
    module = Experts()
    for name, w in weights.items():
        setattr(module, name, nn.Parameter(w, requires_grad=False))
    return module


REFUSED = {
    "biases": lambda: Experts(has_bias=True),
    "no gate": lambda: Experts(has_gate=False),
    "norm behind": lambda: Experts(has_post_expert_norm=True),
    "gate is not silu": Gelu,
    "its gate is not": Clamped,
    "gate is not": Swapped,
    "torch.int8": lambda: _with_weights(down_proj=torch.zeros(E, H, I, dtype=torch.int8)),
    "it takes .E, 2I, H.": lambda: _with_weights(down_proj=torch.zeros(E, I, H)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_served_says_why(why):
    module = REFUSED[why]()
    model = nn.ModuleDict({"a": Experts(), "b": module})
    before = model["a"].gate_up_proj
    assert list(kernels.why_not(model)) == ["b"]
    with pytest.raises(BackendError, match=f"b: .*{why}"):
        kernels.pack(model)
    assert model["a"].gate_up_proj is before and not before.is_meta
    with pytest.raises(BackendError, match=f"{type(module).__name__}: .*{why}"):
        module(*routed(2))


def test_pack_takes_the_place_of_the_originals():
    whole = Experts(dtype=torch.bfloat16, I=32, H=64)  # whole panels
    at = whole.gate_up_proj.data_ptr(), whole.down_proj.data_ptr()
    kernels.pack(nn.ModuleList([whole]))
    assert (held(whole).gate_up.data_ptr(), held(whole).down.data_ptr()) == at
    module = Experts(dtype=torch.bfloat16)
    model = nn.ModuleDict({"experts": module})
    kernels.pack(model)
    packed = held(module)
    assert module.gate_up_proj.is_meta and module.gate_up_proj.shape == (E, 2 * I, H)
    assert kernels.pack(model) == ("experts",) and held(module) is packed
    with pytest.raises(InputError, match=r"experts; call unpack\(model\)"):
        model.state_dict()
    with pytest.raises(BackendError, match="packed as bf16 already"):
        kernels.pack(model, "int8")
    with pytest.raises(InputError, match="original weights freed"):
        module(*routed(2), "mingcore_int8")
    twin = copy.deepcopy(model)
    inputs = routed(3, dtype=torch.bfloat16)
    assert torch.equal(twin["experts"](*inputs), module(*inputs))
    kernels.unpack(model)
    assert set(model.state_dict()) == {"experts.gate_up_proj", "experts.down_proj"}
    kernels.pack(model, "int8")
    with pytest.raises(InputError, match="lost the originals"):
        kernels.unpack(model)


def test_pack_refuses_what_it_would_break():
    model = nn.ModuleList([Experts(), Experts()])
    model[1].down_proj = model[0].down_proj
    with pytest.raises(BackendError, match="0: down_proj is shared"):
        kernels.pack(model)
    with pytest.raises(InputError, match="Linear has no experts"):
        kernels.pack(nn.Linear(2, 2))
    with pytest.raises(InputError, match="format must be one of"):
        kernels.pack(model, "int4")
    with pytest.raises(BackendError, match="meta device"):
        kernels.pack(nn.ModuleList([Experts().to("meta")]))


def test_gradients_are_refused():
    module, inputs = Experts(), routed(2)
    with torch.enable_grad(), pytest.raises(BackendError, match="no gradients"):
        module(*inputs)
    module.requires_grad_(False)
    with torch.enable_grad():
        module(*inputs)
        inputs[0].requires_grad_()
        with pytest.raises(BackendError, match="no gradients"):
            module(*inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("first", [True, False], ids=["first-use", "pack"])
def test_one_graph_for_any_number_of_tokens(first):
    """Packing at first use happens while the graph is traced, and is no part of it."""
    torch._dynamo.reset()
    model = nn.ModuleList([Experts(), Experts(transposed=True)])
    plain = copy.deepcopy(model)
    if not first:
        kernels.pack(model)

    def run(x, ids, weights, model):
        for module in model:
            x = x + module(x, ids, weights)
        return x

    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    whole = torch.compile(run, fullgraph=True, backend=counter, dynamic=True)
    for T in (5, 9, 33, 64, 100):
        inputs = routed(T)
        got, expected = whole(*inputs, model), run(*inputs, plain)
        assert Error.between(got, expected).largest < 1e-5
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_nothing_imports_transformers_on_import():
    folder = Path(module_of_it.__file__).parents[2]
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module)
            assert not any(name.split(".")[0] == "transformers" for name in names), path


def test_without_transformers_register_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"mingcore\[transformers\]"):
        kernels.register()


def packed_model(format=None):
    module = Experts()
    module.config = SimpleNamespace(_experts_implementation="mingcore")
    model = nn.ModuleList([module])
    kernels.pack(model, format)
    return model, module


@pytest.mark.parametrize("name", ["eager", "grouped_mm", "batched_mm"])
def test_another_implementation_after_pack_is_refused(name):
    """It would compute with freed memory."""
    model, module = packed_model()
    x, ids, weights = torch.randn(4, H), torch.randint(0, E, (4, K)), torch.rand(4, K)
    with torch.no_grad():
        wanted = module(x, ids, weights)
        module.config._experts_implementation = name
        with pytest.raises(InputError, match=f"experts_implementation '{name}'.*unpack"):
            module(x, ids, weights)
        kernels.unpack(model)
        assert torch.allclose(module.eager(x, ids, weights), wanted, atol=1e-5)
        module(x, ids, weights)  # unpacked, the hook lets everything pass


def test_loading_moving_and_converting_after_pack_is_refused():
    state = nn.ModuleList([Experts()]).state_dict()
    model, module = packed_model()
    for strict in (True, False):
        with pytest.raises(InputError, match="load_state_dict: pack.. has freed the weights of 0; call unpack"):
            model.load_state_dict(state, strict=strict)
    model.load_state_dict({}, strict=False)
    for change in (lambda: model.cpu(), lambda: model.to("cpu"), lambda: model.to(torch.device("cpu"))):
        with pytest.raises(InputError, match="packed ones stay where and as they are; call unpack"):
            change()
    kernels.unpack(model)
    model.cpu().load_state_dict({name: 2 * w for name, w in state.items()})
    assert torch.equal(module.down_proj, 2 * state["0.down_proj"])
    kernels.pack(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.data.mul_(1.5),
        lambda w: w.data.add_(0.1),
        lambda w: w.data.copy_(torch.ones_like(w)),
        lambda w: setattr(w, "data", w.data + 0.2),
        lambda w: w.mul_(0.5),
    ],
)
@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_weights_changed_through_data_are_packed_anew(change, name):
    """As LoRA merges do; PyTorch's version counter does not see them."""
    module = Experts()
    x, ids, weights = torch.randn(4, H), torch.randint(0, E, (4, K)), torch.rand(4, K)
    with torch.no_grad():
        before = module(x, ids, weights)
        change(getattr(module, name))
        after = module(x, ids, weights)
        assert not torch.allclose(before, after)
        assert torch.allclose(after, module.eager(x, ids, weights), atol=1e-3, rtol=1e-3)
