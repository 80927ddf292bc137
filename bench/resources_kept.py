"""What compiled kernels took when it was kept, and when that is worse now.

bench/results/cuda_resources.json and triton_resources.json hold one line per kernel, for every
architecture. A kernel is worse when it spills more than was kept (of most kernels that is nothing),
when it takes more than a tenth or at least LIMIT_REGISTERS registers more, a tenth more of shared
memory, or when an instruction of the matrix unit that it had is gone. Less is no fault; `exact`
says of any difference that the file is old.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT_SHARE, LIMIT_REGISTERS = 1.10, 8


@dataclass(frozen=True)
class Taken:
    """What one kernel takes. name: its target, what it is called and what it was compiled for.

    spilled: bytes of stack and of spills; local: it has local memory. products: the instructions of
    the matrix unit that it has, such as "wgmma m64n64k16 bf16", and how many there are.
    """

    name: str
    registers: int
    shared_bytes: int
    spilled: int
    products: Sequence[str]
    local: bool = False


def faults(found: Iterable[Taken], kept: Mapping[str, Taken], renew: str, *, exact: bool = False) -> list[str]:
    """What is worse than what was kept, by name, or just other where `exact`; then the last line
    says how to renew the file, if it is meant."""
    worse = []
    for now in found:
        before = kept.get(now.name)
        known = before.spilled if before else 0
        if now.spilled > known:
            kept_too = f", kept {known}" if known else ""
            worse.append(f"{now.name}: spills {now.spilled} bytes{kept_too}")
        elif now.local:
            worse.append(f"{now.name}: has local memory")
        elif before is None:
            worse.append(f"{now.name}: is not among what was kept")
        else:
            worse += [f"{now.name}: {what}" for what in _differences(now, before, exact)]
    return [*worse, f"if it is meant: {renew}"] if worse else []


def _differences(now: Taken, before: Taken, exact: bool) -> list[str]:
    worse = []
    more = now.registers - before.registers
    if _above(now.registers, before.registers) or more >= LIMIT_REGISTERS or (exact and more):
        worse.append(f"{now.registers} registers, kept {before.registers}")
    if exact and now.spilled != before.spilled:
        worse.append(f"spills {now.spilled} bytes, kept {before.spilled}")
    more = now.shared_bytes - before.shared_bytes
    if _above(now.shared_bytes, before.shared_bytes) or (exact and more):
        worse.append(f"{now.shared_bytes} bytes of shared memory, kept {before.shared_bytes}")
    lost = sorted(set(before.products) - set(now.products))
    if lost:
        worse.append(f"lost {', '.join(lost)}")
    elif exact and sorted(now.products) != sorted(before.products):
        worse.append(f"products {', '.join(now.products)}, kept {', '.join(before.products)}")
    return worse


def _above(now: int, before: int) -> bool:
    return now > LIMIT_SHARE * before


def read(file: str) -> dict[str, Any]:
    """A kept file's content; {} where there is none."""
    path = RESULTS / file
    return json.loads(path.read_text()) if path.exists() else {}


def write(file: str, content: Mapping[str, Any]) -> Path:
    """Keeps a mapping of mappings with lists: an element per line, so that differences show."""
    path = RESULTS / file
    path.write_text(_lines(content) + "\n")
    return path


def _lines(value: Any, depth: int = 0) -> str:
    inner, outer = " " * (depth + 1), " " * depth
    if isinstance(value, Mapping) and depth < 2:
        body = (f"{inner}{json.dumps(k)}: {_lines(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(body) + f"\n{outer}}}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + json.dumps(v) for v in value) + f"\n{outer}]"
    return json.dumps(value)
