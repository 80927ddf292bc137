"""Every named case of every op, on every backend, by every runner that has it, against the oracle.

Runners: "native" runs CPU kernels of each instruction set, "interpreted" Triton's kernels in its
interpreter, "emulated" the .cu kernels compiled for the CPU, "gpu" both on a device. Each result is
within the oracle's tolerance, from poisoned outputs, and has the same bits in a second run. What a
backend declines is listed here; anything else that it declines is a failure, and so is a case that
it takes although it is listed. What is particular to a family is in test_<family>*.py.
"""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch

from mingcore.ops._core import backends, cases
from mingcore.ops._core.op import OPS
from tests.ops.runners import gpu, named, triton

try:
    from tests.ops.runners import native as native_runner
except ImportError:  # built without CPU kernels
    native_runner = None

TYPES = tuple(named.DTYPES)
INTERPRETED_TYPES = ("float32", "float16")  # bfloat16 dots are wrong when interpreted
CONVS = ("causal_conv1d", "causal_conv_transpose1d", "causal_conv1d_", "causal_conv_transpose1d_")
SPECTRA = ("overlap_add", "overlap_add_", "spectrum_head", "spectrum_head_", "frame_embed")
ELEMENTWISE = ("flow_step", "flow_step_", "silu_mul")
EXPERTS = ("route_topk", "sort_by_expert", "grouped_gemm", "moe_mlp")

NOT_INTERPRETED = {  # beside the large linears and convolutions: what takes the interpreter minutes
    "attention_decode": ("real_llm", "real_semantic", "real_llm_long", "real_semantic_long", "long_cache"),
    "kv_write_": ("real_llm", "real_semantic"),
    "moe_mlp": ("t200_skewed",),
    "overlap_add": ("real_one_shot",),
    "overlap_add_": ("real_one_shot",),
    "silu_mul": ("real_prefill",),
}
FAST_INTERPRETED = {
    **dict.fromkeys(CONVS[:2], ("mixed_rows", "depthwise_long", "dilated_long", "wide", "flush", "odd_sizes")),
    **dict.fromkeys(SPECTRA, ("mixed_rows", "one_frame_first", "odd_sizes")),
    **dict.fromkeys(CONVS[2:], ()),
}
FAST_FLOW_SAMPLE = ("b1", "midpoint", "temperature_mixed", "history_0", "rope_heads", "fp8_b1")

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
can_emulate = shutil.which("g++") and find_spec("cuda") and find_spec("cuda.bindings")
needs_emulator = pytest.mark.skipif(not can_emulate, reason="no C++ compiler or no cuda.bindings")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Call(NamedTuple):
    backend: str
    op: str
    case: str
    index: int  # among the op's cases


def calls(backend: str, large: bool = False) -> Iterator[tuple[Call, cases.Case]]:
    for op in cases.ops_with_cases():
        if op in OPS and backend in getattr(OPS[op], "op", OPS[op]).backends:  # packing has cases for the benches
            for index, case in enumerate(cases.for_op(op, large=large)):
                yield Call(backend, op, case.name, index), case


def parameters(found: Iterator[tuple[Call, list]]) -> pytest.MarkDecorator:
    made = [pytest.param(call, id=f"{call.backend}-{call.op}-{call.case}", marks=marks) for call, marks in found]
    return pytest.mark.parametrize("call", made)


def native() -> Iterator[tuple[Call, list]]:
    for call, _ in calls("cpu"):
        if backends.load("cpu", family_of(call.op)) is None:
            yield call, []


def interpreted(slow: bool) -> Iterator[tuple[Call, list]]:
    """flow_sample is interpreted at smaller sizes, by test_flow_triton.py."""
    for call, case in calls("triton"):
        large = case.tags & {"real", "mid"} and call.op in ("linear", *CONVS, *SPECTRA[2:])
        if large or call.op == "flow_sample" or case.name in NOT_INTERPRETED.get(call.op, ()):
            continue
        some = call.op in (*ELEMENTWISE, *EXPERTS) or call.index % 3 == 0 or "strided" in case.tags
        usual = (call.case,) if some else ()
        if slow or call.case in FAST_INTERPRETED.get(call.op, usual):
            yield call, [needs_triton]


def emulated(slow: bool) -> Iterator[tuple[Call, list]]:
    """One patch of the real head: test_spectrum_cuda.py."""
    for call, case in calls("cuda"):
        real = case.tags & {"real", "mid"}
        if real and call.op in (*CONVS, *SPECTRA[2:4]):
            continue
        late = (call.op in CONVS[2:] and call.index % 3) or (real and call.op == "frame_embed")
        late = late or (call.op in SPECTRA[:4] and call.index % 2 == call.op.endswith("_"))
        late = late or (call.op == "flow_sample" and call.case not in FAST_FLOW_SAMPLE)
        if slow or not late:
            yield call, [needs_emulator]


def on_gpu() -> Iterator[tuple[Call, list]]:
    for backend in ("cuda", "triton"):
        for call, case in calls(backend, large=True):
            slow_to_compile = backend == "triton" and call.op in CONVS and not gpu_types(call, case)
            if cases.LARGE not in case.tags or (call.op in (*CONVS, *SPECTRA) and not slow_to_compile):
                yield call, [pytest.mark.gpu, needs_gpu]


def gpu_types(call: Call, case: cases.Case) -> tuple[str, ...]:
    if call.op == "flow_sample":
        return ("bfloat16",)
    if call.backend != "triton" or call.op not in CONVS:
        return TYPES
    tags = {"real": "bfloat16", "verify": "float32", "strided": "float16"}
    return tuple(dtype for tag, dtype in tags.items() if tag in case.tags and call.op in CONVS[:2])


