"""Writes a profile as a Chrome trace for https://ui.perfetto.dev: one track per stage."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .profiler import Profile
from .stages import OTHER, STAGES
from .timeline import Slice

_PROCESSES = {1: "host", 2: "GPU"}
_ORDER = (OTHER, *STAGES)


def check_writable(path: str) -> Path:
    """The path. Raises InputError when no file can be made there."""
    target = Path(path)
    if target.is_dir() or not target.absolute().parent.is_dir():
        what = "is a folder" if target.is_dir() else "there is no such folder"
        raise InputError(f"output {path!r}: cannot be written ({what})")
    return target


def write(profile: Profile, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Writes JSON, compressed if the path ends in .gz. about: more entries of the trace's `otherData`.
    Raises InputError, naming the path."""
    content = {
        "displayTimeUnit": "ms",
        "otherData": {**profile.as_dict(), **(about or {})},
        "traceEvents": [*_names(profile), *map(_event, profile.slices)],
    }
    data = json.dumps(content, separators=(",", ":")).encode()
    try:
        Path(path).write_bytes(gzip.compress(data) if str(path).endswith(".gz") else data)
    except OSError as error:
        raise InputError(f"output {str(path)!r}: cannot be written ({error.strerror})") from None


def _names(profile: Profile) -> list[dict[str, Any]]:
    """Metadata events: names of processes and tracks, and their order."""
    named: list[dict[str, Any]] = []
    for pid, process in _PROCESSES.items():
        stages = {s.stage for s in profile.slices if _process(s) == pid}
        if not stages:
            continue
        named.append(_metadata("process_name", pid, 0, name=process))
        for tid, stage in enumerate(_ORDER):
            if stage in stages:
                named.append(_metadata("thread_name", pid, tid, name=stage))
                named.append(_metadata("thread_sort_index", pid, tid, sort_index=tid))
    return named


def _metadata(what: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _process(s: Slice) -> int:
    return 2 if s.kind == "kernel" else 1


def _event(s: Slice) -> dict[str, Any]:
    event = {
        "ph": "X",
        "name": s.name,
        "cat": s.kind,
        "pid": _process(s),
        "tid": _ORDER.index(s.stage),
        "ts": round(s.start_us, 3),
        "dur": max(0.0, round(s.end_us, 3) - round(s.start_us, 3)),
    }
    if s.call is not None:
        call = {key: s.call[key] for key in ("backend", "nbytes", "flops")}
        event["args"] = {**call, "gbs": round(call["nbytes"] / s.us / 1e3, 3) if s.us else None}
    return event
