"""Bundles of compiled kernels without a GPU: built, installed in a Triton whose compiler raises, and rejected.

On a GPU: tests/aot/test_gpu_bundle.py.
"""

import gc
import json
import shutil

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings")

from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mingcore.aot import build, cuda_build, dry_run, identity, install, manifest, targets, trace
from mingcore.errors import BackendError, InputError, KernelBundleError
from mingcore.ops._core import launch
from mingcore.runtime.stats import Meter
from mingcore_kernels.activation import silu_mul
from tests.aot.fake_gpu import FakeGPU

HOPPER = targets.parse("sm_90a")[0]
SILU_MUL = "kernels/mingcore_kernels/activation/silu_mul.py"
TINY = "mingcore/checkpoints/tiny"
pytestmark = pytest.mark.skipif(identity.unsupported_reason() is not None, reason=str(identity.unsupported_reason()))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def few_launches(spec, target, limits, **_) -> trace.Trace:
    """Two kernels in place of a model's."""
    with trace.tracing(target) as found:
        silu_mul.silu_mul(meta(3, 64), meta(3, 32))
        silu_mul.silu_mul(meta(3, 34), meta(3, 17))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, request):
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setattr(dry_run, "launches", few_launches)
    patch.setattr(launch, "ops", lambda: ["flow_step"])
    folder = tmp_path_factory.mktemp("bundle") / "of two"
    spec = dry_run.ModelSpec.of(TINY)
    two = (HOPPER, *targets.parse("sm_80"))
    result = build.build(spec, two, folder, jobs=1, cuda_compiler="nvrtc")
    patch.undo()
    return result


@pytest.fixture
def bundle(made, tmp_path):
    """A copy of the bundle that a test may damage."""
    return shutil.copytree(made.folder, tmp_path / "bundle")


@pytest.fixture
def gpu():
    """A fake GPU as Triton's driver, and an empty cache of compiled kernels."""
    silu_mul._silu_mul_kernel.device_caches.clear()
    fake = FakeGPU()
    with trace.acting_as(fake):
        yield fake
        install.uninstall()
        silu_mul._silu_mul_kernel.device_caches.clear()
        gc.collect()  # binaries that this driver "loaded" must be "unloaded" by it


@pytest.fixture
def no_compiler(monkeypatch):
    def wrong(*_):
        raise AssertionError("Triton compiles")

    monkeypatch.setattr(ASTSource, "make_ir", wrong)
    monkeypatch.setattr(launch, "_compile", wrong)


def fit(**changed) -> dict:
    model = dry_run.build(dry_run.ModelSpec.of(TINY), dtype=None, weights=None)
    found = {"model_fingerprint": identity.of_model(model.config)}
    return found | {"weights": "bf16", "dtype": torch.bfloat16} | changed


def change(bundle, **values) -> None:
    """Write other values into the manifest, with a new checksum."""
    whole = json.loads((bundle / manifest.NAME).read_text()) | values
    manifest.write(bundle, whole)


def test_the_manifest_says_what_is_in_it(made):
    found = manifest.read(made.folder)
    assert made.triton == len(found["triton"]) == 4 and not made.spilled
    for entry in found["triton"]:
        assert entry["kernel"] == "_silu_mul_kernel" and entry["constants"]["BLOCK"] == 1024
        assert entry["signature"]["gate_up"] == "*fp32" and entry["warps"] == 4
        assert 0 < entry["registers"] <= 255 and entry["spilled_bytes"] == 0
        assert entry["shared_bytes"] == 0 and len(entry["files"]) == 2
        assert all((made.folder / name).is_file() for name in entry["files"])
    assert {e["target"] for e in found["triton"]} == {"sm_90:132", "sm_80:108"}
    by_op = {(e["op"], *e["codes"]): e for e in found["cuda"]}
    assert set(by_op) == {("flow_step", "sm_80"), ("flow_step", "sm_90a")}
    assert all(k["registers"] > 0 for e in found["cuda"] for k in e["kernels"].values())
    assert not found["not_made"]
    assert found["sources"] == manifest.sources()
    assert {SILU_MUL, "csrc/cuda/flow/flow_step.cu"} <= set(found["sources"])
    manifest.check_files(made.folder, found)


def test_kernels_come_from_the_bundle_and_nothing_is_compiled(bundle, gpu, no_compiler):
    found = install.check(bundle, HOPPER, **fit())
    use = install.install_checked(bundle, found, HOPPER)
    for width in (32, 17):
        silu_mul.silu_mul(torch.zeros(3, 2 * width), torch.zeros(3, width))
    assert [s.grid for s in gpu.started] == [(3, 1, 1)] * 2
    held = [p.read_bytes() for p in (bundle / "triton" / HOPPER.slug).glob("*/*.cubin")]
    assert {s.binary for s in gpu.started} == set(held) and len(held) == 2
    assert use.as_dict()["compiled"] == 0 and use.loaded == 2 and use.cuda == 1
    assert "2 of Triton, 1 ops of CUDA, 0 compiled" in str(use)
    assert launch._served["flow_step"].read_bytes()[:4] == b"\x7fELF"
    meter = Meter(torch.device("cpu"))
    meter.device = torch.device("cuda")  # as a request on a GPU counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
        meter.pause()
    assert meter.stats.as_dict()["kernels"] == use.as_dict()
    assert "kernels from a bundle (2 of Triton, 1 ops of CUDA; 0 compiled)" in str(meter.stats)
    # a kernel that is not in it: other types, so another specialisation
    with pytest.raises(KernelBundleError, match=r"has no _silu_mul_kernel for \('\*bf16'.*1024"):
        half = torch.bfloat16
        silu_mul.silu_mul(torch.zeros(3, 64, dtype=half), torch.zeros(3, 32, dtype=half))
    assert use.refused == ["_silu_mul_kernel"] and len(gpu.started) == 2
    with pytest.raises(KernelBundleError, match="this process uses"):
        install.install_checked(bundle.parent, found, HOPPER)
    assert install.install_checked(bundle, found, HOPPER) is use


