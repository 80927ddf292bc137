"""Which backend serves: argument, use_backend, MINGCORE_BACKEND, automatic; and who refuses."""

import threading

import pytest
import torch

import mingcore.ops as ops
from mingcore import BackendError, InputError
from mingcore.ops._core import backends as core
from mingcore.ops._core.op import watching
from mingcore.ops._core.support import Support
from mingcore.ops.activation import SILU_MUL
from mingcore.ops.norm import RMS_NORM

X = torch.ones(2, 4)


@pytest.fixture
def backends(serve):
    """silu_mul on every backend: each gives its own number; "cpu" declines 3 rows."""
    numbers = {"reference": 1.0, "cpu": 2.0, "triton": 3.0, "cuda": 4.0}
    for backend, number in numbers.items():

        def decline(gate_up, backend=backend, **_):
            return "three rows are too many" if backend == "cpu" and gate_up.shape[0] == 3 else None

        def write(gate_up, out, number=number):
            out.fill_(number)

        def give(gate_up, number=number):
            return gate_up.new_full((*gate_up.shape[:-1], gate_up.shape[-1] // 2), number)

        serve(SILU_MUL, backend, give if backend == "reference" else write, Support(rule=decline))
    return numbers


def served(x=X, **kwargs) -> str:
    value = ops.silu_mul(x, **kwargs)[0, 0].item()
    return {1.0: "reference", 2.0: "cpu", 3.0: "triton", 4.0: "cuda"}[value]


def test_automatic_choice_on_a_cpu(backends):
    assert served() == "cpu"
    assert served(torch.ones(3, 4)) == "reference"


def test_a_backend_that_cannot_be_loaded_is_passed_over(backends):
    core._load_errors["cpu", "activation"] = "the cpu backend cannot be loaded: no compiler"
    SILU_MUL._chains.clear()
    assert served() == "reference"
    del SILU_MUL.implementations["cpu"]
    with pytest.raises(BackendError, match="silu_mul: the cpu backend cannot be loaded: no compiler"):
        served(backend="cpu")
    assert ops.why_not("silu_mul", "cpu", X) == "the cpu backend cannot be loaded: no compiler"


def test_argument_beats_context_beats_environment_beats_automatic(backends, environment):
    environment("triton")
    assert served() == "triton"
    with ops.use_backend("cuda"):
        assert served() == "cuda"
        assert served(backend="reference") == "reference"
        with ops.use_backend(None):
            assert served() == "cpu"
        assert served(backend="auto") == "cpu"
        assert served() == "cuda"
    assert served() == "triton"
    environment("auto")
    assert served() == "cpu"


def test_a_named_backend_that_cannot_serve_raises(backends, environment):
    x = torch.ones(3, 4)
    message = "silu_mul: the cpu backend cannot serve this call: three rows are too many"
    with pytest.raises(BackendError, match=message):
        ops.silu_mul(x, backend="cpu")
    with ops.use_backend("cpu"), pytest.raises(BackendError, match=message):
        ops.silu_mul(x)
    environment("cpu")
    with pytest.raises(BackendError, match=message):
        ops.silu_mul(x)


def test_several_names_are_an_order_of_preference(backends, environment):
    x = torch.ones(3, 4)  # too many rows for cpu
    assert served(backend="cpu,reference") == "cpu"
    assert served(x, backend="cpu,reference") == "reference"
    assert served(x, backend="cpu, triton") == "triton"
    with ops.use_backend("cpu,cuda"):
        assert served(x) == "cuda"
    environment("cpu,reference")
    assert served(x) == "reference"
    assert ops.rms_norm(X, torch.ones(4), 1e-6, backend="triton,reference").shape == X.shape
    with pytest.raises(BackendError, match=r"rms_norm: the triton backend .*; the cuda backend .*"):
        ops.rms_norm(X, torch.ones(4), 1e-6, backend="triton,cuda")
    with pytest.raises(InputError, match="got 'gpu'"):
        ops.silu_mul(X, backend="cpu,gpu")
    compiled = torch.compile(lambda x: ops.silu_mul(x, backend="cpu,reference"), fullgraph=True, backend="aot_eager")
    assert compiled(x)[0, 0] == backends["reference"]


def test_unknown_names_raise(backends, environment):
    message = "backend must be one of reference, cpu, triton, cuda, flash, got 'gpu'"
    with pytest.raises(InputError, match=message):
        ops.silu_mul(X, backend="gpu")
    with pytest.raises(InputError, match=message), ops.use_backend("gpu"):
        pass
    with pytest.raises(InputError, match="got 'gpu'"):
        ops.why_not("silu_mul", "gpu", X)
    with pytest.raises(InputError, match=message):
        environment("gpu")
    core._environment = None  # as at the first call
    with pytest.raises(InputError, match=message):
        ops.silu_mul(X)


def test_an_op_that_a_backend_does_not_have(clean_ops):
    RMS_NORM.implementations.pop("cpu", None)
    with pytest.raises(BackendError, match="rms_norm: the cpu backend does not have this op"):
        ops.rms_norm(X, torch.ones(4), 1e-6, backend="cpu")


def test_context_ends_with_an_error_and_holds_for_its_thread_only(backends):
    with pytest.raises(KeyError), ops.use_backend("cuda"):
        raise KeyError
    assert served() == "cpu"
    seen = []
    with ops.use_backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(served()))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_duplicates_and_unknown_backends_are_refused(backends):
    with pytest.raises(InputError, match="silu_mul: there is a cpu implementation already"):
        SILU_MUL.implementation("cpu")(lambda gate_up, out: None)
    with pytest.raises(InputError, match="backend must be one of"):
        SILU_MUL.implementation("tpu")


def test_why_not(backends):
    assert ops.why_not("silu_mul", "cpu", X) is None
    assert ops.why_not("silu_mul", "cpu", torch.ones(3, 4)) == "three rows are too many"
    assert ops.why_not("silu_mul", "cuda", X) == "the cuda backend is not for cpu tensors"
    with pytest.raises(InputError, match="op must be one of .*silu_mul.*, got 'no_such_op'"):
        ops.why_not("no_such_op", "cpu", X)


def test_what_would_serve_is_asked_with_the_public_functions_arguments(backends):
    three = torch.ones(3, 4)
    assert ops.supports("silu_mul", "cpu", X) and not ops.supports("silu_mul", "cpu", three)
    assert ops.unsupported_reason("silu_mul", "cpu", gate_up=three) == "three rows are too many"
    assert ops.selected_backend("silu_mul", X) == "cpu"
    assert ops.selected_backend("silu_mul", three) == "reference"
    assert ops.selected_backend("silu_mul", X, backend="triton") == "triton"
    with ops.use_backend("cuda,reference"):
        assert ops.selected_backend("silu_mul", X) == "cuda"
    with pytest.raises(BackendError, match="three rows are too many"):
        ops.selected_backend("silu_mul", three, backend="cpu")
    with pytest.raises(InputError, match="gate_up must be"):
        ops.supports("silu_mul", "cpu", torch.ones(3))
    with pytest.raises(InputError, match="op must be one of .*silu_mul.*, got 'no_such_op'"):
        ops.supports("no_such_op", "cpu", X)


def test_asking_runs_nothing(backends, serve):
    def fail(gate_up, out):
        raise AssertionError("it ran")

    serve(SILU_MUL, "cpu", fail)
    assert ops.selected_backend("silu_mul", X) == "cpu" and ops.supports("silu_mul", "cpu", X)


def test_in_place_forms_are_asked_by_their_own_arguments():
    x, v, guidance = torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1)
    assert ops.supports("flow_step_", "cpu", x, v, None, 0.1, guidance)
    strided = torch.ones(1, 2, 8)[..., ::2]
    assert "x has strides" in ops.unsupported_reason("flow_step_", "cpu", strided, v, None, 0.1, guidance)
    assert ops.selected_backend("flow_step_", strided, v, None, 0.1, guidance) == "reference"
    assert ops.supports("flow_step", "cpu", strided, v, None, 0.1, guidance)


