"""Builds mingcore._cpu for every instruction set, and CUDA fatbins where wanted; without PyTorch.

Fatbins: where nvcc is found and MINGCORE_CUDA=1 is set or there is a GPU (MINGCORE_CUDA=0: never).
Without them NVRTC compiles the same sources, which ship in the package, at first use.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
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
# under csrc; these hold no intrinsics and are compiled once
BASELINE = ("cpu/lib/dispatch.cpp", "cpu/lib/parallel.cpp")
CUDA_FLAGS = ["-O3", "-std=c++17", "--fatbin", "-Xptxas", "-warn-spills"]


def fatbins_wanted() -> tuple[str | None, str]:
    """nvcc's path, or None and why there will be no fatbins."""
    asked = os.environ.get("MINGCORE_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"MINGCORE_CUDA must be 0 or 1, got {asked!r}")
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"), os.environ["PATH"]]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(map(str, folders)))
    if asked == "1" and nvcc is None:
        raise SystemExit("MINGCORE_CUDA=1, but there is no nvcc in CUDA_HOME or on PATH")
    if asked == "0" or nvcc is None:
        return None, "MINGCORE_CUDA=0" if asked else "no nvcc; NVRTC compiles at first use"
    if asked != "1" and not Path("/dev/nvidiactl").exists():
        return None, "no GPU here; MINGCORE_CUDA=1 builds them all the same"
    return nvcc, ""


def escaped(path: Path) -> str:  # for a line of a ninja file
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class BuildPy(build_py):
    """Adds the CUDA sources, which NVRTC needs, to a wheel; an editable install has csrc."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(CSRC / "cuda", Path(self.build_lib, "mingcore/_cuda"), dirs_exist_ok=True)


class BuildExt(build_ext):
    def run(self):
        super().run()
        fatbins = self.build_fatbins(ROOT if self.inplace else Path(self.build_lib))
        print("mingcore: built _cpu for", ", ".join(ISA_FLAGS) + "; fatbins:", fatbins)

    def build_extension(self, ext):
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(self.ninja_file(output))
        subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", build, "--quiet"], check=True)

    def ninja_file(self, output: Path) -> str:
        cxx = os.environ.get("CXX") or shutil.which("g++") or "c++"
        include = f"'-I{pybind11.get_include()}' '-I{sysconfig.get_path('include')}'"
        flags = f"-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall '-I{escaped(CSRC)}'"
        flags += " -DMC_X86" * X86
        lines = [
            f"rule cc\n  command = {cxx} {flags} $extra -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc",
            # A unity build of the bindings: each of their files compiles alone, but takes 12 s of
            # pybind11's headers then; all together 20 s.
            f"rule unity\n  command = printf '#include \"%s\"\\n' $in | {cxx} {flags} {include}"
            " -MMD -MF $out.d -MT $out -x c++ -c - -o $out",
            "  depfile = $out.d\n  deps = gcc",
            f"rule link\n  command = {cxx} -shared $in -o $out -ldl -pthread",
        ]
        bindings = " ".join(escaped(p) for p in sorted((CSRC / "bind").glob("*.cpp")))
        lines.append(f"build bind.o: unity {bindings}")
        units = []
        for path in sorted((CSRC / "cpu").rglob("*.cpp")):
            name = path.relative_to(CSRC)  # objects lie in the same folders as their sources
            variants = {"baseline": ""} if name.as_posix() in BASELINE else ISA_FLAGS
            units += [(f"{name.with_suffix('')}.{isa}", path, extra) for isa, extra in variants.items()]
        for name, path, extra in units:
            lines.append(f"build {name}.o: cc {escaped(path)}\n  extra = {extra}")
        objects = ["bind.o", *(f"{name}.o" for name, _, _ in units)]
        return "\n".join([*lines, f"build {escaped(output)}: link {' '.join(objects)}", ""])

    def build_fatbins(self, root: Path) -> str:
        nvcc, why_none = fatbins_wanted()
        if nvcc is None:
            return f"none ({why_none})"
        folder = CSRC / "cuda"
        sources = sorted(folder.glob("*/*.cu"), key=lambda path: path.stem)
        headers = b"".join(p.read_bytes() for p in sorted(folder.glob("*/*.cuh")))
        for source in sources:  # named by its text, so that launch.py never takes a stale one
            digest = hashlib.sha256(source.read_bytes() + headers).hexdigest()[:16]
            fatbin = root / "mingcore" / "_cuda" / f"{source.stem}.{digest}.fatbin"
            fatbin.parent.mkdir(exist_ok=True)
            targets = re.search(r"^// arch:(.*)$", source.read_text(), re.M)[1].split()
            codes = [f"-gencode=arch=compute_{t.split('_')[1]},code={t}" for t in targets]
            command = [nvcc, *CUDA_FLAGS, *codes, f"-I{folder}", "-o", fatbin, source]
            subprocess.run(command, check=True)
        return ", ".join(source.stem for source in sources)


setup(
    packages=[*find_packages(include=["mingcore", "mingcore.*"]), *find_packages("kernels")],
    package_dir={"mingcore_kernels": "kernels/mingcore_kernels"},
    package_data={"mingcore": ["py.typed", "checkpoints/**", "ops/verified/*.json"]},
    ext_modules=[Extension("mingcore._cpu", sources=["csrc/bind/module.cpp"])],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
