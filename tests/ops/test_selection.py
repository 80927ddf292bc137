"""Which backend serves: argument, use_backend, MINGCORE_BACKEND, automatic; and who refuses."""

import threading

import pytest
import torch

import mingcore.ops as ops
from mingcore import BackendError, InputError
from mingcore.ops._core import dispatch

X = torch.ones(2, 4)


@pytest.fixture
def backends(clean_registry):
    """silu_mul on every backend: each returns its own number; "cpu" declines 3 rows."""
    numbers = {"reference": 1.0, "cpu": 2.0, "triton": 3.0, "cuda": 4.0}
    for backend, number in numbers.items():
        clean_registry._entries.pop(("silu_mul", backend), None)
        clean_registry._load_errors[backend] = None

        def decline(x, backend=backend):
            return "three rows are too many" if backend == "cpu" and x.shape[0] == 3 else None

        def function(x, number=number):
            return x.new_full((*x.shape[:-1], x.shape[-1] // 2), number)

        clean_registry.register("silu_mul", backend, decline)(function)
    return numbers


def served(x=X, **kwargs) -> str:
    value = ops.silu_mul(x, **kwargs)[0, 0].item()
    return {1.0: "reference", 2.0: "cpu", 3.0: "triton", 4.0: "cuda"}[value]


def test_automatic_choice_on_a_cpu(backends):
    assert served() == "cpu"
    assert served(torch.ones(3, 4)) == "reference"


def test_a_backend_that_cannot_be_loaded_is_passed_over(backends, clean_registry):
    clean_registry._load_errors["cpu"] = "the cpu backend cannot be loaded: no compiler"
    assert served() == "reference"
    del clean_registry._entries["silu_mul", "cpu"]
    clean_registry._chains.clear()
    with pytest.raises(BackendError, match="silu_mul: the cpu backend cannot be loaded: no compiler"):
        served(backend="cpu")
    assert ops.why_not("silu_mul", "cpu", X) == "the cpu backend cannot be loaded: no compiler"


def test_argument_beats_context_beats_environment_beats_automatic(backends, monkeypatch):
    monkeypatch.setenv("MINGCORE_BACKEND", "triton")
    assert served() == "triton"
    with ops.use_backend("cuda"):
        assert served() == "cuda"
        assert served(backend="reference") == "reference"
        with ops.use_backend(None):
            assert served() == "cpu"
        assert served(backend="auto") == "cpu"
        assert served() == "cuda"
    assert served() == "triton"
    monkeypatch.setenv("MINGCORE_BACKEND", "auto")
    assert served() == "cpu"


def test_a_named_backend_that_cannot_serve_raises(backends, monkeypatch):
    x = torch.ones(3, 4)
    message = "silu_mul: the cpu backend cannot serve this call: three rows are too many"
    with pytest.raises(BackendError, match=message):
        ops.silu_mul(x, backend="cpu")
    with ops.use_backend("cpu"), pytest.raises(BackendError, match=message):
        ops.silu_mul(x)
    monkeypatch.setenv("MINGCORE_BACKEND", "cpu")
    with pytest.raises(BackendError, match=message):
        ops.silu_mul(x)


def test_several_names_are_an_order_of_preference(backends, monkeypatch):
    x = torch.ones(3, 4)  # too many rows for cpu
    assert served(backend="cpu,reference") == "cpu"
    assert served(x, backend="cpu,reference") == "reference"
    assert served(x, backend="cpu, triton") == "triton"
    with ops.use_backend("cpu,cuda"):
        assert served(x) == "cuda"
    monkeypatch.setenv("MINGCORE_BACKEND", "cpu,reference")
    assert served(x) == "reference"
    assert ops.rms_norm(X, torch.ones(4), 1e-6, backend="triton,reference").shape == X.shape
    with pytest.raises(BackendError, match=r"rms_norm: the triton backend .*; the cuda backend .*"):
        ops.rms_norm(X, torch.ones(4), 1e-6, backend="triton,cuda")
    with pytest.raises(InputError, match="got 'gpu'"):
        ops.silu_mul(X, backend="cpu,gpu")
    compiled = torch.compile(lambda x: ops.silu_mul(x, backend="cpu,reference"), fullgraph=True, backend="aot_eager")
    assert compiled(x)[0, 0] == backends["reference"]


def test_unknown_names_raise(backends, monkeypatch):
    message = "backend must be one of reference, cpu, triton, cuda, flash, got 'gpu'"
    with pytest.raises(InputError, match=message):
        ops.silu_mul(X, backend="gpu")
    with pytest.raises(InputError, match=message), ops.use_backend("gpu"):
        pass
    with pytest.raises(InputError, match="got 'gpu'"):
        ops.why_not("silu_mul", "gpu", X)
    monkeypatch.setenv("MINGCORE_BACKEND", "gpu")
    with pytest.raises(InputError, match=message):
        ops.silu_mul(X)


def test_an_op_that_a_backend_does_not_have(clean_registry):
    clean_registry._entries.pop(("rms_norm", "cpu"), None)
    clean_registry._load_errors["cpu"] = None
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


def test_duplicates_and_unknown_backends_are_refused(backends, clean_registry):
    with pytest.raises(InputError, match="silu_mul has a cpu function already"):
        clean_registry.register("silu_mul", "cpu")(lambda x: x)
    with pytest.raises(InputError, match="backend must be one of"):
        clean_registry.register("silu_mul", "tpu")


def test_why_not(backends):
    assert ops.why_not("silu_mul", "cpu", X) is None
    assert ops.why_not("silu_mul", "cpu", torch.ones(3, 4)) == "three rows are too many"
    assert ops.why_not("silu_mul", "cuda", X) == "the cuda backend is not for cpu tensors"
    assert ops.why_not("no_such_op", "cpu", X) == "the cpu backend does not have no_such_op"


def test_compiled_functions_choose_when_they_run(backends, monkeypatch):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.silu_mul(x), fullgraph=True, backend="aot_eager")
    named = torch.compile(lambda x: ops.silu_mul(x, backend="triton"), fullgraph=True, backend="aot_eager")
    assert compiled(X)[0, 0] == backends["cpu"]
    with ops.use_backend("cuda"):
        assert compiled(X)[0, 0] == backends["cuda"]
        assert named(X)[0, 0] == backends["triton"]
    monkeypatch.setenv("MINGCORE_BACKEND", "reference")
    assert compiled(X)[0, 0] == backends["reference"]
    with pytest.raises(InputError, match="got 'gpu'"):
        torch.ops.mingcore.silu_mul(X, backend="gpu")


def test_eager_calls_do_not_go_through_the_dispatcher(backends, monkeypatch):
    monkeypatch.setattr(torch.ops, "mingcore", None)
    assert served() == "cpu"
    monkeypatch.setattr(dispatch, "select", None)
    with pytest.raises(TypeError):
        served()


@pytest.mark.parametrize("error", ["ImportError", "BackendError"])
def test_an_adapter_that_says_it_cannot_be_loaded(clean_registry, monkeypatch, tmp_path, error):
    lines = ["from mingcore.errors import BackendError", f"raise {error}('no such kernel')"]
    (tmp_path / f"adapter_{error}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(clean_registry._MODULES, "cpu", f"adapter_{error}")
    clean_registry._load_errors.pop("cpu")
    assert clean_registry.load("cpu") == "the cpu backend cannot be loaded: no such kernel"


def test_an_adapter_that_is_broken_is_not_hidden(clean_registry, monkeypatch, tmp_path):
    (tmp_path / "broken_adapter.py").write_text("undefined")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(clean_registry._MODULES, "cpu", "broken_adapter")
    clean_registry._load_errors.pop("cpu")
    with pytest.raises(NameError):
        clean_registry.load("cpu")
