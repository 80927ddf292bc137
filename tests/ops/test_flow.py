"""flow_sample on the CPU kernels: every instruction set, thread count and batch; the same bits."""

import random
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mingcore import _cpu, ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.cpu import array
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops.flow import cpu as cpu_flow
from mingcore.testing import compare

FORMATS = ("fp32", "bf16", "fp16", "int8", "int8_dyn")
# more panels than threads, no whole panels, one head, more rows than one task takes
SHAPES = (
    {"B": 2, "L": 3, "H": 96, "W": 160, "heads": 3, "rope_heads": 2, "qk_norm": True},
    {"B": 1, "L": 1, "H": 20, "W": 33, "C": 3, "Hc": 5, "heads": 2, "N": 0, "P": 1},
    {"B": 3, "L": 2, "H": 70, "W": 50, "C": 40, "heads": 1, "N": 7, "P": 17},
    {"B": 9, "L": 2, "H": 36, "W": 65, "C": 7, "heads": 3, "N": 32, "P": 4},
)
STEPS = {"steps": 2}
OUT = 17  # its place among the native arguments


def arguments(seed: int = 0, **dims) -> dict:
    found = next(c for c in cases.for_op("flow_sample") if c.name == "b1")
    return replace(found, dims={"schedule": STEPS, **dims}).make(seed=seed)


def run(kwargs: dict) -> torch.Tensor:
    with torch.no_grad(), nan_poisoned():
        return ops.flow_sample(**kwargs, backend="cpu")


def rows_of(kwargs: dict, start: int, stop: int) -> dict:
    """The requests start..stop alone."""
    part = {name: kwargs[name][start:stop] for name in ("condition", "history", "guidance")}
    return {**kwargs, **part, "noise": kwargs["noise"][:, start:stop]}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_matches_the_oracle(isa, shape, format):
    dims = SHAPES[shape]
    guidance = tuple(random.Random(shape).choice((0.0, 1.0, 2.0)) for _ in range(dims["B"]))
    kwargs = arguments(**dims, guidance=guidance, format=format, float_input=True)
    with torch.no_grad():
        compare.check_op("flow_sample", kwargs, (run(kwargs),))


@pytest.mark.parametrize("format", FORMATS)
def test_bits_do_not_depend_on_threads_or_batch(isa, format):
    guidance = (2.0, 0.0, 1.0, 7.0, 0.5, 2.0, 0.0, 3.0)
    kwargs = arguments(B=8, N=5, H=96, heads=3, W=200, guidance=guidance, format=format)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(run(kwargs))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], each) for each in results)
    for start, stop in ((0, 1), (1, 2), (2, 5), (4, 8)):
        assert torch.equal(run(rows_of(kwargs, start, stop)), results[0][start:stop]), (start, stop)


@pytest.mark.parametrize("format", ("fp32", "int8_dyn"))
def test_the_same_bits_a_thousand_times(format):
    """A lost wait shows as a moving error; more threads than cores, so they are interrupted."""
    kwargs = arguments(B=2, L=2, H=64, heads=2, W=96, N=2, P=2, C=8, format=format)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    expected = run(kwargs)
    differing = sum(not torch.equal(run(kwargs), expected) for _ in range(1000))
    torch.set_num_threads(before)
    assert differing == 0


def test_calls_from_several_threads_do_not_share_memory():
    many = [arguments(seed, B=1 + seed, H=64, heads=2) for seed in range(3)]
    expected = [run(kwargs) for kwargs in many]
    wrong = []

    def work(i: int) -> None:
        for _ in range(30):
            with torch.no_grad():
                got = ops.flow_sample(**many[i], backend="cpu")
            if not torch.equal(got, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_instruction_sets_agree_to_rounding():
    results, before = [], _cpu.isa()
    kwargs = arguments(B=2, L=3, H=128, heads=2, W=256, guidance=3.0)
    for isa in _cpu.isas():
        _cpu.set_isa(isa)
        results.append(run(kwargs))
    _cpu.set_isa(before)
    assert all(compare.max_relative(each, results[0]) < 1e-5 for each in results)


def test_the_first_block_shares_rows_between_branches(isa):
    """Guided and unguided rows of one request in a batch: what they share must not mix."""
    kwargs = arguments(B=3, L=2, N=3, guidance=(2.0, 0.0, 1.5))
    alone = {**rows_of(kwargs, 1, 2), "guided": False}
    assert torch.equal(run(kwargs)[1:2], run(alone))


@pytest.mark.parametrize("scale", (1.0, 1e3))
@pytest.mark.parametrize("format", FORMATS)
def test_large_inputs_stay_finite(isa, format, scale):
    assert run(arguments(B=2, scale=scale, guidance=7.0, format=format)).isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
def test_nan_stays_in_its_request(isa, format):
    kwargs = arguments(B=3, guidance=2.0, format=format)
    clean = run(kwargs)
    kwargs["history"][1, 0, 0] = float("nan")
    got = run(kwargs)
    assert got[1].isnan().all()
    assert torch.equal(got[0], clean[0]) and torch.equal(got[2], clean[2])


def test_what_it_cannot_serve_is_named():
    with torch.no_grad(), pytest.raises(BackendError, match="layout 'rows'"):
        kwargs = arguments()
        ops.flow_sample(**{**kwargs, "head": kwargs["head"].as_rows()}, backend="cpu")
    with torch.no_grad(), pytest.raises(BackendError, match="float64"):
        kwargs = arguments()
        ops.flow_sample(**{**kwargs, "condition": kwargs["condition"].double()}, backend="cpu")


def native_arguments(kwargs: dict, out: torch.Tensor) -> list:
    """What reaches `_cpu.flow_sample`, to be spoilt one by one."""
    caught = []
    spy = SimpleNamespace(flow_sample=lambda *args: caught.extend(args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_flow, "_cpu", spy)
        run(kwargs)
    caught[OUT] = array(out)
    return caught


@pytest.mark.parametrize(
    ("index", "spoil", "message"),
    (
        (0, lambda a: (a[0], 0, (3, a[2][1]), a[3]), "condition must be B = 2"),
        (1, lambda a: (a[0], 0, (2, 5, 9), a[3]), "history must be C = 16"),
        (3, lambda a: (a[0], 1, *a[2:]), "guidance must be float32, got bfloat16"),
        (4, lambda a: (a[0], 0, (9, a[2][1]), a[3]), "advance must be E = 9"),
        (7, lambda a: a + b"\0", "advance must be E = 2"),
        (8, lambda a: (a[0], 0, (4, a[2][1]), a[3]), "cos must be size = 11"),
        (10, lambda a: a[:6], "matrices must be 7, got 6"),
        (12, lambda a: a[:2], "norms must be 3 or 5, got 2"),
        (14, lambda a: 5, "heads must be so many that H / heads is whole and even"),
    ),
)
def test_the_binding_names_what_is_wrong(index, spoil, message):
    kwargs = arguments(B=2, guidance=(2.0, 2.0))
    out = torch.empty(2, 5, 16)
    args = native_arguments(kwargs, out)
    args[index] = spoil(args[index])
    with pytest.raises(ValueError, match=message):
        _cpu.flow_sample(*args)
