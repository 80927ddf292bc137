import pytest
import torch

from mingcore.ops._core import backends, op
from tests.ops.runners.workers import Workers, shared_folder

try:
    from mingcore import _cpu
except ImportError:
    ISAS: tuple[str, ...] = ()
else:
    ISAS = _cpu.isas()


@pytest.fixture(params=ISAS)
def isa(request):
    """Every instruction set that this build holds and this CPU runs, one after the other."""
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture(params=(1, 2))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workers(tmp_path_factory):
    """The processes in which kernels are interpreted, compiled or emulated."""
    made = Workers(tmp_path_factory.mktemp("workers"), shared_folder(tmp_path_factory.getbasetemp()))
    yield made
    made.close()


@pytest.fixture
def clean_ops(monkeypatch):
    """Every op's implementations, restored afterwards; MINGCORE_BACKEND unset."""
    backends.load_all()
    monkeypatch.setattr(backends, "_load_errors", dict(backends._load_errors))
    monkeypatch.setattr(backends, "_environment", ())
    for each in op.OPS.values():
        if isinstance(each, op.Op):
            monkeypatch.setattr(each, "implementations", dict(each.implementations))
            monkeypatch.setattr(each, "_chains", {})
    monkeypatch.delenv("MINGCORE_BACKEND", raising=False)


@pytest.fixture
def environment(monkeypatch):
    """Sets MINGCORE_BACKEND as a new process would find it."""

    def set_backend(name: str) -> None:
        monkeypatch.setenv("MINGCORE_BACKEND", name)
        backends.read_environment()

    return set_backend


@pytest.fixture
def serve(clean_ops, monkeypatch):
    """serve(op, backend, function, support): puts an implementation in another's place. Tensors of
    any device go to any backend, so that a CPU can play a GPU."""
    monkeypatch.setattr(op, "_DEVICE", dict.fromkeys(backends.BACKENDS, op.anywhere))

    def put(declared: op.Op, backend: str, function, support=None, **options):
        declared.implementations.pop(backend, None)
        monkeypatch.setitem(backends._load_errors, (backend, declared.family), None)
        if backend not in declared.backends:
            monkeypatch.setattr(declared, "backends", (*declared.backends, backend))
        declared.implementation(backend, support, **options)(function)
        return declared.implementations[backend]

    return put