def test_calls_can_be_watched(backends):
    seen = []
    with watching(lambda op, implementation, args: seen.append((op.name, implementation.backend, [*args]))):
        served()
        ops.rms_norm(X, torch.ones(4), 1e-6, backend="reference")
    served()
    assert seen == [("silu_mul", "cpu", ["gate_up"]), ("rms_norm", "reference", ["x", "weight", "eps"])]


def test_the_environment_is_read_once(backends, monkeypatch):
    assert served() == "cpu"
    monkeypatch.setenv("MINGCORE_BACKEND", "triton")
    assert served() == "cpu"


def test_compiled_functions_choose_when_they_run(backends, environment):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.silu_mul(x), fullgraph=True, backend="aot_eager")
    named = torch.compile(lambda x: ops.silu_mul(x, backend="triton"), fullgraph=True, backend="aot_eager")
    assert compiled(X)[0, 0] == backends["cpu"]
    with ops.use_backend("cuda"):
        assert compiled(X)[0, 0] == backends["cuda"]
        assert named(X)[0, 0] == backends["triton"]
    environment("reference")
    assert compiled(X)[0, 0] == backends["reference"]
    with pytest.raises(InputError, match="got 'gpu'"):
        torch.ops.mingcore.silu_mul(X, backend="gpu")


def test_eager_calls_do_not_go_through_the_dispatcher(backends, monkeypatch):
    monkeypatch.setattr(SILU_MUL, "_torch_op", None)
    assert served() == "cpu"
    monkeypatch.setattr(SILU_MUL, "call", None)
    with pytest.raises(TypeError):
        served()


@pytest.mark.parametrize("error", ["ImportError", "BackendError"])
def test_an_adapter_that_says_it_cannot_be_loaded(clean_ops, monkeypatch, tmp_path, error):
    lines = ["from mingcore.errors import BackendError", f"raise {error}('no such kernel')"]
    (tmp_path / "activation").mkdir()
    adapter = tmp_path / "activation" / "cpu.py"
    adapter.write_text("\n".join(lines))
    put_adapter(monkeypatch, tmp_path, adapter)
    assert core.load("cpu", "activation") == "the cpu backend cannot be loaded: no such kernel"


def test_an_adapter_that_is_broken_is_not_hidden(clean_ops, monkeypatch, tmp_path):
    (tmp_path / "activation").mkdir()
    adapter = tmp_path / "activation" / "cpu.py"
    adapter.write_text("undefined")
    put_adapter(monkeypatch, tmp_path, adapter)
    with pytest.raises(NameError):
        core.load("cpu", "activation")


def put_adapter(monkeypatch, folder, path) -> None:
    """The file `path` is imported as the adapter of the activations on the CPU."""

    def import_module(name: str) -> None:
        assert name == "mingcore.ops.activation.cpu"
        exec(path.read_text(), {})

    monkeypatch.setattr(core, "_OPS", folder)
    monkeypatch.setattr(core, "import_module", import_module)
    core._load_errors.pop(("cpu", "activation"))