def interpreted_types(call: Call) -> tuple[str, ...]:
    return INTERPRETED_TYPES if call.op in ELEMENTWISE else (INTERPRETED_TYPES[call.index % 2],)


def emulated_types(call: Call) -> tuple[str, ...]:
    if call.op == "flow_sample":
        return ("bfloat16",)
    if call.op == "moe_mlp":
        return ("bfloat16", "float32")
    return TYPES if call.op in ("frame_embed", "flow_step", "flow_step_") else (TYPES[call.index % 3],)


def family_of(op: str) -> str:
    return getattr(OPS[op], "op", OPS[op]).family


def check_declined(call: Call, declined: dict[str, str | None]) -> None:
    """Exactly what is listed is declined; keys end with the type."""
    assert declined, "it was not run at all"
    for setting, reason in declined.items():
        expected = declines(call.backend, call.op, call.case, setting.split()[-1])
        if expected is None or reason is None:
            assert reason == expected, f"{call} {setting}: declined with {reason!r}, expected {expected!r}"
        else:
            assert expected in reason, f"{call} {setting}"


def declines(backend: str, op: str, case: str, dtype: str) -> str | None:
    """What is in the reason for which a backend must decline a case."""
    format = next((f for f in ("int8_dyn", "int8", "fp8", "bf16", "fp16") if case.startswith(f + "_")), "")
    if backend == "cpu":
        reasons = {"flow_sample": "layout 'rows'", "linear": "float8", "moe_mlp": "fp8"}
        return reasons[op] if format == "fp8" else None
    if backend == "triton":
        if op == "linear" and case == "transposed":
            return "takes a dense last dimension"
        return "the weights are int8_dyn" if op == "flow_sample" and format == "int8_dyn" else None
    if "transpose" in op and case == "dilated":
        return "is made of up to 163 times"
    if op == "moe_mlp":
        return cuda_experts_decline(case, format, dtype)
    if op == "flow_sample":
        return cuda_flow_declines(case, format)
    return None


def cuda_experts_decline(case: str, format: str, dtype: str) -> str | None:
    """8-bit weights with 16-bit activations, for up to 63 tokens; sizes that copies of 16 bytes divide."""
    many = case.endswith(("t64", "t65", "t200_skewed"))
    if format == "int8_dyn" or (format and (many or dtype == "float32")) or (many and dtype == "float32"):
        return "the format is "
    if case.endswith("odd_sizes") or (format and case.endswith(("no_tokens", "strided"))):
        return "it takes multiples of"
    return None


def cuda_flow_declines(case: str, format: str) -> str | None:
    """Of bfloat16 activations; up to 96 rows of tokens."""
    if format in ("int8", "int8_dyn", "fp16"):
        return "the weights are "
    if case.endswith("odd_sizes") or case == "odd_qk_norm":
        return "multiples of"
    if case in ("b8", "tokens_37"):
        return "rows of tokens; it takes"
    return "condition is torch.float32" if case == "float_input" else None


@parameters(native())
def test_native(call):
    check_declined(call, native_runner.run(call.op, call.case))


def answers(lines: list[dict]) -> dict[str, str | None]:
    return {line["dtype"]: line["declined"] for line in lines}


def run_interpreted(workers, version: str, call: Call, dtypes: tuple[str, ...], index: int) -> None:
    worker = workers.interpreter(version)
    settings = {"op": call.op, "name": call.case, "dtypes": dtypes, "index": index}
    lines = worker("tests.ops.runners.interpreted:run", timeout_s=1500, **settings)
    if version != "installed":
        assert {line["triton"] for line in lines} == {triton.OLDEST}
    check_declined(call, answers(lines))


@parameters(interpreted(slow=False))
def test_interpreted(call, workers):
    """In types by turns, for the interpreter is slow."""
    run_interpreted(workers, "installed", call, interpreted_types(call), call.index)


def for_the_oldest() -> Iterator[tuple[Call, list]]:
    for call, marks in interpreted(slow=False):
        if call.op in ELEMENTWISE or (call.op in EXPERTS and call.index % 3 == 0):
            yield call, marks


@parameters(for_the_oldest())
def test_interpreted_by_the_oldest_triton(call, workers):
    run_interpreted(workers, "oldest", call, interpreted_types(call), call.index)


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("version", triton.VERSIONS)
@parameters(interpreted(slow=True))
def test_interpreted_in_every_type(call, version, workers):
    for index in range(call.index, call.index + 3):
        run_interpreted(workers, version, call, INTERPRETED_TYPES, index)


def run_emulated(workers, call: Call, dtypes: tuple[str, ...], index: int) -> None:
    worker = workers.flow_emulator() if call.op == "flow_sample" else workers.emulator()
    settings = {"op": call.op, "name": call.case, "dtypes": dtypes, "index": index}
    check_declined(call, answers(worker("tests.ops.runners.emulated_device:run", timeout_s=900, **settings)))


@parameters(emulated(slow=False))
def test_emulated(call, workers):
    """In types by turns where all would take long."""
    run_emulated(workers, call, emulated_types(call), call.index)


@pytest.mark.slow
@pytest.mark.timeout(1600)
@parameters(emulated(slow=True))
def test_emulated_in_every_type(call, workers):
    for index in range(call.index, call.index + 3):
        run_emulated(workers, call, emulated_types(call) if call.op == "flow_sample" else TYPES, index)


@parameters(on_gpu())
def test_gpu(call):
    case = named.find(call.op, call.case)
    if call.case.startswith("fp8") and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no 8-bit floats here")
    check_declined(call, gpu.run(call.op, call.case, call.backend, gpu_types(call, case)))
