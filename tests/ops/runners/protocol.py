"""Functions of the tests run in a process of their own, which stays for many calls.

A worker is `python -m tests.ops.runners.worker [setup [argument ...]]`. It reads requests, one line
of JSON each: {"call": "module:function", "args": {...}}. It answers with the lines that the function
reports, then with {"end": true}. What a function raises ends the process.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
_answers = sys.stdout


class Worker:
    """A worker's parent: `worker("module:function", **args)` gives what the function reported.

    Raises AssertionError with the end of stderr where the process died or was too slow; the next
    call starts a new one.
    """

    def __init__(self, *setup: Any, environment: Mapping[str, str] | None = None, paths: tuple[Path, ...] = ()):
        name, *arguments = setup or ("",)
        self._command = [sys.executable, "-m", "tests.ops.runners.worker", name, *map(json.dumps, arguments)]
        found = os.pathsep.join(map(str, (*paths, ROOT, ROOT / "kernels")))
        self._environment = {**os.environ, "PYTHONPATH": found, **(environment or {})}
        if "TRITON_INTERPRET" not in (environment or {}):
            self._environment.pop("TRITON_INTERPRET", None)
        self._process: subprocess.Popen | None = None

    def __call__(self, function: str, *, timeout_s: float = 280, **args: Any) -> list[dict]:
        process = self._process or self._start()
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        lines: list[dict] = []
        try:
            process.stdin.write(json.dumps({"call": function, "args": args}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                lines.append(json.loads(line))
                if lines[-1] == {"end": True}:
                    return lines[:-1]
            raise AssertionError(f"{function} {args}: the process ended, code {process.wait()}\n{self._stderr()}")
        except BaseException:  # a test's time limit too: what comes next would be this call's
            self.close()
            raise
        finally:
            timer.cancel()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._stack.close()
            self._process = None

    def _start(self) -> subprocess.Popen:
        stack = ExitStack()
        self._stack, self._errors = stack, stack.enter_context(os.fdopen(os.memfd_create("stderr"), "w+"))
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=self._environment,
        )
        return self._stack.enter_context(self._process)

    def _stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-3000:]


def report(**fields: Any) -> None:
    """One line of a worker's answer."""
    print(json.dumps(fields), file=_answers, flush=True)


def serve(name: str = "", *arguments: str) -> None:
    """What a worker does; what is printed otherwise goes to stderr."""
    global _answers
    _answers, sys.stdout = sys.stdout, sys.stderr
    if name:
        _function(name)(*map(json.loads, arguments))
    for line in sys.stdin:
        request = json.loads(line)
        _function(request["call"])(**request["args"])
        report(end=True)


def _function(name: str) -> Callable:
    module, function = name.split(":")
    return getattr(import_module(module), function)
