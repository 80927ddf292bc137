"""Builds mingcore._cpu for every instruction set, and CUDA fatbins where wanted; without PyTorch.

Fatbins are built when nvcc is found and either MINGCORE_CUDA=1 is set or a GPU is present
(MINGCORE_CUDA=0: never). Without them NVRTC compiles the same sources, shipped in the package, at
first use.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 -Wno-uninitialized"
ISA_FLAGS = {"scalar": ""}
if X86:
    ISA_FLAGS["avx2"] = "-DMC_AVX2 -mavx2 -mfma -mf16c"
    ISA_FLAGS["avx512"] = f"-DMC_AVX512 {AVX512} -mfma -mf16c -Wno-maybe-uninitialized"
BASELINE = ("dispatch.cpp", "parallel.cpp")
CUDA_FLAGS = ["-O3", "-std=c++17", "--fatbin", "-Xptxas", "-warn-spills"]


def fatbins_wanted() -> tuple[str | None, str]:
    """nvcc's path, or None and why there will be no fatbins."""
    asked = os.environ.get("MINGCORE_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"MINGCORE_CUDA must be 0, 1 or unset, got {asked!r}")
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    nvcc = str(home) if home.exists() else shutil.which("nvcc")
    if asked == "0":
        return None, "MINGCORE_CUDA=0"
    if nvcc is None:
        if asked == "1":
            raise SystemExit("MINGCORE_CUDA=1, but there is no nvcc in CUDA_HOME or on PATH")
        return None, "no nvcc; NVRTC compiles at first use"
    if asked != "1" and not Path("/dev/nvidiactl").exists():
        return None, "no GPU here; MINGCORE_CUDA=1 builds them all the same"
    return nvcc, ""


def gencode(source: Path) -> list[str]:
    """The -gencode flags of a kernel file's line `// arch: sm_80 sm_90a compute_80`."""
    targets = re.search(r"^// arch:(.*)$", source.read_text(), re.M).group(1).split()
    return [f"-gencode=arch=compute_{t.split('_')[1]},code={t}" for t in targets]


class BuildPy(build_py):
    """Adds the CUDA sources, which NVRTC needs, to a wheel; an editable install has csrc."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "mingcore", "_cuda")
            shutil.copytree(CSRC / "cuda", target, dirs_exist_ok=True)


class BuildExt(build_ext):
    def run(self):
        super().run()
        fatbins = self.build_fatbins(ROOT if self.inplace else Path(self.build_lib))
        isas = ", ".join(ISA_FLAGS)
        print(f"mingcore: built _cpu for {isas}; fatbins: {fatbins}", file=sys.stderr)

    def build_extension(self, ext):
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / f"cpu-{sysconfig.get_config_var('SOABI')}"
        build.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(self.ninja_file(output))
        subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", build, "--quiet"], check=True)

    def ninja_file(self, output: Path) -> str:
        cxx = os.environ.get("CXX") or shutil.which("g++") or "c++"
        include = f"-I{pybind11.get_include()} -I{sysconfig.get_path('include')}"
        flags = "-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall" + " -DMC_X86" * X86
        lines = [
            f"rule cc\n  command = {cxx} {flags} $extra -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc",
            f"rule link\n  command = {cxx} -shared $in -o $out -ldl -pthread",
        ]
        units = [("bindings", CSRC / "bindings.cpp", include)]
        kernels = [p for p in sorted((CSRC / "cpu").glob("*.cpp")) if p.name not in BASELINE]
        units += [(Path(n).stem, CSRC / "cpu" / n, "") for n in BASELINE]
        units += [(f"{p.stem}.{isa}", p, fl) for p in kernels for isa, fl in ISA_FLAGS.items()]
        for name, source, extra in units:
            lines.append(f"build {name}.o: cc {source}\n  extra = {extra}")
        lines.append(f"build {output}: link {' '.join(f'{name}.o' for name, _, _ in units)}")
        return "\n".join(lines) + "\n"

    def build_fatbins(self, root: Path) -> str:
        nvcc, why_none = fatbins_wanted()
        if nvcc is None:
            return f"none ({why_none})"
        target = root / "mingcore" / "_cuda"
        target.mkdir(exist_ok=True)
        sources = sorted((CSRC / "cuda").glob("*.cu"))
        for source in sources:
            fatbin = target / f"{source.stem}.fatbin"
            subprocess.run([nvcc, *CUDA_FLAGS, *gencode(source), "-o", fatbin, source], check=True)
        return ", ".join(source.stem for source in sources)


setup(
    packages=[*find_packages(include=["mingcore", "mingcore.*"]), "mingcore_kernels"],
    package_dir={"mingcore_kernels": "kernels/mingcore_kernels"},
    package_data={"mingcore": ["py.typed", "checkpoints/**", "ops/verified/*.json"]},
    include_package_data=False,
    ext_modules=[Extension("mingcore._cpu", sources=["csrc/bindings.cpp"])],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
