"""The module `_cpu` itself: it checks what it is given, and says what is wrong where."""

import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch

from mingcore import _cpu

CSRC = Path(__file__).resolve().parents[2] / "csrc"
F32, BF16 = 0, 1
_kept = []


def array(*sizes, code=F32, strides=None):
    t = torch.zeros(sizes, dtype=torch.bfloat16 if code == BF16 else torch.float32)
    _kept.append(t)
    return (t.data_ptr(), code, tuple(sizes), tuple(strides or t.stride()))


def linear(**changed):
    given = {
        "x": array(3, 8),
        "weight": array(16, 8),
        "bias": array(16),
        "residual": array(3, 16),
        "scale": None,
        "out": array(3, 16),
        "activation": "none",
        "layout": "rows",
        "n": 16,
        "threads": 1,
    }
    _cpu.linear(*{**given, **changed}.values())


LINEAR = (
    ({"x": array(8)}, "x must be 2-dimensional, got 1 dimensions"),
    ({"x": array(3, 0)}, r"x must be \[M, K\] with K >= 1, got \[3, 0\]"),
    ({"x": array(3, 8, strides=(1, 3))}, "x must be dense in its last dimension, got stride 3"),
    ({"x": (0, F32, (3, 8), (8, 1))}, "x must be backed by memory, got a null pointer"),
    ({"x": (1, 7, (3, 8), (8, 1))}, r"x must be float32 .* got code 7"),
    ({"x": None}, r"x must be \(data_ptr, dtype, sizes, strides\), got None"),
    ({"weight": array(16, 9)}, r"weight must be K = 8 in dimension 1, got \[16, 9\]"),
    ({"weight": array(15, 8)}, r"weight must be N = 16 in dimension 0, got \[15, 8\]"),
    ({"bias": array(15)}, r"bias must be N = 16 in dimension 0, got \[15\]"),
    ({"residual": array(3, 17)}, r"residual must be N_out = 16 in dimension 1, got \[3, 17\]"),
    ({"residual": array(2, 16)}, r"residual must be M = 3 in dimension 0, got \[2, 16\]"),
    ({"out": array(4, 16)}, r"out must be M = 3 in dimension 0, got \[4, 16\]"),
    ({"out": array(3, 16, strides=(8, 1))}, "out must be free of overlap in dimension 0"),
    ({"activation": "relu"}, "activation must be one of none, silu, .*, got 'relu'"),
    ({"layout": "columns"}, "layout must be one of rows, panels, panels_swiglu, got 'columns'"),
    ({"layout": "panels", "weight": array(2, 8, 32)}, "weight must be panels = 1 in dimension 0"),
    ({"layout": "panels", "weight": array(1, 8, 16)}, "weight must be columns = 32 in dimension 2"),
    ({"layout": "panels_swiglu", "weight": array(1, 8, 32)}, "layout must be rows or panels for"),
    ({"activation": "swiglu"}, r"residual must be N_out = 8 in dimension 1, got \[3, 16\]"),
    ({"activation": "swiglu", "n": 15}, "n must be even for swiglu, got 15"),
    ({"n": 0}, "n must be >= 1, got 0"),
    ({"threads": 0}, r"threads must be in 1\.\.4096, got 0"),
)


@pytest.mark.parametrize("changed, message", LINEAR)
def test_linear_names_the_tensor_and_the_dimension(changed, message):
    linear()
    with pytest.raises(ValueError, match=f"^linear: {message}"):
        linear(**changed)


def test_silu_mul_and_flow_step_name_the_tensor():
    with pytest.raises(ValueError, match=r"silu_mul: gate_up must be \[M, 2 I\], got \[3, 7\]"):
        _cpu.silu_mul(array(3, 7), array(3, 3), 1)
    with pytest.raises(ValueError, match="silu_mul: out must be of gate_up's dtype"):
        _cpu.silu_mul(array(3, 6), array(3, 3, code=BF16), 1)
    state, row = array(2, 5, 4), array(2)
    step = {"x": state, "v": state, "u": None, "dt": 0.1, "g": row, "e": None, "s": row}
    bad = (
        ({"x": array(2, 5, 4, code=BF16)}, "x must be float32, got bfloat16"),
        ({"v": array(2, 4, 4)}, r"v_cond must be P = 5 in dimension 1, got \[2, 4, 4\]"),
        ({"u": array(1, 5, 4)}, r"v_null must be B = 2 in dimension 0, got \[1, 5, 4\]"),
        ({"e": array(2, 5, 3)}, r"noise must be C = 4 in dimension 2, got \[2, 5, 3\]"),
        ({"g": array(3)}, r"guidance must be B = 2 in dimension 0, got \[3\]"),
    )
    for changed, message in bad:
        with pytest.raises(ValueError, match=f"flow_step: {message}"):
            _cpu.flow_step(*{**step, **changed}.values(), state, 1)


