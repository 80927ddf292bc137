"""Records of proven kernels: what their hash covers, who reads them, what follows."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import mingcore.ops as ops
from mingcore.ops._core import records as verified
from mingcore.ops._core.op import forget_choices
from mingcore.ops.activation import SILU_MUL

GPU = torch.device("cuda", 0)

KERNEL = '''"""A kernel."""
import triton
from mingcore_kernels.parts import load  # helpers
from . import more

BLOCK = 64  # tuned


def kernel(x):
    """Doubles "x" # not a comment."""
    return load(x) * 2 + len("# text")
'''


@pytest.fixture
def folder(tmp_path):
    """A kernel folder, with a Triton kernel and a CUDA one and what they include."""
    kernels = tmp_path / "mingcore_kernels"
    kernels.mkdir()
    (kernels / "double.py").write_text(KERNEL)
    (kernels / "parts.py").write_text("def load(x):\n    return x\n")
    (kernels / "more.py").write_text("A = 1\n")
    (kernels / "other.py").write_text("A = 1\n")
    (kernels / "double.cu").write_text('#include "tiles.cuh"\n#include <cuda.h>\nint f() { return 2; }\n')
    (kernels / "tiles.cuh").write_text("#define TILE 16 // rows\n")
    return kernels


def adapter(gate_up, out):
    out.copy_(gate_up)


def other_adapter(gate_up, out):
    out.copy_(gate_up + 1)


@dataclass(frozen=True, eq=False)
class Kernel:
    """As much of an implementation as a record looks at."""

    op: str
    backend: str
    sources: tuple
    flags: tuple
    packed: bool


def entry(*sources, op="silu_mul", backend="triton", flags=()) -> Kernel:
    return Kernel(op, backend, tuple(sources), tuple(flags), op == "linear")


def fingerprint(*args, **kwargs) -> str:
    verified.fingerprint.cache_clear()
    return verified.fingerprint(entry(*args, **kwargs))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_comments_docstrings_and_blank_lines_do_not_count(folder):
    path = folder / "double.py"
    before = fingerprint(path)
    for old, new in (
        ("  # helpers", ""),
        ("  # tuned", "   # é: still not tuned"),
        ('"""A kernel."""', '"""Another.\n\nWith lines."""'),
        ("\n\n\n", "\n\n# a comment\n\n\n"),
        ('    """Doubles "x" # not a comment."""\n', '    """Triples é."""  \n'),
    ):
        edit(path, old, new)
        assert fingerprint(path) == before, (old, new)


@pytest.mark.parametrize(("old", "new"), [("BLOCK = 64", "BLOCK = 32"), ('"# text"', '"# test"'), ("* 2 +", "* 3 +")])
def test_code_counts(folder, old, new):
    path = folder / "double.py"
    before = fingerprint(path)
    edit(path, old, new)
    assert fingerprint(path) != before


def test_imports_and_includes_count(folder):
    python, cuda = folder / "double.py", folder / "double.cu"
    assert {p.name for p in verified.source_files(entry(python))} == {"double.py", "parts.py", "more.py"}
    assert {p.name for p in verified.source_files(entry(cuda))} == {"double.cu", "tiles.cuh"}
    before = fingerprint(python), fingerprint(cuda)
    edit(folder / "other.py", "1", "2")
    edit(folder / "tiles.cuh", "// rows", "/* of\n rows */")
    assert (fingerprint(python), fingerprint(cuda)) == before
    edit(folder / "parts.py", "return x", "return -x")
    edit(folder / "tiles.cuh", "16", "32")
    assert fingerprint(python) != before[0] and fingerprint(cuda) != before[1]


def test_c_comments_in_strings_stay(folder):
    path = folder / "double.cu"
    path.write_text('const char* s = "// kept"; /* gone */ char c = \'"\'; // gone "too\nint x;\n')
    text = verified.stripped(path.read_text(), ".cu")
    assert text == 'const char* s = "// kept";   char c = \'"\';\nint x;'


def test_flags_adapter_and_packing_count(folder):
    path = folder / "double.cu"
    before = fingerprint(path)
    assert fingerprint(path, flags=("-O3",)) != before
    assert verified.PACKING not in verified.source_files(entry(path))
    assert verified.PACKING in verified.source_files(entry(path, op="linear"))


@pytest.fixture
def gpu(monkeypatch, tmp_path, clean_ops):
    """A machine that says it has an sm_90 GPU; the user's cache and the package's are empty."""
    monkeypatch.setenv("MINGCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(verified, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    verified.fingerprint.cache_clear()
    return tmp_path


def test_a_kernel_without_a_record_is_not_verified(folder, gpu):
    reason = verified.unproven(entry(folder / "double.py"), GPU)
    assert reason == "not verified on this architecture (sm_90); run mingcore verify"


@pytest.mark.parametrize("place", ["cache/verified", "shipped"])
def test_a_record_counts_for_its_source_and_architecture(folder, gpu, monkeypatch, place):
    kernel = entry(folder / "double.py")
    path = verified.keep(kernel, GPU, None if place.startswith("cache") else gpu / place)
    assert path == gpu / place / "silu_mul.json"
    assert verified.unproven(kernel, GPU) is None
    (record,) = json.loads(path.read_text())["records"]
    assert record["device"] == "NVIDIA Test" and record["torch"] == torch.__version__
    assert "sm_90" in verified.unproven(entry(folder / "double.py", backend="cuda"), GPU)
    monkeypatch.setattr(verified, "architecture", lambda device: "sm_80")
    assert "sm_80" in verified.unproven(kernel, GPU)
    verified.keep(kernel, GPU)
    assert verified.unproven(kernel, GPU) is None
    edit(folder / "double.py", "BLOCK = 64", "BLOCK = 65")
    verified.fingerprint.cache_clear()
    assert "not verified" in verified.unproven(kernel, GPU)


def test_a_new_record_replaces_its_predecessor_only(folder, gpu):
    first = entry(folder / "double.py")
    verified.keep(first, GPU)
    verified.keep(entry(folder / "double.cu", backend="cuda"), GPU)
    path = verified.keep(entry(folder / "double.py", flags=("x",)), GPU)
    records = json.loads(path.read_text())["records"]
    assert [record["backend"] for record in records] == ["cuda", "triton"]
    assert "not verified" in verified.unproven(first, GPU)
    assert [p.name for p in path.parent.iterdir()] == ["silu_mul.json"]


@pytest.mark.parametrize("text", ["", "{", '{"records": [{"backend": 1}]}', "[]"])
def test_a_damaged_record_counts_for_nothing(folder, gpu, caplog, text):
    path = gpu / "cache" / "verified" / "silu_mul.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert "not verified" in verified.unproven(entry(folder / "double.py"), GPU)
    assert "counts for nothing" in caplog.text


def test_a_missing_source_cannot_be_verified(folder, gpu):
    assert "missing" in verified.unproven(entry(folder / "gone.cu"), GPU)


class GpuTensor:
    """As much of a CUDA tensor as the choice looks at."""

    device = GPU


def test_the_automatic_choice_takes_proven_kernels_only(folder, gpu, serve):
    for backend, name in (("triton", "double.py"), ("cuda", "double.cu")):
        serve(SILU_MUL, backend, adapter if backend == "triton" else other_adapter, sources=[folder / name])
    triton, cuda = SILU_MUL.implementations["triton"], SILU_MUL.implementations["cuda"]
    args = {"gate_up": GpuTensor()}

    def chosen() -> list[str]:
        return [found.backend for found in SILU_MUL.chain(GPU)]

    assert Path(__file__) in triton.sources  # the adapter vouches for itself
    assert chosen() == ["reference"]
    assert "mingcore verify" in ops.why_not("silu_mul", "triton", GpuTensor())
    assert SILU_MUL.select("triton", args) is triton  # asked for
    verified.keep(triton, GPU)
    forget_choices()
    assert chosen() == ["triton", "reference"]
    verified.keep(cuda, GPU)
    forget_choices()
    assert chosen() == ["cuda", "triton", "reference"]
    assert SILU_MUL.select(None, args) is cuda
    assert ops.why_not("silu_mul", "cuda", GpuTensor()) is None