def test_without_the_bundle_the_compiler_would_be_asked(gpu, no_compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with pytest.raises(AssertionError, match="Triton compiles"):
        silu_mul.silu_mul(torch.zeros(3, 64), torch.zeros(3, 32))


def test_an_op_without_a_binary_is_refused(bundle, gpu):
    install.install_checked(bundle, manifest.read(bundle), HOPPER)
    with pytest.raises(BackendError, match="flow_sample: the bundle of kernels has no binary"):
        launch._library("flow_sample", 0)


def test_ops_are_left_out_where_their_kernels_cannot_run():
    two = (HOPPER, *targets.parse("sm_80"))
    found, reason = cuda_build.covered("flow_sample", two)
    assert found == [HOPPER] and reason == "not for sm_80:108: it is made for sm_90a"
    assert cuda_build.covered("flow_step", two) == (list(two), None)
    assert cuda_build._code("flow_step", HOPPER) == "sm_90a"
    with pytest.raises(InputError, match="must be one of auto, nvcc, nvrtc"):
        cuda_build.choose("clang")


def test_nvcc_makes_one_fatbin_for_all(tmp_path):
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc")
    two = (HOPPER, *targets.parse("sm_80"))
    (entry,) = cuda_build.compile_op("flow_step", two, tmp_path, "nvcc")
    assert entry["codes"] == ["sm_80", "sm_90a"] and list(entry["files"]) == ["cuda/flow_step.fatbin"]
    assert all(kernel["spilled_bytes"] == 0 for kernel in entry["kernels"].values())


def test_a_changed_variable_of_triton_is_noticed(bundle, gpu, monkeypatch):
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    monkeypatch.setenv("DISABLE_LLVM_OPT", "1")
    with pytest.raises(KernelBundleError, match=r"variables differ"):
        install.install_checked(bundle, manifest.read(bundle), HOPPER)
    assert install.installed() is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: shutil.rmtree(b), r"is no bundle, it has no manifest\.json"),
        (lambda b: (b / manifest.NAME).write_text("{"), r"cannot be read"),
        (lambda b: (b / manifest.NAME).write_text('{"format": 99}'), r"format 99"),
        (
            lambda b: (b / manifest.NAME).write_text((b / manifest.NAME).read_text().replace('"bf16"', '"int8"')),
            r"was changed after it was written",
        ),
        (lambda b: change(b, sources={SILU_MUL: "0"}), r"stale: csrc/cuda/"),
        (
            lambda b: change(b, sources=manifest.sources() | {SILU_MUL: "0"}),
            r"stale: kernels/mingcore_kernels/activation/silu_mul\.py changed since; run mingcore compile",
        ),
        (lambda b: change(b, triton_compiler="0", triton_version="3.5.1"), r"made by Triton 3\.5\.1, here is "),
        (lambda b: change(b, triton_compiler="0"), r"same version but another build"),
        (lambda b: next((b / "cuda").glob("*")).write_bytes(b"?"), r"is damaged: its SHA-256"),
        (lambda b: next(b.glob("triton/*/*/*.cubin")).unlink(), r"\.cubin is missing"),
    ],
    ids=["gone", "no_json", "format", "edited", "no_sources", "stale", "triton", "build", "damaged", "missing"],
)
def test_a_stale_foreign_or_damaged_bundle_is_refused(bundle, spoil, said):
    spoil(bundle)
    with pytest.raises(KernelBundleError, match=said):
        install.check(bundle, HOPPER, **fit())


@pytest.mark.parametrize(
    ("target", "changed", "said"),
    [
        ("sm_100", {}, r"is for sm_90:132, sm_80:108, this GPU is sm_100:148; run mingcore compile"),
        ("sm_90a:114", {}, r"this GPU is sm_90:114; run mingcore compile --arch sm_90:114"),
        ("sm_90a", {"weights": "int8"}, r"is for weights bf16, got int8"),
        ("sm_90a", {"dtype": torch.float16}, r"is for dtype torch\.bfloat16, got torch\.float16"),
        ("sm_90a", {"model_fingerprint": "0"}, r"was made for the shapes of .*tiny"),
    ],
)
def test_another_gpu_or_model_is_refused(made, target, changed, said):
    with pytest.raises(KernelBundleError, match=said):
        install.check(made.folder, targets.parse(target)[0], **fit(**changed))


def test_a_bundle_is_for_a_gpu(made):
    from mingcore import MingAudio

    with pytest.raises(InputError, match="holds kernels of a GPU, the device is cpu"):
        MingAudio.from_pretrained("tiny", device="cpu", kernels=made.folder)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(InputError, match="holds something else than a bundle"):
        build._emptied(tmp_path)
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sm90", "must be such as"),
        ("sm_75", "sm_80 and newer"),
        ("sm_103", "how many multiprocessors"),
        ("sm_90,sm_90a", "named twice"),
    ],
)
def test_bad_architectures(text, said):
    with pytest.raises(InputError, match=said):
        targets.parse(text)


def test_tracing_leaves_triton_as_it_was():
    before = JITFunction.run
    few_launches(None, HOPPER, None)
    assert JITFunction.run is before