def moe_mlp(**changed):
    """E = 3 experts of width 5 on 2 tokens of 7, K = 2, and a shared one of width 4, as rows."""
    given = {
        "x": array(2, 7),
        "gate_up": array(3, 10, 7),
        "down": array(3, 7, 5),
        "weights": array(2, 2),
        "ids": (array(2, 2)[0], 5, (2, 2), (2, 1)),
        "shared_gate_up": array(8, 7),
        "shared_down": array(7, 4),
        "scales": [None] * 4,
        "out": array(2, 7),
        "layout": "rows",
        "threads": 1,
    }
    return _cpu.moe_mlp(*{**given, **changed}.values())


PANELS = {
    "gate_up": array(3, 1, 7, 32),
    "down": array(3, 1, 5, 32),
    "shared_gate_up": array(1, 7, 32),
    "shared_down": array(1, 4, 32),
    "layout": "panels",
}
MOE = (
    ({"x": array(2, 0)}, r"x must be \[T, H\] with H >= 1, got \[2, 0\]"),
    ({"gate_up": array(3, 9, 7)}, r"gate_up must be rows = 10 in dimension 1, got \[3, 9, 7\]"),
    ({"gate_up": None}, "gate_up and down must be tensors, got None"),
    ({"down": array(2, 7, 5)}, r"down must be E = 3 in dimension 0, got \[2, 7, 5\]"),
    ({"down": array(3, 7, 5, code=BF16)}, "down must be of gate_up's dtype"),
    ({"weights": array(2, 3)}, r"weights must be K = 2 in dimension 1, got \[2, 3\]"),
    ({"weights": array(2, 2, code=BF16)}, "weights must be float32, got bfloat16"),
    ({"ids": array(2, 2)}, r"ids must be int32 \(5\), got code 0"),
    ({"shared_down": array(6, 4)}, r"shared_down must be rows = 7 in dimension 0, got \[6, 4\]"),
    ({"shared_down": None}, "shared_down must be given with shared_gate_up, got None"),
    ({"scales": [None]}, "scales must be 4, got 1"),
    ({"out": array(2, 6)}, r"out must be H = 7 in dimension 1, got \[2, 6\]"),
    ({"layout": "panels_swiglu"}, "layout must be rows or panels, got panels_swiglu"),
    ({**PANELS, "gate_up": array(3, 2, 7, 32)}, "gate_up must be panels = 1 in dimension 1"),
    ({**PANELS, "shared_gate_up": array(1, 7, 16)}, "shared_gate_up must be rows of a panel = 32"),
    ({"gate_up": (array(3, 3, 7)[0], 3, (3, 10, 7), (70, 7, 1))}, "gate_up must be panels where"),
)


@pytest.mark.parametrize("changed, message", MOE)
def test_moe_mlp_names_the_tensor_and_the_dimension(changed, message):
    assert moe_mlp() == moe_mlp(**PANELS) == -1
    with pytest.raises(ValueError, match=f"^moe_mlp: {message}"):
        moe_mlp(**changed)


def test_isa_selection():
    assert _cpu.isas()[-1] == "scalar" and _cpu.isa() == _cpu.isas()[0]
    with pytest.raises(ValueError, match="this build on this CPU has no 'sse9'"):
        _cpu.set_isa("sse9")


def test_own_threads_where_no_openmp_is_loaded():
    """Without PyTorch in the process the module uses its own pool, and computes the same."""
    program = """
        import array, importlib.util, sys
        spec = importlib.util.spec_from_file_location("_cpu", sys.argv[1])
        cpu = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cpu)
        assert cpu.thread_pool() == "std::thread", cpu.thread_pool()
        M, K, N = 40, 100, 300
        x = array.array("f", [(i * 7 % 13 - 6) / 8 for i in range(M * K)])
        w = array.array("f", [(i * 5 % 11 - 5) / 8 for i in range(N * K)])
        def run(threads):
            out = array.array("f", [float("nan")] * (M * N))
            given = [(a.buffer_info()[0], 0, s, (s[1], 1)) for a, s in
                     ((x, (M, K)), (w, (N, K)), (out, (M, N)))]
            cpu.linear(*given[:2], None, None, None, given[2], "none", "rows", N, threads)
            return out
        one = run(1)
        for threads in (2, 3, 5, 2, 5) * 20:
            assert run(threads) == one
        exact = sum(a * b for a, b in zip(x[K:2 * K], w[2 * K:3 * K]))
        assert one[N + 2] == exact, (one[N + 2], exact)
        assert "torch" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), _cpu.__file__], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(p.stem for p in (CSRC / "bind").glob("*.cpp")))
def test_each_file_of_the_bindings_compiles_alone(family):
    """setup.py builds them as one unit, where a missing include would not show."""
    pybind11 = pytest.importorskip("pybind11")
    folders = (CSRC, pybind11.get_include(), sysconfig.get_path("include"))
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-DMC_X86"]
    command += [*(f"-I{folder}" for folder in folders), CSRC / "bind" / f"{family}.cpp"]
    subprocess.run(command, check=True, timeout=120)


def test_the_name_says_which_python_it_is_for():
    assert _cpu.__file__.endswith(sysconfig.get_config_var("EXT_SUFFIX"))
