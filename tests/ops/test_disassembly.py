"""No vector instruction outside the code that is chosen by CPUID.

A weak symbol (an inline function, a template) that several units define is kept once, from any of
them: were it compiled for AVX-512, every other machine would crash. So every symbol of the built
module is disassembled, and wide registers may occur only in functions of the namespace of their
ISA.
"""

import platform
import re
import shutil
import subprocess

import pytest

from mingcore import _cpu

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="not an x86 build"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (binutils)"),
]

SYMBOL = re.compile(r"^[0-9a-f]+ <(.+)>:$")
AVX512 = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b")
AVX = re.compile(r"\s[v][a-z0-9]+ .*%[xy]mm|%ymm")


def disassembly(*arguments: str) -> str:
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def violations(text: str) -> tuple[list[str], dict[str, int]]:
    """Symbols that use an ISA they may not, and how many symbols of each ISA were seen."""
    bad, seen, symbol = [], {"avx512": 0, "avx2": 0, "scalar": 0}, ""
    for line in text.splitlines():
        if found := SYMBOL.match(line):
            symbol = found[1]
            for isa in seen:
                seen[isa] += f"mingcore::{isa}::" in symbol
            continue
        wide, avx = AVX512.search(line), AVX.search(line)
        if not (wide or avx):
            continue
        if "mingcore::avx512::" in symbol or (not wide and "mingcore::avx2::" in symbol):
            continue
        bad.append(f"{symbol}: {line.strip()}")
    return bad, seen


def test_wide_instructions_stay_in_their_namespace():
    bad, seen = violations(disassembly(_cpu.__file__))
    assert not bad, "\n".join(bad[:20])
    assert all(count >= 3 for count in seen.values()), f"symbols were not found: {seen}"


def test_a_leaked_template_is_found(tmp_path):
    source = tmp_path / "leak.cpp"
    source.write_text(
        "#include <algorithm>\n"
        "struct Wide { float at[64]; };\n"
        "template <class T> __attribute__((noinline)) T twice(const T& a) {\n"
        "  T r; for (int i = 0; i < 64; ++i) r.at[i] = 2 * a.at[i]; return r; }\n"
        "Wide run(const Wide& a) { return twice(a); }\n"
    )
    library = tmp_path / "leak.so"
    flags = ["-O3", "-mavx512f", "-mprefer-vector-width=512", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", library, source], check=True)
    bad, _ = violations(disassembly(str(library)))
    assert any("twice" in line for line in bad)
